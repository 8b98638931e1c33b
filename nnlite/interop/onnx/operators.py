"""Operators that are layers: products, windows, norms."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnlite import layers
from nnlite.backend import Array
from nnlite.interop.onnx.axes import Axes, Axis, axis, flat
from nnlite.interop.onnx.folding import option
from nnlite.interop.onnx.functions import mean
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.reading import Reading, Value, is_plain
from nnlite.layers.base import Layer

Pairs = tuple[tuple[int, int], tuple[int, int]]

# ---- products


def _gemm(reading: Reading, node: Operation) -> Value:
    value, W = reading.data(node), reading.constant(node, 1)
    if node.attribute("transA", 0):
        raise Unsupported("transA=1 takes samples by column")
    W = float(node.attribute("alpha", 1.0)) * (W if node.attribute("transB", 0) else W.T)
    b = reading.constant(node, 2)
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
        return reading.add(value, layers.Dense(units, bias=b is not None), Axes([out], [out]), W=W[:, order], **bias)
    value, order = reading.columns(value, last)
    here = value.axes.here if len(value.axes.here) == 3 else ((), flat(value.axes.here[:-1]), value.axes.here[-1])
    value, W = reading.stored(value, here), W[:, None, None, order]
    return reading.add(value, layers.Conv2D(units, 1, bias=b is not None), Axes([*lead, out], [*here[:-1], out]), W=W, **bias)


# ---- windows


class _Window:
    """kernel, strides, dilations, pads of a node over 1 or 2 axes of pixels, the first of length 1 where there is one."""

    def __init__(self, node: Operation, kernel: Sequence[int], value: Value, in_size: Sequence[int]) -> None:
        axes = len(kernel)
        self.kernel, self.strides, self.dilations = (
            _both(given, 1)
            for given in (kernel, node.attribute("strides", [1] * axes), node.attribute("dilations", [1] * axes))
        )
        pads, auto = node.attribute("pads", [0] * 2 * axes), node.attribute("auto_pad", "NOTSET")
        if len(kernel) != len(value.axes.shape) - 1 or len(pads) != 2 * axes or min(pads) < 0:
            raise Unsupported(f"kernel {list(kernel)} and pads {list(pads)} do not fit samples {value.axes.shape}")
        self.pads: Pairs = ((0, 0), *zip(pads, pads[axes:], strict=False))[-2:]  # type: ignore[assignment]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            rows, columns = (
                _same(*sizes, upper=auto == "SAME_UPPER")
                for sizes in zip(in_size, self.kernel, self.strides, self.dilations, strict=True)
            )
            self.pads = rows, columns
        elif auto not in ("NOTSET", "VALID", ""):
            raise Unsupported(f"auto_pad={auto}")

    def with_border(self, value: Value) -> Pairs:
        """The pads, and before them those of a node before."""
        if value.pads is None:
            return self.pads
        rows, columns = (
            (before + own_before, behind + own_behind)
            for (before, behind), (own_before, own_behind) in zip(value.pads, self.pads, strict=True)
        )
        return rows, columns

    @property
    def padding(self) -> Any:
        """As simple as it can be written."""
        return _plain(self.pads)


def _plain(pads: Pairs) -> Any:
    (top, bottom), (left, right) = pads
    if (top, left) != (bottom, right):
        return pads
    return top if top == left else (top, left)


def _both(sizes: Sequence[int], first: int) -> tuple[int, int]:
    if len(sizes) not in (1, 2):
        raise Unsupported(f"it has {len(sizes)} axes of pixels, not 1 or 2")
    rows, columns = (first, *sizes)[-2:]
    return rows, columns


def _simple(pair: tuple[int, int]) -> Any:
    return pair[0] if pair[0] == pair[1] else pair


def _same(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def _conv(reading: Reading, node: Operation) -> Value:
    W, b = reading.constant(node, 1), reading.constant(node, 2)
    value, order, channels = reading.image(reading.data(node, padded=True))
    window, border = _windowed(reading, node, W.shape[2:], value)
    groups, filters = node.attribute("group", 1), len(W)
    if value.fill:
        raise Unsupported(f"its input is padded with {value.fill}, a convolution pads with 0")
    if groups < 1 or W.shape[1] * groups != channels or filters % groups:
        raise Unsupported(f"filters {W.shape} in {groups} groups do not fit {channels} channels")
    out = axis(filters)
    if not is_plain(order):
        if groups == channels == filters:
            W, b, out = W[order], None if b is None else b[order], value.axes.here[-1]
        elif groups > 1:
            value = reading.stored(value, [*value.axes.here[:2], value.axes.file[0]])
        else:
            W = W[:, order]
    bias = {} if b is None else {"b": b}
    W = W.reshape(*W.shape[:2], *window.kernel).transpose(0, 2, 3, 1)
    layer = layers.Conv2D(
        filters,
        _simple(window.kernel),
        stride=_simple(window.strides),
        padding=_plain(border),
        dilation=_simple(window.dilations),
        groups=groups,
        bias=b is not None,
    )
    return _slid(reading, value, layer, node, out, W=W, **bias)


def _windowed(reading: Reading, node: Operation, kernel: Sequence[int], value: Value) -> tuple[_Window, Pairs]:
    given = node.attribute("kernel_shape", list(kernel))
    if kernel and list(given) != list(kernel):
        raise Unsupported(f"kernel_shape={given}, but its filters are {list(kernel)}")
    sizes = value.axes.shape[1:]
    border = ((0, 0), (0, 0)) if value.pads is None else value.pads
    in_size = [n + sum(pads) for n, pads in zip((1, *sizes)[-2:], border, strict=True)]
    window = _Window(node, given, value, in_size)
    return window, window.with_border(value)


def _slid(reading: Reading, value: Value, layer: Layer, node: Operation, channels: Axis, **arrays: Any) -> Value:
    """The value that a layer with a window makes of an image."""
    rows, columns, _ = layer.declare_shapes(tuple(math.prod(p.size for p in parts) for parts in value.axes.here))
    pixels = [axis(rows), axis(columns)]
    file_channels = channels if set(channels) != set(value.axes.file[0]) else value.axes.file[0]
    file = [file_channels, *pixels[-(len(value.axes.file) - 1) :]]
    return reading.add(value, layer, Axes(file, [*pixels, channels]), **arrays)


def _pool(kind: Callable[..., Layer]) -> Any:
    def read(reading: Reading, node: Operation) -> Value:
        value, _, _ = reading.image(reading.data(node, padded=True))
        window, border = _windowed(reading, node, (), value)
        options: dict[str, Any] = {"ceil_mode": True} if node.attribute("ceil_mode", 0) else {}
        if window.dilations != (1, 1):
            options["dilation"] = _simple(window.dilations)
        if kind is layers.AvgPool2D:
            _refuse_border(value, value.fill == 0 and (window.pads == _NONE or node.attribute("count_include_pad", 0) == 1))
            if border != _NONE and value.pads is None and not node.attribute("count_include_pad", 0):
                options["count_padding"] = False
        else:
            _refuse_border(value, value.fill == -math.inf or (value.fill == 0 and _is_positive(reading, value)))
        size, stride = _simple(window.kernel), _simple(window.strides)
        layer = kind(size, None if stride == size else stride, padding=_plain(border), **options)
        return _slid(reading, value, layer, node, value.axes.here[-1])

    return read


_NONE: Pairs = ((0, 0), (0, 0))


def _refuse_border(value: Value, fits: bool) -> None:
    if value.pads is not None and not fits:
        raise Unsupported(f"its input is padded with {value.fill}, which this pooling does not take for its own")


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
        value = reading.values[node.inputs[0]]
        value = value if getattr(value, "pending", ()) else reading.data(node)
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
    if len(here) != 3 or set(here[-1]) != set(kept):
        parts = flat(here)
        value = reading.stored(value, [(), parts[: len(parts) - len(kept)], parts[len(parts) - len(kept) :]])
    left = [() if i in reduced else parts for i, parts in enumerate(file) if keep or i not in reduced]
    return reading.add(value, kind(), Axes(left, [value.axes.here[-1]]))


# ---- norms


def _batch_norm(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    gamma, beta, mean, var = (reading.constant(node, i) for i in range(1, 5))
    if node.attribute("training_mode", 0) or (node.version < 9 and not node.attribute("spatial", 1)):
        raise Unsupported("it is in training mode" if node.version >= 9 else "spatial=0 normalises each pixel by itself")
    value, order = reading.channels(value)
    if {v.shape for v in (gamma, beta, mean, var)} != {(len(order),)}:
        raise Unsupported(f"its values have the shapes {gamma.shape}, {mean.shape}, here are {len(order)} channels")
    layer = layers.BatchNorm(momentum=node.attribute("momentum", 0.9), eps=node.attribute("epsilon", 1e-5))
    arrays = {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
    return reading.add(value, layer, **{name: v[order] for name, v in arrays.items()})


def _layer_norm(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    gamma, beta = reading.constant(node, 1), reading.constant(node, 2)
    rank = len(value.axes.shape) + 1
    first = node.attribute("axis", -1) % rank
    if first == 0:
        raise Unsupported("it normalises over the batch")
    value, order = reading.columns(value, flat(value.axes.file[first - 1 :]))
    arrays = {"gamma": gamma, "beta": beta}
    given = {name: v.reshape(-1)[order] for name, v in arrays.items() if v is not None}
    layer = layers.LayerNorm(eps=node.attribute("epsilon", 1e-5), scale="gamma" in given, shift="beta" in given)
    return reading.add(value, layer, **given)


def _softmax(reading: Reading, node: Operation) -> Value:
    value, newer = reading.data(node), node.version >= 13
    rank = len(value.axes.shape) + 1
    place = node.attribute("axis", -1 if newer else 1)
    place += rank * (place < 0)
    if not 1 <= place < rank:
        raise Unsupported("it runs over the batch")
    file = value.axes.file
    value, _ = reading.columns(value, file[place - 1] if newer else flat(file[place - 1 :]))
    return reading.add(value, layers.Softmax())


OPERATORS: dict[str, Callable[[Reading, Operation], Value]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "MaxPool": _pool(layers.MaxPool2D),
    "AveragePool": _pool(layers.AvgPool2D),
    "GlobalAveragePool": _global_pool(layers.GlobalAvgPool2D),
    "GlobalMaxPool": _global_pool(layers.GlobalMaxPool2D),
    "ReduceMean": _reduce(layers.GlobalAvgPool2D),
    "ReduceMax": _reduce(layers.GlobalMaxPool2D),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
}
