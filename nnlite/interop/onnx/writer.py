"""Models as ONNX files.

Operators are those of opset 20. Images are (N, C, H, W) inside; at the border they are nnlite's (N, H, W, C), by one Transpose.
"""

from os import PathLike
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from nnlite import layers
from nnlite.arguments import choice, shortened
from nnlite.atomic import write_whole
from nnlite.backend import Pair, Window
from nnlite.engine.plan import flatten
from nnlite.engine.steps import Step
from nnlite.errors import StateError
from nnlite.layers.base import Elementwise, Layer, Shape
from nnlite.layers.branches import Joined, Sum
from nnlite.layers.sequence import OfSequences
from nnlite.model import Sequential, needs_model

OPSET, IR_VERSION = 20, 10  # onnx's own defaults are newer than what many runtimes read
OF_CHANNELS = (layers.Normalize, layers.PReLU)  # Elementwise ones that have a constant for each
TURN = [0, 2, 1]  # (N, T, C) to (N, C, T), and back
TO_IMAGES, FROM_IMAGES = [0, 3, 1, 2], [0, 2, 3, 1]  # (N, H, W, C) to (N, C, H, W), and back


def export(model: Sequential, path: str | PathLike[str], *, layout: str = "NHWC") -> None:
    """Write the model, as it infers, to a file.

    The graph has one input "x" and one output "z", of any number of samples, in the model's dtype; ids are int64.
    layout: of images at the border: "NHWC", as in nnlite, or "NCHW".
    Raises ValueError for another layout, StateError for a layer of your own, FileError where the file cannot be written.
    """
    choice("layout", layout, "NHWC", "NCHW")
    write_whole(path, to_onnx(model, layout).SerializeToString())


