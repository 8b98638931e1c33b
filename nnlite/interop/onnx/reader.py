"""ONNX files as models."""

import math
from collections import Counter
from collections.abc import Mapping
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from nnlite.arguments import choice, flag, sample_shape, shortened
from nnlite.atomic import shown
from nnlite.errors import FileError, ShapeError
from nnlite.interop.graph import nest
from nnlite.interop.onnx.axes import Axes, flat, lengths
from nnlite.interop.onnx.files import Initializers, opset, parsed
from nnlite.interop.onnx.folding import CONSTANT, LARGEST, fold
from nnlite.interop.onnx.functions import FUNCTIONS
from nnlite.interop.onnx.norms import NORMS
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.operators import OPERATORS
from nnlite.interop.onnx.reading import START, UNKNOWN, Reading, Value
from nnlite.interop.onnx.shapes import SHAPES
from nnlite.layers import Dropout, Embedding, Reshape, Sigmoid, Softmax
from nnlite.layers.base import Layer, Shape
from nnlite.model import Sequential

TO_IMAGES = [0, 3, 1, 2]  # (N, H, W, C) to (N, C, H, W)
GUESS = 224  # pixels, where the file leaves their number open
READERS = SHAPES | OPERATORS | NORMS | FUNCTIONS
_OF_SAME_SHAPE = {  # not read, but what comes behind them is examined, too
    "LRN", "HardSigmoid", "HardSwish", "Selu", "Celu", "Mish", "Softsign", "ThresholdedRelu",
    "MeanVarianceNormalization", "LpNormalization", "Sin", "Cos", "Sign", "Round", "Floor", "Ceil",
}  # fmt: skip
_DAMAGE = (
    ShapeError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    ArithmeticError,
    AssertionError,
)


def load(
    path: str | PathLike[str],
    *,
    logits: bool = False,
    layout: str | None = None,
    input_shape: Shape | None = None,
    inputs: Mapping[str, Any] | None = None,
    output: str | None = None,
) -> Sequential:
    """The model of an ONNX file, opset 7 or later, to run and to train: images (N, C, H, W) there are (N, H, W, C) here.

    logits: whether a last Softmax, LogSoftmax or Sigmoid is left out, as the losses want it.
    layout: "NCHW" or "NHWC", what the inputs are in the file; default: recognised by what reads them.
    input_shape: of one sample of the model; default: as the file says, which may leave it open.
    inputs: values of the graph's inputs but the samples, by name: weights, where the file does not have them.
    output: the name of a value in the file that the model gives; default: the file's one output.
    Raises FileError for nodes that nnlite has no layers for, all of them listed, for branches that cannot be nested, and for a
    file that is damaged or has data outside its folder; FileNotFoundError if there is no such file.
    """
    model = parsed(path)
    try:
        return from_onnx(
            model,
            logits=logits,
            layout=layout,
            input_shape=input_shape,
            inputs=inputs,
            output=output,
            folder=Path(path).resolve().parent,
        )
    except FileError as error:
        raise FileError(f"{shown(path)}: {error}") from error


def from_onnx(
    model: ModelProto,
    *,
    logits: bool = False,
    layout: str | None = None,
    input_shape: Shape | None = None,
    inputs: Mapping[str, Any] | None = None,
    output: str | None = None,
    folder: Path | None = None,
) -> Sequential:
    """The model of an `onnx.ModelProto`, as `load` makes it.   folder: where its external data is"""
    flag("logits", logits), choice("layout", layout, "NCHW", "NHWC", None)
    wanted = None if input_shape is None else sample_shape("input_shape", input_shape)
    try:
        return _Graph(model, inputs or {}, output, folder).model(logits, layout, wanted)
    except FileError:
        raise
    except Exception as error:  # an untrusted graph can make layers raise anything
        raise FileError(f"it does not describe a model: {shortened(error)}") from error


