"""An architecture of Keras as nnlite's layers: a Sequential model, or a functional one whose branches nest."""

from collections import Counter
from typing import Any, NamedTuple

from nnlite import layers
from nnlite.arguments import listing, shortened
from nnlite.errors import FileError, NNLiteError
from nnlite.interop.graph import Join, Node, add, nest
from nnlite.interop.keras.files import Contents, Named, Place
from nnlite.interop.keras.layers import READERS, Config, Unsupported, group_name, read_layer
from nnlite.layers.base import Layer, Shape
from nnlite.model import Sequential

Padding = tuple[tuple[int, int], ...]  # along each axis
PADDINGS = ("ZeroPadding1D", "ZeroPadding2D")
MODELS = ("Sequential", "Functional", "Model")
OWNERS = ("keras", "tf_keras", "tensorflow")
CONVOLUTIONS = layers.Conv1D | layers.Conv2D
AVERAGES, MAXIMA = layers.AvgPool1D | layers.AvgPool2D, layers.MaxPool1D | layers.MaxPool2D
NOT_NEGATIVE = layers.ReLU | layers.Sigmoid | layers.Softplus | layers.Softmax
SAME_SIGN = AVERAGES | MAXIMA | layers.Dropout | layers.Reshape


def concatenate(branches: list[list[Layer]]) -> list[Layer]:
    """The join of a concatenation along the channels."""
    return [layers.Concat(*branches)]


JOINS: dict[str, Join] = {"Add": add, "Concatenate": concatenate}
KNOWN = {*MODELS, *JOINS, *READERS, *PADDINGS}


class Leaf(NamedTuple):
    """A layer of Keras: its layers here, its arrays, and whether it is frozen."""

    name: str
    layers: list[Layer]
    arrays: list[Named]
    frozen: bool


class Value(NamedTuple):
    """What a layer of Keras gives: the node that makes it, its shape, zeros around it, and whether no value is negative."""

    node: str
    shape: Shape
    zeros: Padding | None = None
    not_negative: bool = False


class Architecture:
    """layers: one after another.  in_shape: of a sample.  leaves: every layer of Keras that is a layer here.

    in_shape: where the file says none. Raises FileError for what nnlite has no layer for, listing all of it.
    """

    def __init__(self, contents: Contents, in_shape: Shape | None) -> None:
        self.leaves: list[Leaf] = []
        self._contents, self._faults = contents, list[str]()
        self.in_shape = _in_shape(contents.config) if in_shape is None else in_shape
        self.layers, _ = self._model(contents.config, (), self.in_shape)
        if self._faults:
            raise FileError(f"nnlite cannot build {listing(dict.fromkeys(self._faults), most=20, longest=100)}")

    def _model(self, entry: Config, place: Place, in_shape: Shape) -> tuple[list[Layer], Shape]:
        """The layers of a model, and the shape of its output."""
        entries, counts = _entries(entry), Counter[str]()
        values: dict[str, Value] = {}
        nodes: list[Node] = []
        sequential, last = entry["class_name"] == "Sequential", ""
        for e in entries:
            name, group = _name(e), group_name(e["class_name"], counts)
            if e["class_name"] == "InputLayer":
                values[name] = Value("", in_shape)
            else:
                before = [last] if sequential else _reads(e)
                values.setdefault("", Value("", in_shape))
                read = [values[v] for v in before if v in values]
                if read and len(read) == len(before):
                    made = self._layer(e, (*place, (group, name)), read, nodes)
                    values |= {name: made} if made else {}
                elif e["class_name"] not in KNOWN:
                    self._faults.append(_class(e))
            last = name
        end = last if sequential else _only_end(entry["config"])
        if self._faults:
            return [], in_shape
        if values[end].zeros:
            raise FileError("a model that ends with padded zeros")
        return nest(nodes, "", values[end].node), values[end].shape

    def _layer(self, entry: Config, place: Place, read: list[Value], nodes: list[Node]) -> Value | None:
        """The value that a layer makes, its nodes added; None if there is no such layer in nnlite."""
        kind, config, name = entry["class_name"], entry["config"], place[-1][1]
        try:
            if kind not in KNOWN or not _is_keras(entry):
                self._faults.append(_class(entry))
                return None
            if kind in JOINS:
                return self._join(kind, config, name, read, nodes)
            if len(read) > 1:
                raise Unsupported("several inputs")
            if kind in MODELS:
                chain, _ = self._model(entry, place, read[0].shape)
                return self._chain(name, [Sequential(*chain)] if chain else [], read[0], nodes)
            if kind in PADDINGS:
                return _zeros(config, read[0])
            arrays = self._contents.of(place)
            made = read_layer(kind, config, read[0].shape, [array for _, array in arrays])
            self.leaves.append(Leaf(name, made, arrays, config.get("trainable") is False))
            return self._chain(name, made, read[0], nodes)
        except (Unsupported, NNLiteError, KeyError, TypeError) as error:
            self._faults.append(f"{_class(entry)} {shortened(name)} ({error})")
            return None

    def _chain(self, name: str, made: list[Layer], read: Value, nodes: list[Node]) -> Value:
        """Layers one after another, as nodes."""
        node, shape, positive = read.node, read.shape, read.not_negative
        for i, layer in enumerate(made):
            if read.zeros and i == 0:
                _pad(layer, read)
                shape = _padded(shape, read.zeros, -1)
            shape = layer.declare_shapes(shape)
            nodes.append(Node(f"{name}/{i}", (node,), layer))
            node, positive = f"{name}/{i}", isinstance(layer, NOT_NEGATIVE) or (positive and isinstance(layer, SAME_SIGN))
        return Value(node, shape, None if made else read.zeros, positive)

    def _join(self, kind: str, config: Config, name: str, read: list[Value], nodes: list[Node]) -> Value:
        if any(value.zeros for value in read):
            raise Unsupported("padded zeros before it")
        shape, axis = read[0].shape, config.get("axis", -1)
        if kind == "Concatenate":
            if axis not in (-1, len(shape)):
                raise Unsupported(f"axis {axis}")
            shape = (*shape[:-1], sum(value.shape[-1] for value in read))
        nodes.append(Node(name, tuple(value.node for value in read), JOINS[kind]))
        return Value(name, shape, None, all(value.not_negative for value in read))


