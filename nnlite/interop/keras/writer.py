"""Models as Keras's files."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np

from nnlite import layers
from nnlite.arguments import shortened
from nnlite.atomic import write_whole
from nnlite.backend import Array, Window
from nnlite.backend.window import both
from nnlite.engine.plan import flatten
from nnlite.engine.steps import Step
from nnlite.errors import StateError
from nnlite.interop.keras import files
from nnlite.interop.keras.files import Named, Unit
from nnlite.interop.keras.layers import group_name
from nnlite.layers.base import Layer
from nnlite.layers.branches import Joined, Sum
from nnlite.model import Sequential, needs_model

Entry = tuple[str, dict[str, Any]]  # a class of Keras and its options
FUNCTIONAL = "keras.src.models.functional"
OLD = {"negative_slope": "alpha", "batch_shape": "batch_input_shape"}  # options of Keras 2
THEIRS = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_var": "moving_variance", "slopes": "alpha"}


def save(model: Sequential, path: str | PathLike[str]) -> None:
    """Write the model for Keras: `.keras`, `.h5` or `.hdf5` for `keras.models.load_model`, `.weights.h5` for `load_weights`.

    Layers bear the names that they have here, such as "3.shortcut.0". Raises ValueError for another ending, StateError for what
    Keras has no layer for, FileError where the file cannot be written.
    """
    needs_model(model)
    name, graph = fspath(path), _Graph(model)
    if name.endswith(".weights.h5"):
        data = files.numbered(graph.units)
    elif name.endswith(".keras"):
        data = files.archive(graph.config(3), graph.units)
    elif name.endswith((".h5", ".hdf5")):
        data = files.listed(graph.config(2), graph.units)
    else:
        raise ValueError(f"path must end in .keras, .weights.h5, .h5 or .hdf5, not {shortened(name)}")
    write_whole(path, data)


class _Node(NamedTuple):
    """A layer of Keras, the layers that it reads, and the layer here whose arrays it has."""

    kind: str
    options: dict[str, Any]
    reads: list[str]
    layer: Layer | None


class _Graph:
    """units: the arrays of Keras's layers, in Keras's order."""

    def __init__(self, model: Sequential) -> None:
        self.model = model
        self._nodes: dict[str, _Node] = {"input": _Node("InputLayer", {"batch_shape": [None, *model.in_shape]}, [], None)}
        steps = flatten(model.children())
        self._is_chain = all(len(step.reads) == 1 for step in steps)
        self._names = {0: "input"}
        for step in steps:
            self._step(step)
        self._nodes = {name: self._nodes[name] for name in _by_depth(self._nodes, self._names[steps[-1].makes])}
        counts, inside = Counter[str](), self._nodes if not self._is_chain else list(self._nodes)[1:]
        self.units = [Unit(name, self._arrays(name), group_name(self._nodes[name].kind, counts)) for name in inside]

    def _step(self, step: Step) -> None:
        write = WRITERS.get(type(step.layer))
        if write is None:
            raise StateError(f"layer {step.path} {shortened(step.layer)} has no equal in Keras")
        reads = [self._names[v] for v in step.reads]
        *before, (kind, options) = write(step)
        for padding in before:
            self._nodes[f"{step.path}.padding"] = _Node(*padding, reads, None)
            reads = [f"{step.path}.padding"]
        self._nodes[step.path] = _Node(kind, options, reads, step.layer)
        self._names[step.makes] = step.path

    def config(self, keras: int) -> dict[str, Any]:
        """The architecture: a Sequential where there are no branches, else a functional model.  keras: its version, 2 or 3."""
        config: dict[str, Any] = {"name": "nnlite", "trainable": True}
        config["layers"] = [self._entry(name, *node, keras) for name, node in self._nodes.items()]
        if self._is_chain:
            return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}
        ends = [["input", 0, 0]], [[next(reversed(self._nodes)), 0, 0]]
        config["input_layers"], config["output_layers"] = ends if keras == 2 else (ends[0][0], ends[1][0])
        return {"module": FUNCTIONAL, "class_name": "Functional", "config": config, "registered_name": "Functional"}

    def _entry(self, name: str, kind: str, options: dict[str, Any], reads: list[str], layer: Layer | None, keras: int) -> Any:
        config = {"name": name, "dtype": self.model.dtype}
        config |= {OLD.get(option, option): value for option, value in options.items()} if keras == 2 else options
        entry = {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}
        if self._is_chain:
            return entry
        if keras == 2:
            calls: list[Any] = [[[read, 0, 0, {}] for read in reads]]
        else:
            links = [_tensor(read, self.model.dtype) for read in reads]
            calls = [{"args": [links] if len(links) > 1 else links, "kwargs": {}}]
        return entry | {"name": name, "inbound_nodes": calls if reads else []}

    def _arrays(self, name: str) -> list[Named]:
        layer = self._nodes[name].layer
        if isinstance(layer, layers.Embedding):
            return [Named("embeddings", self._theirs(layer, "W"))]
        return [Named(THEIRS.get(own, own), self._theirs(layer, own)) for own in layer.declared] if layer else []

    def _theirs(self, layer: Layer, name: str) -> Array:
        array = self.model.backend.to_host(getattr(layer, name))
        if name == "slopes":
            return array.reshape((1,) * (len(layer.in_shape) - 1) + array.shape)
        if name != "W" or isinstance(layer, layers.Embedding):
            return array
        array = np.moveaxis(array, 0, -1)
        if _is_depthwise(layer):
            array = array.reshape(*array.shape[:2], layer.in_shape[-1], -1)
        return np.ascontiguousarray(array)


def _by_depth(nodes: dict[str, _Node], end: str) -> list[str]:
    """The names in Keras's order: by the longest way to the end, and where it is equal, as they are met going back."""
    depths, met, waiting = dict.fromkeys(nodes, 0), dict[str, int](), [end]
    for name in reversed(nodes):
        for read in nodes[name].reads:
            depths[read] = max(depths[read], depths[name] + 1)
    while waiting:
        name = waiting.pop()
        if name not in met:
            met[name] = len(met)
            waiting += reversed(nodes[name].reads)
    return sorted(nodes, key=lambda name: (-depths[name], met[name]))