class _Graph:
    """A graph: its constants, its one input and its one output."""

    def __init__(self, model: ModelProto, inputs: Mapping[str, Any], output: str | None, folder: Path | None) -> None:
        self.opset, graph = opset(model), model.graph
        self.nodes = [Operation(node, self.opset) for node in graph.node]
        initializers = Initializers(graph.initializer, folder)
        given = {name: np.asarray(value) for name, value in inputs.items()}
        open_inputs = [entry for entry in graph.input if entry.name not in initializers and entry.name not in given]
        minor = {name for node in self.nodes for name in node.outputs[1:]}  # masks, indices, statistics
        outputs = [entry.name for entry in graph.output if entry.name not in minor] if output is None else [output]
        if len(open_inputs) != 1 or len(outputs) != 1:
            raise FileError(
                f"it has the inputs {shortened([entry.name for entry in open_inputs])} and the outputs {shortened(outputs)}: a "
                "model has one of each; inputs={name: values} gives values to the others, output= chooses"
            )
        self.input, self.output = open_inputs[0], outputs[0]
        self.constants: dict[str, Any] = {name: initializers[name] for name in initializers} | given
        self.readers = Counter(name for node in self.nodes for name in node.inputs) + Counter([self.output])

    def model(self, logits: bool, layout: str | None, wanted: Shape | None) -> Sequential:
        """The model, for the order of the axes that can be read."""
        attempts = list[tuple[int, dict[str, str]]]()
        for order in _orders(self._rank(wanted), layout or self._border()):
            reading = Reading(self.readers, self._batch())
            shape = self._shape(order, wanted)
            axes = Axes.ordered(shape, order) if shape else Axes([], [()])
            reading.values = {"": None, **self.constants, self.input.name: Value(START, axes)}
            found = self._read(reading, logits)
            if not found and shape != self._shape(order, wanted, 0):
                open_shape = f"its input {shortened(self.input.name)} has the shape {self._dims()[1:]}"
                raise FileError(f"{open_shape}: give input_shape=, that of a sample here")
            if not found:
                try:
                    return self._assembled(reading, logits, axes)
                except Unsupported as why:
                    found = _named(why, None)
            attempts.append((sum(v is UNKNOWN for v in reading.values.values()), found))
        _, faults = min(attempts, key=itemgetter(0))
        raise FileError(f"{len(faults)} of {len(self.nodes)} nodes cannot be read: " + "; ".join(_grouped(faults)))

    def _read(self, reading: Reading, logits: bool) -> dict[str, str]:
        """Read all nodes; those that cannot be read, with the reasons. What has the shape of its input is passed by."""
        faults: dict[str, str] = {}
        for node in self.nodes:
            result: Any = None
            while result is None:
                try:
                    result = self._value(reading, node, logits)
                except Unsupported as why:
                    faults |= _named(why, node)
                    result = None if reading.settle(why.nodes) else reading.stand_in(node, FUNCTIONS.keys() | _OF_SAME_SHAPE)
                except _DAMAGE as error:
                    faults[_title(node)] = shortened(error)
                    result = UNKNOWN
            reading.values |= dict.fromkeys(node.outputs[1:], UNKNOWN) | dict.fromkeys(node.outputs[:1], result)
        return faults

    def _value(self, reading: Reading, node: Operation, logits: bool) -> Any:
        unknown = [name for name in node.inputs if name not in reading.values]
        if unknown:
            raise Unsupported(f"nothing before it makes {shortened(unknown[0])}")
        inputs = [reading.values[name] for name in node.inputs]
        if any(name and self.readers[name] for name in node.outputs[1:]):
            raise Unsupported("something reads its second output")
        if node.kind in CONSTANT and all(isinstance(v, np.ndarray) or v is None for v in inputs):
            return fold(node, inputs)
        if node.kind not in READERS:
            pending = [each for v in inputs for each in getattr(v, "pending", ())]
            if pending:
                raise Unsupported("no layer computes this function", tuple(pending))
            raise Unsupported("nnlite has no layer for it" + " unless its inputs are constants" * (node.kind in CONSTANT))
        if any(v is UNKNOWN for v in inputs):
            return UNKNOWN
        if logits and node.kind == "LogSoftmax" and node.outputs[0] == self.output:
            return reading.data(node)
        reading.current = node.outputs[0]
        result = READERS[node.kind](reading, node)
        return _alone(reading, node, result)

    def _assembled(self, reading: Reading, logits: bool, axes: Axes) -> Sequential:
        value = reading.values.get(self.output)
        if not isinstance(value, Value):
            raise FileError("its output does not depend on its input")
        value = _in_order(reading, value, channels_last=axes.here != axes.file)
        in_shape = lengths(axes.here)
        chain = nest(reading.nodes.values(), START, value.name)
        if logits:
            chain = _without_probabilities(chain)
        dtype = "float64" if self.input.type.tensor_type.elem_type == TensorProto.DOUBLE else "float32"
        model = Sequential(*(chain or [Reshape(in_shape)]), input_shape=in_shape, dtype=dtype)
        if not model.plan.takes_integers and any(isinstance(made.layer, Embedding) for made in reading.made.values()):
            raise FileError("its input is ids for one node and numbers for another")
        for made in reading.made.values():
            if made.layer is not None and made.layer.owner is model:
                for name, values in made.arrays.items():
                    setattr(made.layer, name, values)
                if "W" in made.arrays:
                    made.layer.init = "lecun_normal" if isinstance(made.layer, Embedding) else "he_normal"
        return model

    # ---- the input

    def _border(self) -> str | None:
        """ "NHWC" if the images are transposed before anything else reads them, as `export` does, or if ids are read."""
        readers = [node for node in self.nodes if self.input.name in node.inputs]
        turned = [node.kind == "Transpose" and node.attribute("perm") == TO_IMAGES for node in readers]
        as_ids = [node.kind == "Gather" for node in readers]
        return "NHWC" if readers and (all(turned) or all(as_ids)) else None

    def _dims(self) -> list[int]:
        """Its shape, 0 where the file leaves it open."""
        tensor = self.input.type.tensor_type
        if not tensor.HasField("shape"):
            return []
        return [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]

    def _batch(self) -> int | None:
        return next(iter(self._dims()), 0) or None

    def _rank(self, wanted: Shape | None) -> int:
        dims = self._dims()
        if not self.input.type.HasField("tensor_type") or (
            wanted is None and not self.input.type.tensor_type.HasField("shape")
        ):
            raise FileError(f"its input {shortened(self.input.name)} is no array of a known number of axes: give input_shape=")
        if wanted is not None and dims and len(wanted) != max(1, len(dims) - 1):
            raise FileError(f"its input {shortened(self.input.name)} has {len(dims)} axes, input_shape={wanted} {len(wanted)}")
        return len(dims) - 1 if dims else len(wanted or ())

    def _shape(self, order: tuple[int, ...], wanted: Shape | None, default: int = GUESS) -> Shape:
        """Of a sample in the file; the default where that is open, so that the nodes are examined all the same."""
        shape = [n or default for n in self._dims()[1:]]
        if wanted is not None:
            shape = [wanted[order.index(i)] for i in range(len(order))]
        if any(n < 0 for n in shape):
            raise FileError(f"its input {shortened(self.input.name)} has the shape {shape}")
        if math.prod(shape) > LARGEST:
            raise FileError(f"its samples have the shape {shape}, more than {LARGEST:,} values")
        return tuple(shape)


