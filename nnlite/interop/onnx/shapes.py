"""Operators that move numbers or join branches, without arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite.interop.graph import concat
from nnlite.interop.onnx.axes import Axes, axis, flat, lengths
from nnlite.interop.onnx.folding import BATCH, option
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.reading import Reading, Value
from nnlite.interop.onnx.resize import resize
from nnlite.layers import Dropout, Reshape


def _identity(reading: Reading, node: Operation) -> Value:
    return reading.values[node.inputs[0]]  # type: ignore[no-any-return]


def _dropout(reading: Reading, node: Operation) -> Value:
    if bool(np.any(reading.constant(node, 2, False))):
        raise Unsupported("it is in training mode")
    rate = float(reading.constant(node, 1, node.attribute("ratio", 0.5)))
    value = reading.data(node)
    return reading.add(value, Dropout(rate)) if 0 < rate < 1 else value


def _shape(reading: Reading, node: Operation) -> Any:
    shape = (BATCH, *reading.data(node).axes.shape)
    return np.asarray(shape[node.attribute("start", 0) : node.attribute("end")], np.int64)


def _transpose(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    axes = len(value.axes.shape)
    perm = node.attribute("perm", list(range(axes, -1, -1)))
    if sorted(perm) != list(range(axes + 1)) or perm[0] != 0:
        raise Unsupported(f"perm={perm} moves the axis of the batch")
    return reading.same(value, value.axes.transposed([i - 1 for i in perm[1:]]))


def _reshaped(reading: Reading, value: Value, shape: list[int]) -> Value:
    """By following the parts of axes; where they are cut across, by a Reshape."""
    try:
        return reading.same(value, value.axes.reshaped(tuple(shape)))
    except Unsupported:
        value = reading.stored(value, value.axes.file)
        return reading.add(value, Reshape(tuple(shape)), Axes.ordered(tuple(shape), range(len(shape))))


def _flatten(reading: Reading, node: Operation) -> Value:
    value, place = reading.data(node), node.attribute("axis", 1)
    shape = value.axes.shape
    place += (len(shape) + 1) * (place < 0)
    joins_batch = reading.batch != 1 if place == 0 else math.prod(shape[: place - 1]) != 1
    if joins_batch or place < 0:
        raise Unsupported(f"axis={place} joins the axis of the batch with another")
    return _reshaped(reading, value, [math.prod(shape)])


def _reshape(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    given = reading.constant(node, 1)
    batch, *target = option(node, "shape", given) or [0]
    shape, size = value.axes.shape, math.prod(value.axes.shape)
    if not node.attribute("allowzero", 0):
        target = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(target)]
    if -1 in target:
        rest = math.prod(n for n in target if n != -1)
        target = [size // max(1, rest) if n == -1 else n for n in target]
    if batch not in (0, -1, BATCH, reading.batch) or math.prod(target) != size:
        raise Unsupported(f"it gives samples {shape} the shape {given}, which joins the axis of the batch with another")
    return _reshaped(reading, value, target)


def _squeeze(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    shape = value.axes.shape
    axes = option(node, "axes", reading.constant(node, 1))
    if axes is None and reading.batch == 1:
        raise Unsupported("it drops the axis of the batch")
    dropped = [i + 1 for i, n in enumerate(shape) if n == 1] if axes is None else [i % (len(shape) + 1) for i in axes]
    if 0 in dropped or any(shape[i - 1] != 1 for i in dropped):
        raise Unsupported(f"axes={axes} are not all of length 1, the batch apart")
    return _reshaped(reading, value, [n for i, n in enumerate(shape) if i + 1 not in dropped])


def _unsqueeze(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    axes = option(node, "axes", reading.constant(node, 1)) or []
    rank = len(value.axes.shape) + 1 + len(axes)
    new, old = {i % rank for i in axes}, iter(value.axes.shape)
    if 0 in new:
        raise Unsupported("it puts an axis before the batch")
    return _reshaped(reading, value, [1 if i in new else next(old) for i in range(1, rank)])


def _pad(reading: Reading, node: Operation) -> Value:
    value, rank = reading.data(node), len(reading.data(node).axes.shape) + 1
    pads = option(node, "pads", reading.constant(node, 1)) or []
    axes = option(node, "axes", reading.constant(node, 3)) or list(range(rank))
    if len(pads) != 2 * len(axes):
        raise Unsupported(f"it has {len(pads)} pads for {len(axes)} axes")
    by_axis = {i % rank: pair for i, pair in zip(axes, zip(pads, pads[len(axes) :], strict=False), strict=True)}
    if not any(pads):
        return value
    if node.attribute("mode", "constant") != "constant" or min(pads) < 0:
        raise Unsupported("only a border of one number is added, and nothing cut off")
    if rank not in (3, 4) or any(by_axis.get(i, (0, 0)) != (0, 0) for i in (0, 1)):
        raise Unsupported("it pads other axes than those of the pixels")
    padded = reading.same(value, value.axes)
    padded.pads = [by_axis.get(i, (0, 0)) for i in range(2, rank)]
    padded.fill = float(reading.constant(node, 2, node.attribute("value", 0.0)))
    return padded


def _concat(reading: Reading, node: Operation) -> Value:
    """Inputs that begin with those of an earlier one read what that made, so that DenseNets can be nested."""
    values = [reading.data(node, i) for i in range(len(node.inputs))]
    rank = len(values[0].axes.shape) + 1
    place = node.attribute("axis", 1) % rank - 1
    if place < 0 or any(len(value.axes.shape) != rank - 1 for value in values):
        raise Unsupported("it joins along the axis of the batch, or values of different ranks")
    for k in range(len(values) - 1, 1, -1):
        earlier = reading.joined.get((place, *node.inputs[:k]))
        if earlier is not None:
            values[:k] = [earlier]
            break
    value = _one_after_another(reading, values, place)
    reading.joined[place, *node.inputs] = value
    return value


def _one_after_another(reading: Reading, values: list[Value], place: int) -> Value:
    """Along an axis of the file that is the last one here, in the order of the file; the others as those of the first value."""
    first = values[0].axes
    others = [i for i in range(len(first.file)) if i != place and first.file[i]]
    others.sort(key=lambda i: flat(first.here).index(first.file[i][0]))
    ready = [reading.stored(v, [*(v.axes.file[i] for i in others), v.axes.file[place]]) for v in values]
    shapes = [lengths(value.axes.here) for value in ready]
    if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
        raise Unsupported(f"its inputs have the shapes {[value.axes.shape for value in values]}")
    joined, axes = axis(sum(shape[-1] for shape in shapes)), ready[0].axes
    file = [joined if i == place else parts for i, parts in enumerate(axes.file)]
    return reading.join(ready, concat, Axes(file, [*axes.here[:-1], joined]))


SHAPES: dict[str, Callable[[Reading, Operation], Any]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Shape": _shape,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Pad": _pad,
    "Concat": _concat,
    "Resize": resize,
    "Upsample": resize,
}