def to_onnx(model: Sequential, layout: str = "NHWC") -> Any:
    """The model as an `onnx.ModelProto`, checked."""
    needs_model(model)
    graph = _Graph(model)
    graph.run(layout)
    made = helper.make_model(
        helper.make_graph(graph.nodes, "nnlite", [graph.input], [graph.output], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="nnlite",
    )
    checker.check_model(made, full_check=True)
    return made


class _Graph:
    """Nodes and constants, step by step. names: of the values, by number; kept_order: those flattened as (C, H, W)."""

    def __init__(self, model: Sequential) -> None:
        self.model, self.dtype = model, np.dtype(model.dtype)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[int, str] = {}
        self.kept_order: dict[int, Shape] = {}
        self.steps = flatten(model.children())

    def run(self, layout: str) -> None:
        """Make the whole graph."""
        shape, out_shape = self.model.in_shape, self.model.out_shape
        takes_ids = self.model.plan.takes_integers
        self.input, self.names[0] = self._border("x", shape, "NHWC" if takes_ids else layout, takes_ids), "x"
        if len(shape) == 3 and layout == "NHWC" and not takes_ids:
            self.names[0] = self.add("Transpose", "x", perm=TO_IMAGES)
        for step in self.steps:
            self._step(step)
        name = self.names[self.steps[-1].makes]
        if len(out_shape) == 3 and layout == "NHWC":
            self.add("Transpose", name, output="z", perm=FROM_IMAGES)
        else:
            self.add("Identity", name, output="z")
        self.output = self._border("z", out_shape, layout)

    def _border(self, name: str, shape: Shape, layout: str, is_ids: bool = False) -> Any:
        shape = (shape[2], *shape[:2]) if len(shape) == 3 and layout == "NCHW" else shape
        kind = TensorProto.DOUBLE if self.dtype == np.float64 else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, TensorProto.INT64 if is_ids else kind, ["N", *shape])

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node; returns the name of its output."""
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """A named array."""
        array = np.ascontiguousarray(self.model.backend.to_host(self.model.backend.asarray(value)), dtype or self.dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _step(self, step: Step) -> None:
        layer, inputs = step.layer, [self.names[v] for v in step.reads]
        write = WRITERS.get(type(layer))
        if write is None:
            raise StateError(f"layer {step.path} {shortened(layer)} has no ONNX operator: your own layers have none")
        if isinstance(layer, Elementwise) and step.reads[0] in self.kept_order:
            self.kept_order[step.makes] = self.kept_order[step.reads[0]]
        self.names[step.makes] = write(self, step, layer, *inputs)

    def goes_to_dense(self, v: int) -> bool:
        """Whether only Dense layers read a value, through functions of each value by itself."""
        readers = [step for step in self.steps if v in step.reads]
        through = [isinstance(s.layer, Elementwise) and type(s.layer) not in OF_CHANNELS for s in readers]
        return bool(readers) and all(
            type(s.layer) is layers.Dense or (t and self.goes_to_dense(s.makes)) for s, t in zip(readers, through, strict=True)
        )


def _dense(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    W, order = graph.model.backend.to_host(layer.W), graph.kept_order.get(step.reads[0])
    if order is not None:
        W = W.reshape(-1, *order).transpose(0, 3, 1, 2).reshape(len(W), -1)
    bias = [graph.constant(f"{step.path}.b", layer.b)] if layer.bias else []
    return graph.add("Gemm", a, graph.constant(f"{step.path}.W", W), *bias, transB=1)


def _window_of(layer: Any) -> Window:
    window: Window = (layer.inner if isinstance(layer, OfSequences) else layer).plan.window
    return window


def _window(layer: Any, beyond: Pair = (0, 0)) -> dict[str, Any]:
    """The attributes of a window, without the padding `beyond`; those of sequences have one axis."""
    window = _window_of(layer)
    (top, bottom), (left, right) = window.padding
    pads = [top, left, bottom - beyond[0], right - beyond[1]]
    both = {"kernel_shape": window.kernel, "strides": window.stride, "dilations": window.dilation, "pads": pads}
    return {name: values[1::2] for name, values in both.items()} if isinstance(layer, OfSequences) else both


def _turned(write: Any) -> Any:
    """A writer of what has the channels first: images have, sequences (N, T, C) are transposed."""

    def turned(graph: _Graph, step: Step, layer: Any, a: str) -> str:
        if len(layer.in_shape) != 2:
            return str(write(graph, step, layer, a))
        y = write(graph, step, layer, graph.add("Transpose", a, perm=TURN))
        return graph.add("Transpose", y, perm=TURN)

    return turned


@_turned
def _conv(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    W = graph.constant(f"{step.path}.W", np.moveaxis(graph.model.backend.to_host(layer.W), -1, 1))
    bias = [graph.constant(f"{step.path}.b", layer.b)] if layer.bias else []
    return graph.add("Conv", a, W, *bias, **_window(layer), group=int(layer.groups))


@_turned
def _max_pool(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    return graph.add("MaxPool", a, **_window(layer))


@_turned
def _average_pool(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    window, counts = _window_of(layer), int(layer.count_padding)
    if not (counts and any(window.beyond)):
        return graph.add("AveragePool", a, **_window(layer), count_include_pad=counts)
    if _rounded_up(window) != window.out_size:
        raise StateError(f"layer {step.path} {shortened(layer)} has no ONNX operator: it rounds up along one axis only")
    # What rounding up adds is not counted.
    return graph.add("AveragePool", a, **_window(layer, window.beyond), ceil_mode=1, count_include_pad=1)


def _rounded_up(window: Window) -> tuple[int, ...]:
    """The size of the outputs as ONNX infers it."""
    axes = zip(window.padded_size, window.beyond, window.span, window.stride, strict=True)
    return tuple(-((span + more - size) // stride) + 1 for size, more, span, stride in axes)


def _global_pool(kind: str) -> Any:
    return lambda graph, step, layer, a: graph.add("Flatten", graph.add(kind, a))


def _largest(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    return graph.add("Flatten", graph.add("GlobalMaxPool", graph.add("Transpose", a, perm=TURN)))


def _embedding(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    y = graph.add("Gather", graph.constant(f"{step.path}.W", layer.W), a)
    return graph.add("Transpose", y, perm=TO_IMAGES) if len(layer.out_shape) == 3 else y


@_turned
def _batch_norm(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    channels = layer.in_shape[-1]
    values = {
        "gamma": layer.gamma if layer.scale else np.ones(channels),
        "beta": layer.beta if layer.shift else np.zeros(channels),
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
    }
    names = [graph.constant(f"{step.path}.{name}", value) for name, value in values.items()]
    return graph.add("BatchNormalization", a, *names, epsilon=float(layer.eps))


def _layer_norm(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    is_image, channels = len(layer.in_shape) == 3, layer.in_shape[-1]
    a = graph.add("Transpose", a, perm=FROM_IMAGES) if is_image else a
    gamma = graph.constant(f"{step.path}.gamma", layer.gamma if layer.scale else np.ones(channels))
    beta = graph.constant(f"{step.path}.beta", layer.beta if layer.shift else np.zeros(channels))
    y = graph.add("LayerNormalization", a, gamma, beta, axis=-1, epsilon=float(layer.eps))
    return graph.add("Transpose", y, perm=TO_IMAGES) if is_image else y


@_turned
def _group_norm(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    """Instance normalisation with groups as channels: the operator of this name has, in opset 20, one scale for each group."""
    groups, channels, size = int(layer.groups), layer.in_shape[-1], layer.in_shape[:-1]
    one, zero = (graph.constant(f"{step.path}.{name}", np.full(groups, v)) for name, v in (("one", 1), ("zero", 0)))
    shapes = {"groups": [0, groups, -1], "channels": [0, channels, *size]}
    by_group, back = (graph.constant(f"{step.path}.{name}", shape, np.int64) for name, shape in shapes.items())
    x = graph.add("InstanceNormalization", graph.add("Reshape", a, by_group), one, zero, epsilon=float(layer.eps))
    y = graph.add("Reshape", x, back)
    for kind, name in (("Mul", "gamma"), ("Add", "beta")):
        if name in layer.declared:
            y = graph.add(kind, y, graph.constant(f"{step.path}.{name}", getattr(layer, name).reshape(-1, *[1] * len(size))))
    return y


def _prelu(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    slopes = layer.slopes.reshape(-1, 1, 1) if len(layer.in_shape) == 3 else layer.slopes
    return graph.add("PRelu", a, graph.constant(f"{step.path}.slopes", slopes))


def _normalize(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    mean, std = (np.broadcast_to(np.asarray(v, float), layer.in_shape[-1:]) for v in layer.constants)
    shape = (-1, 1, 1) if len(layer.in_shape) == 3 else (-1,)
    centred = graph.add("Sub", a, graph.constant(f"{step.path}.mean", mean.reshape(shape)))
    return graph.add("Div", centred, graph.constant(f"{step.path}.std", std.reshape(shape)))


def _activation(kind: str, **names: str) -> Any:
    """names: attributes of the node by the layer's own."""
    return lambda graph, step, layer, a: graph.add(kind, a, **{its: _plain(getattr(layer, own)) for its, own in names.items()})


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def _silu(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    return graph.add("Mul", a, graph.add("Sigmoid", a))


def _softmax(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    return graph.add("Softmax", a, axis=1 if len(layer.in_shape) == 3 else -1)


def _dropout(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    return a


def _reshape(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    shape, target = layer.in_shape, layer.out_shape
    if len(shape) == 3:
        if len(target) == 1 and graph.goes_to_dense(step.makes):
            graph.kept_order[step.makes] = shape
        else:
            a = graph.add("Transpose", a, perm=FROM_IMAGES)
    sizes = graph.constant(f"{step.path}.shape", [0, *target], np.int64)
    y = graph.add("Reshape", a, sizes)
    return graph.add("Transpose", y, perm=TO_IMAGES) if len(target) == 3 else y


def _sum(graph: _Graph, step: Step, layer: Any, a: str, b: str) -> str:
    return graph.add("Add", a, b)


def _joined(graph: _Graph, step: Step, layer: Any, *inputs: str) -> str:
    return graph.add("Concat", *inputs, axis=1 if len(layer.out_shape) == 3 else -1)


def _upsample(graph: _Graph, step: Step, layer: Any, a: str) -> str:
    (height, width, _), (new_height, new_width, _) = layer.in_shape, layer.out_shape
    scales = graph.constant(f"{step.path}.scales", [1, 1, new_height / height, new_width / width], np.float32)
    if layer.mode == "bilinear":
        return graph.add("Resize", a, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    return graph.add("Resize", a, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


WRITERS: dict[type[Layer], Any] = {
    layers.Dense: _dense,
    layers.Embedding: _embedding,
    layers.Conv2D: _conv,
    layers.DepthwiseConv2D: _conv,
    layers.Conv1D: _conv,
    layers.MaxPool2D: _max_pool,
    layers.MaxPool1D: _max_pool,
    layers.AvgPool2D: _average_pool,
    layers.AvgPool1D: _average_pool,
    layers.GlobalAvgPool2D: _global_pool("GlobalAveragePool"),
    layers.GlobalMaxPool1D: _largest,
    layers.GlobalMaxPool2D: _global_pool("GlobalMaxPool"),
    layers.BatchNorm: _batch_norm,
    layers.LayerNorm: _layer_norm,
    layers.GroupNorm: _group_norm,
    layers.Normalize: _normalize,
    layers.ReLU: _activation("Relu"),
    layers.LeakyReLU: _activation("LeakyRelu", alpha="slope"),
    layers.PReLU: _prelu,
    layers.Sigmoid: _activation("Sigmoid"),
    layers.Tanh: _activation("Tanh"),
    layers.GELU: _activation("Gelu", approximate="approximate"),
    layers.ELU: _activation("Elu", alpha="alpha"),
    layers.Softplus: _activation("Softplus"),
    layers.SiLU: _silu,
    layers.Softmax: _softmax,
    layers.Dropout: _dropout,
    layers.SpatialDropout2D: _dropout,
    layers.Flatten: _reshape,
    layers.Reshape: _reshape,
    layers.Upsample2D: _upsample,
    Joined: _joined,
    Sum: _sum,
}