def _alone(reading: Reading, node: Operation, result: Any) -> Any:
    """A value that no node changes for others that read it, too."""
    again = [name for name in node.inputs if getattr(reading.values[name], "name", None) == getattr(result, "name", "")]
    if again and isinstance(result, Value):
        result = reading.same(result, result.axes)
        result.layer = result.layer if all(reading.readers[name] == 1 for name in again) else None
    return result


def _orders(rank: int, layout: str | None) -> list[tuple[int, ...]]:
    """Orders of the input's axes here, the likeliest first."""
    as_given, channels_last = tuple(range(rank)), (*range(1, rank), 0)
    if rank not in (2, 3):
        return [as_given]
    if layout is not None:
        return [channels_last if layout == "NCHW" else as_given]
    return [channels_last, as_given] if rank == 3 else [as_given, channels_last]


def _named(why: Unsupported, node: Operation | None) -> dict[str, str]:
    return {_title(each): str(why) for each in why.nodes or (node,)}


def _title(node: Operation | None) -> str:
    return f"{shortened(node.name)} ({node.kind[:80]})" if node else "the output"


def _grouped(faults: dict[str, str]) -> list[str]:
    """The nodes by the reason."""
    by_reason: dict[str, list[str]] = {}
    for node, why in faults.items():
        by_reason.setdefault(why, []).append(node)
    return [f"{', '.join(nodes)}: {why}" for why, nodes in by_reason.items()]


def _in_order(reading: Reading, value: Value, channels_last: bool) -> Value:
    """The output with whole axes of the file as its axes, in one of both orders, which the input has if possible."""
    if value.pending:
        raise Unsupported("no layer computes this function", value.pending)
    if value.pads:
        raise Unsupported("it is padded, which only a convolution or a pooling takes up")
    file = list(value.axes.file) or [()]
    turned = [*file[1:], file[0]]
    orders = [turned, file] if channels_last else [file, turned] if len(file) == 3 else [file]
    for axes in orders:
        if flat(axes) == flat(value.axes.here):
            return reading.stored(value, axes)
    return reading.stored(value, orders[0])


def _without_probabilities(chain: list[Layer]) -> list[Layer]:
    """The layers without a last Softmax or Sigmoid, behind which axes may be joined."""
    place = len(chain)
    while place and isinstance(chain[place - 1], Reshape | Dropout):
        place -= 1
    return chain[: place - 1] + chain[place:] if place and isinstance(chain[place - 1], Softmax | Sigmoid) else chain