def _entries(entry: Config) -> list[Config]:
    config = entry["config"]
    return list(config["layers"] if isinstance(config, dict) else config)  # a list in files of Keras before 2.2.3


def _name(entry: Config) -> str:
    return str(entry["config"].get("name", entry.get("name", "")))


def _class(entry: Config) -> str:
    """The name of a layer's class for a message."""
    kind = entry["class_name"]
    return kind if isinstance(kind, str) and kind.isidentifier() else shortened(kind)


def _is_keras(entry: Config) -> bool:
    """Whether a layer is of Keras's own class, not somebody's of the same name."""
    own = entry.get("registered_name") in (None, entry["class_name"])
    return own and str(entry.get("module") or "keras").partition(".")[0] in OWNERS


def _in_shape(entry: Config) -> Shape:
    """The shape of the one input."""
    entries = _entries(entry)
    inputs = [e for e in entries if e["class_name"] == "InputLayer"]
    if len(inputs) > 1:
        raise FileError(f"a model of {len(inputs)} inputs: nnlite's have one")
    if not inputs and entries and entries[0]["class_name"] in MODELS:
        return _in_shape(entries[0])
    told = (inputs or entries)[0]["config"]
    shape = told.get("batch_shape") or told.get("batch_input_shape") or (entry["config"] or {}).get("build_input_shape")
    if not shape or not all(isinstance(n, int) for n in shape[1:]):
        raise FileError(f"the architecture does not say the size of its input, {shortened(shape)}: give input_shape=")
    return tuple(shape[1:])


def _reads(entry: Config) -> list[str]:
    """The names of the layers whose outputs a layer of a functional model reads."""
    calls = entry.get("inbound_nodes") or []
    if len(calls) != 1:
        raise FileError(f"layer {shortened(_name(entry))} is called {len(calls)} times: nnlite's layers have one place")
    call = calls[0]
    return _histories(call["args"]) if isinstance(call, dict) else [str(link[0]) for link in call]


def _histories(arguments: Any) -> list[str]:
    if isinstance(arguments, dict) and "keras_history" in arguments.get("config", {}):
        return [str(arguments["config"]["keras_history"][0])]
    return [name for a in arguments for name in _histories(a)] if isinstance(arguments, list) else []


def _only_end(config: Config) -> str:
    ends = config["output_layers"]
    ends = ends if isinstance(ends[0], list) else [ends]
    if len(ends) > 1:
        raise FileError(f"a model of {len(ends)} outputs: nnlite's have one")
    return str(ends[0][0])


def _zeros(config: Config, read: Value) -> Value:
    """Zeros around an image or a sequence, which the layer after it pads."""
    given, axes = config.get("padding", 1), len(read.shape) - 1
    sides = [given] if isinstance(given, int) or axes == 1 else given
    zeros = tuple((p, p) if isinstance(p, int) else tuple(p) for p in (sides * axes)[:axes])
    if read.zeros or config.get("data_format") == "channels_first":
        raise Unsupported("channels first, or after another one")
    return read._replace(shape=_padded(read.shape, zeros), zeros=zeros)


def _padded(shape: Shape, zeros: Padding, sign: int = 1) -> Shape:
    return *(n + sign * sum(sides) for n, sides in zip(shape, zeros, strict=False)), shape[-1]


def _pad(layer: Any, read: Value) -> None:
    """Make a layer pad the zeros around what it reads."""
    fits = isinstance(layer, CONVOLUTIONS) or (isinstance(layer, MAXIMA) and read.not_negative)
    if isinstance(layer, AVERAGES) and not layer.padding:
        layer.count_padding = fits = True
    if not fits or read.zeros is None:
        raise Unsupported("padded zeros before it")
    layer.declare_shapes(read.shape)
    one = len(read.zeros) == 1
    own = (layer.inner if one else layer).plan.window.padding
    both = [(before + a, after + b) for (before, after), (a, b) in zip(own[-len(read.zeros) :], read.zeros, strict=True)]
    layer.padding = both[0] if one else tuple(both)


def without_probabilities(chain: list[Layer]) -> list[Layer]:
    """The layers without a last Softmax or Sigmoid."""
    *rest, last = chain
    if isinstance(last, Sequential):
        inside = without_probabilities(last.layers)
        return [*rest, Sequential(*inside)] if inside else rest
    return rest if isinstance(last, layers.Softmax | layers.Sigmoid) else chain