def _tensor(name: str, dtype: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"shape": [None], "dtype": dtype, "keras_history": [name, 0, 0]}}


def _is_depthwise(layer: Layer) -> bool:
    return isinstance(layer, layers.Conv2D) and layer.groups == layer.in_shape[-1] > 1


def _dense(step: Step) -> list[Entry]:
    layer: Any = step.layer
    return [("Dense", {"units": int(layer.units), "use_bias": bool(layer.bias)})]


def _conv(step: Step) -> list[Entry]:
    layer: Any = step.layer
    before, options = _sliding(layer.plan.window)
    options = {"dilation_rate": list(layer.plan.window.dilation), "use_bias": bool(layer.bias), **options}
    if _is_depthwise(layer):
        return [*before, ("DepthwiseConv2D", {"depth_multiplier": int(layer.filters) // layer.in_shape[-1], **options})]
    return [*before, ("Conv2D", {"filters": int(layer.filters), "groups": int(layer.groups), **options})]


def _of_sequence(write: Callable[[Step], list[Entry]], step: Step) -> list[Entry]:
    """As of the images of one row that a layer of sequences works on."""
    row = Step(step.path, step.layer.inner, step.reads, step.makes)
    return [
        (kind.replace("2D", "1D"), {option: _last(value) for option, value in options.items()}) for kind, options in write(row)
    ]


def _last(value: Any) -> Any:
    return value[-1] if isinstance(value, list) else value


def _sliding(window: Window, size: str = "kernel_size") -> tuple[list[Entry], dict[str, Any]]:
    """The zeros that Keras pads in a layer of their own, if any, and the options of the window."""
    options = {size: list(window.kernel), "strides": list(window.stride)}
    if not window.is_padded:
        return [], {**options, "padding": "valid"}
    if _is_same(window):
        return [], {**options, "padding": "same"}
    return [("ZeroPadding2D", {"padding": [list(pads) for pads in window.padding]})], {**options, "padding": "valid"}


def _is_same(window: Window) -> bool:
    return window.padding == Window.of(window.in_shape, window.kernel, window.stride, "same", window.dilation).padding


def _max_pool(step: Step) -> list[Entry]:
    return _pool(step, "MaxPooling2D", counts=False)


def _average_pool(step: Step) -> list[Entry]:
    layer: Any = step.layer
    return _pool(step, "AveragePooling2D", counts=bool(layer.count_padding))


def _pool(step: Step, kind: str, counts: bool) -> list[Entry]:
    """counts: whether padding counts as zeros, which Keras pads in a layer of their own; else it is only "same"."""
    layer: Any = step.layer
    window = layer.plan.window
    before, options = _sliding(window, "pool_size")
    if counts and options["padding"] == "same":
        before, options["padding"] = [("ZeroPadding2D", {"padding": [list(pads) for pads in window.padding]})], "valid"
    beyond = counts and window.beyond != (0, 0)
    if window.dilation != (1, 1) or beyond or (before and not counts):
        raise StateError(f"layer {step.path} {shortened(layer)} pools as Keras cannot: its padding is none or 'same'")
    return [*before, (kind, options)]


def _batch_norm(step: Step) -> list[Entry]:
    layer: Any = step.layer
    return [("BatchNormalization", {"momentum": float(layer.momentum), **_norm(layer)})]


def _layer_norm(step: Step) -> list[Entry]:
    return [("LayerNormalization", _norm(step.layer))]


def _group_norm(step: Step) -> list[Entry]:
    layer: Any = step.layer
    return [("GroupNormalization", {"groups": int(layer.groups), **_norm(layer)})]


def _norm(layer: Any) -> dict[str, Any]:
    return {"axis": -1, "epsilon": float(layer.eps), "scale": bool(layer.scale), "center": bool(layer.shift)}


def _normalize(step: Step) -> list[Entry]:
    layer: Any = step.layer
    mean, std = (np.asarray(v, float) for v in layer.constants)
    return [("Rescaling", {"scale": (1 / std).tolist(), "offset": (-mean / std).tolist()})]


def _prelu(step: Step) -> list[Entry]:
    layer: Any = step.layer
    axes = list(range(1, len(layer.in_shape) + 1))
    return [("PReLU", {"shared_axes": axes if layer.shared else axes[:-1]})]


def _gelu(step: Step) -> list[Entry]:
    layer: Any = step.layer
    if layer.approximate != "none":
        raise StateError(f"layer {step.path} {shortened(layer)}: in a file of Keras GELU is exact")
    return [("Activation", {"activation": "gelu"})]


def _embedding(step: Step) -> list[Entry]:
    layer: Any = step.layer
    return [("Embedding", {"input_dim": int(layer.n), "output_dim": int(layer.dim)})]


def _always(kind: str, **options: Any) -> Callable[[Step], list[Entry]]:
    return lambda step: [(kind, options)]


def _with(kind: str, **names: str) -> Callable[[Step], list[Entry]]:
    """names: options by the layer's own attributes."""
    return lambda step: [(kind, {option: float(getattr(step.layer, own)) for option, own in names.items()})]


def _upsample(step: Step) -> list[Entry]:
    layer: Any = step.layer
    return [("UpSampling2D", {"size": list(both(layer.factor)), "interpolation": layer.mode})]


def _reshape(step: Step) -> list[Entry]:
    return [("Reshape", {"target_shape": list(step.layer.out_shape)})]


WRITERS: dict[type[Layer], Callable[[Step], list[Entry]]] = {
    layers.AvgPool1D: partial(_of_sequence, _average_pool),
    layers.AvgPool2D: _average_pool,
    layers.BatchNorm: _batch_norm,
    layers.Conv1D: partial(_of_sequence, _conv),
    layers.Conv2D: _conv,
    layers.Dense: _dense,
    layers.DepthwiseConv2D: _conv,
    layers.Dropout: _with("Dropout", rate="rate"),
    layers.ELU: _with("ELU", alpha="alpha"),
    layers.Embedding: _embedding,
    layers.Flatten: _always("Flatten"),
    layers.GELU: _gelu,
    layers.GlobalAvgPool2D: _always("GlobalAveragePooling2D"),
    layers.GlobalMaxPool1D: _always("GlobalMaxPooling1D"),
    layers.GlobalMaxPool2D: _always("GlobalMaxPooling2D"),
    layers.GroupNorm: _group_norm,
    layers.LayerNorm: _layer_norm,
    layers.LeakyReLU: _with("LeakyReLU", negative_slope="slope"),
    layers.MaxPool1D: partial(_of_sequence, _max_pool),
    layers.MaxPool2D: _max_pool,
    layers.Normalize: _normalize,
    layers.PReLU: _prelu,
    layers.ReLU: _always("ReLU"),
    layers.Reshape: _reshape,
    layers.SiLU: _always("Activation", activation="silu"),
    layers.Sigmoid: _always("Activation", activation="sigmoid"),
    layers.Softmax: _always("Softmax"),
    layers.Softplus: _always("Activation", activation="softplus"),
    layers.SpatialDropout2D: _with("SpatialDropout2D", rate="rate"),
    layers.Tanh: _always("Activation", activation="tanh"),
    layers.Upsample2D: _upsample,
    Joined: _always("Concatenate"),
    Sum: _always("Add"),
}
