"""Operators that are layers with weights or windows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnlite import layers
from nnlite.backend import Array
from nnlite.interop.onnx.axes import Axes, Axis, axis, flat, lengths
from nnlite.interop.onnx.folding import option
from nnlite.interop.onnx.functions import mean
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.reading import START, Pads, Reading, Value, as_image, is_plain, simple
from nnlite.layers.base import Layer

# ---- products


def _gemm(reading: Reading, node: Operation) -> Value:
    value, W = reading.data(node), reading.constant(node, 1)
    if node.attribute("transA", 0):
        raise Unsupported("transA=1 takes samples by column")
    W, b, alpha = W if node.attribute("transB", 0) else W.T, reading.constant(node, 2), float(node.attribute("alpha", 1.0))
    W = W if alpha == 1 else alpha * W
    if b is not None:
        if b.size not in (1, len(W)):
            raise Unsupported(f"its bias of shape {b.shape} differs from sample to sample")
        b = float(node.attribute("beta", 1.0)) * np.broadcast_to(b.reshape(-1), (len(W),))
    return _dense(reading, value, W, b)


def _matmul(reading: Reading, node: Operation) -> Value:
    value, W = reading.data(node), reading.constant(node, 1)
    if W.ndim != 2:
        raise Unsupported(f"its second input has the shape {W.shape}, and is no matrix")
    return _dense(reading, value, W.T, None)


def _dense(reading: Reading, value: Value, W: Array, b: Array | None) -> Value:
    """Along the last axis: Dense on vectors, a 1 x 1 convolution on more."""
    *lead, last = value.axes.file
    if W.shape[1] != value.axes.shape[-1]:
        raise Unsupported(f"its weights are for {W.shape[1]} inputs, here are {value.axes.shape[-1]}")
    bias = {} if b is None else {"b": b}
    units, out = len(W), axis(len(W))
    if not lead:
        value, order = reading.columns(value, last, [])
        return reading.add(
            value, layers.Dense(units, bias=b is not None), Axes([out], [out]), W=W if is_plain(order) else W[:, order], **bias
        )
    value, order = reading.columns(value, last)
    here = as_image(value.axes.here)
    value, W = reading.stored(value, here), W[:, None, None, order]
    return reading.add(value, layers.Conv2D(units, 1, bias=b is not None), Axes([*lead, out], [*here[:-1], out]), W=W, **bias)


def _gather(reading: Reading, node: Operation) -> Value:
    """Rows of a matrix by the ids that the model takes, cast to other integers or not."""
    W, ids = reading.constant(node, 0), reading.data(node, 1, pending=True)
    value = ids.of[0] if ids.pending and ids.of else ids
    if value.name != START or any(each.kind != "Cast" for each in ids.pending):
        raise Unsupported("it takes ids from elsewhere than the model's input", ids.pending or (node,))
    if W.ndim != 2 or node.attribute("axis", 0) not in (0, -2):
        raise Unsupported(f"it takes other values of an array of shape {W.shape} than rows of a matrix")
    out, axes = axis(W.shape[1]), value.axes
    return reading.add(value, layers.Embedding(*W.shape), Axes([*axes.file, out], [*axes.here, out]), W=W)


# ---- windows


class _Window:
    """kernel, strides, dilations and pads of a node over 1 or 2 axes of pixels.   border: pads and those of a node before"""

    def __init__(self, node: Operation, kernel: Sequence[int], value: Value) -> None:
        sizes = value.axes.shape[1:]
        axes, none = len(sizes), [0] * 2 * len(sizes)
        self.kernel = tuple(node.attribute("kernel_shape", kernel))
        self.strides = tuple(node.attribute("strides", [1] * axes))
        self.dilations = tuple(node.attribute("dilations", [1] * axes))
        pads, auto = node.attribute("pads", none), node.attribute("auto_pad", "NOTSET")
        if not len(self.kernel) == len(self.strides) == len(self.dilations) == axes == len(pads) / 2 or min(pads) < 0:
            raise Unsupported(f"kernel {self.kernel} and pads {list(pads)} do not fit samples {value.axes.shape}")
        if kernel and tuple(kernel) != self.kernel:
            raise Unsupported(f"kernel_shape={self.kernel}, but its filters are {tuple(kernel)}")
        if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", ""):
            raise Unsupported(f"auto_pad={auto}")
        before = value.pads or [(0, 0)] * axes
        self.pads: Pads = [(pads[i], pads[axes + i]) for i in range(axes)]
        if auto.startswith("SAME"):
            padded = [n + sum(pair) for n, pair in zip(sizes, before, strict=True)]
            windows = zip(padded, self.kernel, self.strides, self.dilations, strict=True)
            self.pads = [_same(*window, upper=auto == "SAME_UPPER") for window in windows]
        self.border = [(a + c, b + d) for (a, b), (c, d) in zip(before, self.pads, strict=True)]

    @property
    def options(self) -> dict[str, Any]:
        """padding and dilation, as a layer takes them, where they are not its defaults."""
        dilation = {"dilation": simple(self.dilations)} if set(self.dilations) != {1} else {}
        return {"padding": _padding(self.border), **dilation} if _is_padded(self.border) else dilation


def _is_padded(pads: Pads) -> bool:
    return any(map(any, pads))


def _padding(pads: Pads) -> Any:
    if all(before == behind for before, behind in pads):
        return simple([before for before, _ in pads])
    return tuple(pads) if len(pads) > 1 else pads[0]


def _same(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def _conv(reading: Reading, node: Operation) -> Value:
    W, b = reading.constant(node, 1), reading.constant(node, 2)
    value, order = reading.image(reading.data(node, padded=True))
    window = _Window(node, W.shape[2:], value)
    groups, filters, channels = node.attribute("group", 1), len(W), len(order)
    if value.fill:
        raise Unsupported(f"its input is padded with {value.fill}, a convolution pads with 0")
    if groups < 1 or W.shape[1] * groups != channels or filters % groups:
        raise Unsupported(f"filters {W.shape} in {groups} groups do not fit {channels} channels")
    out = axis(filters)
    if not is_plain(order):
        if groups == channels == filters:
            W, b, out = W[order], None if b is None else b[order], value.axes.here[-1]
        elif groups > 1:
            value = reading.stored(value, [*value.axes.here[:-1], value.axes.file[0]])
        else:
            W = W[:, order]
    bias = {} if b is None else {"b": b}
    layer = (layers.Conv2D if len(window.kernel) == 2 else layers.Conv1D)(
        filters,
        simple(window.kernel),
        stride=simple(window.strides),
        groups=groups,
        bias=b is not None,
        **window.options,
    )
    return _slid(reading, value, layer, out, W=np.moveaxis(W, 1, -1), **bias)


def _slid(reading: Reading, value: Value, layer: Layer, channels: Axis, **arrays: Any) -> Value:
    """The value that a layer with a window makes of images or sequences."""
    pixels = [axis(n) for n in layer.declare_shapes(lengths(value.axes.here))[:-1]]
    file_channels = value.axes.file[0] if set(channels) == set(value.axes.file[0]) else channels
    return reading.add(value, layer, Axes([file_channels, *pixels], [*pixels, channels]), **arrays)


def _pool(of_images: Callable[..., Layer], of_sequences: Callable[..., Layer]) -> Any:
    averages = of_images is layers.AvgPool2D

    def read(reading: Reading, node: Operation) -> Value:
        value, _ = reading.image(reading.data(node, padded=True))
        window = _Window(node, (), value)
        counts, rounds_up = bool(node.attribute("count_include_pad", 0)), bool(node.attribute("ceil_mode", 0))
        options = window.options | ({"ceil_mode": True} if rounds_up else {})
        if averages:
            fits = value.fill == 0 and (counts or not _is_padded(window.pads))
            options |= {"count_padding": False} if _is_padded(window.border) and not (counts or value.pads) else {}
        else:
            fits = value.fill == -math.inf or (value.fill == 0 and _is_positive(reading, value))
        if value.pads is not None and (rounds_up or not fits):
            raise Unsupported(f"its input is padded with {value.fill}, which this pooling does not take for its own")
        size, stride = simple(window.kernel), simple(window.strides)
        kind = of_images if len(window.kernel) == 2 else of_sequences
        return _slid(reading, value, kind(size, None if stride == size else stride, **options), value.axes.here[-1])

    return read


def _is_positive(reading: Reading, value: Value) -> bool:
    """Whether no number is below 0, so that of a window with zeros around the pixels the pixels decide."""
    return isinstance(reading.nodes[value.name].makes, layers.ReLU | layers.Sigmoid) if value.name in reading.nodes else False


def _global_pool(kind: Callable[[], Layer]) -> Any:
    def read(reading: Reading, node: Operation) -> Value:
        value = reading.data(node)
        return _pooled(reading, value, kind, list(range(1, len(value.axes.shape))), True)

    return read


def _reduce(kind: Callable[[], Layer]) -> Any:
    def read(reading: Reading, node: Operation) -> Value:
        value = reading.data(node, pending=True)
        rank, axes = len(value.axes.shape) + 1, option(node, "axes", reading.constant(node, 1))
        reduced, keep = sorted(i % rank - 1 for i in axes or range(rank)), bool(node.attribute("keepdims", 1))
        if reduced[0] < 0:
            raise Unsupported("it reduces over the batch")
        along = flat(value.axes.file[i] for i in reduced)
        if node.kind == "ReduceMean" and keep and value.axes.here and set(along) == set(value.axes.here[-1]):
            return mean(reading, node, value, along)
        return _pooled(reading, reading.data(node), kind, reduced, keep)

    return read


def _pooled(reading: Reading, value: Value, kind: Callable[[], Layer], reduced: list[int], keep: bool) -> Value:
    """Over these axes of the file, where the others are one, the last here."""
    file = value.axes.file
    kept = flat(parts for i, parts in enumerate(file) if i not in reduced)
    value, _ = reading.columns(value, kept)
    here = value.axes.here
    if len(here) == 2 and kind is layers.GlobalMaxPool2D:
        kind = layers.GlobalMaxPool1D
    elif len(here) != 3 or set(here[-1]) != set(kept):
        parts = flat(here)
        value = reading.stored(value, [(), parts[: len(parts) - len(kept)], parts[len(parts) - len(kept) :]])
    left = [() if i in reduced else parts for i, parts in enumerate(file) if keep or i not in reduced]
    return reading.add(value, kind(), Axes(left, [value.axes.here[-1]]))


OPERATORS: dict[str, Callable[[Reading, Operation], Value]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "Conv": _conv,
    "MaxPool": _pool(layers.MaxPool2D, layers.MaxPool1D),
    "AveragePool": _pool(layers.AvgPool2D, layers.AvgPool1D),
    "GlobalAveragePool": _global_pool(layers.GlobalAvgPool2D),
    "GlobalMaxPool": _global_pool(layers.GlobalMaxPool2D),
    "ReduceMean": _reduce(layers.GlobalAvgPool2D),
    "ReduceMax": _reduce(layers.GlobalMaxPool2D),
}
