"""A graph as it is read: values with their axes, and the layers that make them."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from nnlite.arguments import shortened
from nnlite.backend import Array
from nnlite.interop.graph import Join, Node
from nnlite.interop.onnx.axes import Axes, Axis, flat, lengths, places
from nnlite.interop.onnx.folding import LARGEST
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.layers import Conv2D, Flatten, Reshape
from nnlite.layers.base import Layer

Function = Callable[[Array], Array]
Pads = list[tuple[int, int]]  # before and behind, by axis


MOST_IN_ORDER = 1 << 20  # values along an axis whose order is followed
MOST_SHUFFLED = 4096  # values that a matrix of weights puts in another order
START = ""  # the name of the input among nodes


class Value:
    """What a layer makes, or the input.   name: of its node in the nested graph.

    layer, arrays: what makes it, and its values by name, as long as they may be changed.
    of: the value and the function of each number by which it follows from that, if it does.
    pending: the nodes that have no layer yet; only a later node that is part of the same function may read it.
    along: the axis over which that function takes means, if it does.
    pads, fill: a border around the pixels that a later convolution or pooling adds; fill: its number.
    """

    def __init__(self, name: str, axes: Axes) -> None:
        self.name, self.axes = name, axes
        self.layer: Layer | None = None
        self.arrays: dict[str, Array] = {}
        self.of: tuple[Value, Function] | None = None
        self.pending: tuple[Operation, ...] = ()
        self.along: Axis = ()
        self.pads: Pads | None = None
        self.fill = 0.0


class Reading:
    """The nodes read so far.

    readers: how many read each name of the file.   batch: the number of samples that the file is for, None for any.
    """

    def __init__(self, readers: Counter[str], batch: int | None) -> None:
        self.readers, self.batch = readers, batch
        self.values: dict[str, Any] = {}  # a Value, an array, None for an input left out, or `UNKNOWN`
        self.nodes: dict[str, Node] = {}
        self.current = ""  # what the node that is read makes
        self.made: dict[str, Value] = {}
        self.joined: dict[tuple[int | str, ...], Value] = {}  # by the axis and the names of what is concatenated

    # ---- inputs of a node

    def data(self, node: Operation, place: int = 0, *, padded: bool = False, pending: bool = False) -> Value:
        """An input that depends on the samples."""
        value = self.values[node.inputs[place]]
        if not isinstance(value, Value):
            raise Unsupported(f"its input {shortened(node.inputs[place])} is a constant")
        if value.pending and not pending:
            raise Unsupported("no layer computes this function", value.pending)
        if value.pads and not padded:
            raise Unsupported("its input is padded, which only a convolution or a pooling takes up")
        return value

    def constant(self, node: Operation, place: int, default: Any = None) -> Any:
        """An input that does not; the default where it is left out."""
        value = self.values.get(node.inputs[place]) if place < len(node.inputs) else None
        if isinstance(value, Value):
            raise Unsupported(f"its input {shortened(node.inputs[place])} depends on the samples")
        return default if value is None else value

    def read_once(self, node: Operation, place: int) -> bool:
        """Whether nothing else reads an input."""
        return self.readers[node.inputs[place]] == 1

    # ---- what has no layer

    def settle(self, nodes: tuple[Operation, ...]) -> bool:
        """Let what these nodes leave pending pass as made, so that nodes behind them are examined; whether anything was."""
        names = [name for name, v in self.values.items() if isinstance(v, Value) and v.pending and set(v.pending) & set(nodes)]
        self.values |= {name: Value(self.values[name].name, self.values[name].axes) for name in names}
        return bool(names)

    def stand_in(self, node: Operation, kinds: Collection[str]) -> Any:
        """The largest input of a node that keeps the shape, in place of what it makes."""
        inputs = [v for v in map(self.values.get, node.inputs) if isinstance(v, Value)]
        if node.kind not in kinds or not inputs:
            return UNKNOWN
        largest = max(inputs, key=lambda value: math.prod(value.axes.shape))
        return Value(largest.name, largest.axes)

    # ---- layers

    def add(self, value: Value, layer: Layer, axes: Axes | None = None, **arrays: Any) -> Value:
        """The value that a layer makes of another one. axes: of the result; default: those of its input."""
        if "W" in arrays:
            layer.init = "zeros"  # drawing weights that are replaced takes half the time of loading
        layer.declare_shapes(lengths(value.axes.here))
        made = self.join([value], layer, axes or value.axes)
        for name, given in arrays.items():
            if given.shape != layer.declared[name].shape:
                raise Unsupported(f"{name} has the shape {given.shape}, not {tuple(layer.declared[name].shape)}")
        made.layer, made.arrays = layer, arrays
        self.made[made.name] = made
        return made

    def join(self, values: Sequence[Value], makes: Layer | Join, axes: Axes) -> Value:
        """The value that a layer or a join makes of several."""
        size = math.prod(lengths(axes.file))
        if size > LARGEST:
            raise Unsupported(f"a sample would have {size:,} values, more than {LARGEST:,}")
        name = self.current
        while name in self.nodes or name == START:
            name += "'"
        self.nodes[name] = Node(name, tuple(value.name for value in values), makes)
        return Value(name, axes)

    def change(self, value: Value, arrays: dict[str, Array], **options: Any) -> None:
        """Other options and values for the layer that makes a value."""
        assert value.layer is not None
        layer = type(value.layer)(**value.layer.config() | options)
        layer.declare_shapes(value.layer.in_shape)
        value.layer, value.arrays = layer, arrays
        self.nodes[value.name] = self.nodes[value.name]._replace(makes=layer)
        self.made[value.name] = value

    def same(self, value: Value, axes: Axes) -> Value:
        """The same numbers by other axes in the file."""
        again = Value(value.name, axes)
        again.layer, again.arrays, again.pads, again.fill = value.layer, value.arrays, value.pads, value.fill
        if axes is value.axes:
            again.of, again.pending, again.along = value.of, value.pending, value.along
        return again

    # ---- axes

    def stored(self, value: Value, here: Sequence[Axis]) -> Value:
        """The value with these axes here, by Reshape; by a 1 x 1 convolution if the last axis has another order."""
        if value.axes.here == tuple(here):
            return value
        before, after = flat(value.axes.here), flat(here)
        if before != after:
            last = here[-1]
            lead = len(after) - len(last)
            if before[:lead] != after[:lead] or set(before) != set(after):
                raise Unsupported("it needs its input in another order of the axes, and no layer transposes")
            value, order = self.columns(value, last)
            if len(order) > MOST_SHUFFLED:
                raise Unsupported(f"it needs its input in another order of {len(order):,} values, and no layer transposes")
            return self.stored(self._shuffled(value, last, order), here)
        layer = Flatten() if len(here) == 1 else Reshape(lengths(here))
        return self.add(value, layer, Axes(value.axes.file, here))

    def _shuffled(self, value: Value, last: Axis, order: Array) -> Value:
        """The last axis in the order of the file: a convolution with one weight of 1 for each channel."""
        value = self.stored(value, as_image(value.axes.here))
        W = np.zeros((len(order), len(order)), np.float32)
        W[order, np.arange(len(order))] = 1
        axes = Axes(value.axes.file, [*value.axes.here[:-1], last])
        return self.add(value, Conv2D(len(order), 1, bias=False), axes, W=W[:, None, None, :])

    def columns(self, value: Value, last: Axis, lead: Sequence[Axis] | None = None) -> tuple[Value, Array]:
        """The value with `last`, an axis of the file or several, as its last axis in any order, and that order.

        lead: the axes before it here; default: the others, as they are if `last` is the last already, else as one.
        Of an array over `last` in the file, array[..., order] is what a layer here needs.
        """
        here, parts = value.axes.here, flat(value.axes.here)
        own = parts[len(parts) - len(last) :]
        if math.prod(part.size for part in last) > MOST_IN_ORDER:
            raise Unsupported(f"its axis is longer than {MOST_IN_ORDER:,} values")
        if set(own) != set(last):
            raise Unsupported("it works along an axis that is not the last one here")
        if lead is None:
            lead = here[:-1] if here and set(here[-1]) == set(last) else [parts[: len(parts) - len(last)] or ()]
            lead = [] if len(lead) == 1 and not lead[0] else lead
        return self.stored(value, [*lead, own]), places(last, own)

    def image(self, value: Value) -> tuple[Value, Array]:
        """(N, C, H, W) or (N, C, T) in the file as (N, H, W, C) or (N, T, C) here, and the order of its channels."""
        file = value.axes.file
        if len(file) not in (2, 3):
            raise Unsupported(f"its input has {len(file) - 1} axes of pixels, not 1 or 2")
        return self.columns(value, file[0], file[1:])

    def channels(self, value: Value) -> tuple[Value, Array]:
        """The file's first axis as the last one here, behind at most two others, and its order."""
        value, order = self.columns(value, value.axes.file[0])
        here = value.axes.here
        return (value if len(here) <= 3 else self.stored(value, as_image(here))), order

    def affine(self, value: Value, numbers: Array) -> tuple[Value, Array]:
        """A constant that is broadcast over a value: that value, and a number or a vector over its last axis here."""
        shape = value.axes.shape
        if numbers.size == 1:
            return value, numbers.reshape(()).astype(float)
        if numbers.ndim > len(shape) and set(numbers.shape[: numbers.ndim - len(shape)]) == {1}:
            numbers = numbers.reshape(numbers.shape[numbers.ndim - len(shape) :])
        if numbers.ndim > len(shape) or any(n not in (1, m) for n, m in zip(numbers.shape[::-1], shape[::-1], strict=False)):
            raise Unsupported(f"a constant of shape {numbers.shape} does not fit samples {shape}")
        numbers = numbers.reshape((1,) * (len(shape) - numbers.ndim) + numbers.shape)
        varies = [parts for parts, n in zip(value.axes.file, numbers.shape, strict=True) if n > 1]
        try:
            value, order = self.columns(value, flat(varies))
        except Unsupported:
            numbers = np.broadcast_to(numbers, shape)
            value, order = self.columns(value, flat(value.axes.file), [])
        return value, numbers.reshape(-1)[order].astype(float)


def as_image(here: Sequence[Axis]) -> list[Axis]:
    """Three axes, of which the last is the same."""
    return list(here) if len(here) == 3 else [(), flat(here[:-1]), here[-1]]


def simple(sizes: Sequence[int]) -> Any:
    """One number for all axes where they are equal."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def is_plain(order: Array) -> bool:
    """Whether an axis has the order of the file."""
    return bool((order == np.arange(len(order))).all())


UNKNOWN = object()  # what a node makes that was not read
