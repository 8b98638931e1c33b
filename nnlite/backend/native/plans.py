"""Convolutions by the C kernels: no patches; tables of offsets say where a window's pixels are."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from nnlite.backend.conv import ConvPlan
from nnlite.backend.memory import Memory
from nnlite.backend.native.operations import NativeOperations, address, kernels, padded
from nnlite.backend.native.rectified import Columns, source
from nnlite.backend.window import Array, Pair, Window

SUMMED = 128  # outputs whose gradients are summed in one chain
_MOST_LINES = 64  # rows of outputs in such a chain
_NEAR = 1 << 18  # values of bordered images at a time: an L2 of 1 MiB
_BLOCK = 48  # rows of outputs that `convolve` finishes at a time


class Table:
    """Offsets of values, in memory that C reads."""

    def __init__(self, offsets: Any) -> None:
        self.offsets = np.ascontiguousarray(offsets, np.int64).ravel()
        self.address, self.size = address(self.offsets), len(self.offsets)


class Border(NamedTuple):
    """The zeros around an image: its size with them, and the place of its first pixel."""

    size: Pair
    top: int
    left: int


class Part(NamedTuple):
    """Outputs with the same taps: where their windows start, where they go; taps: offsets, numbers, runs of k values."""

    rows: Table
    out: Table
    taps: Table
    numbers: Table
    runs: Table
    at_filters: Table
    k: int


class Geometry:
    """The tables of a window for `channels` inputs and `filters` outputs, of which C' and F' values a pixel are used."""

    def __init__(self, window: Window, channels: int, filters: int) -> None:
        self.window, self.channels, self.filters = window, channels, filters

    @cached_property
    def border(self) -> Border:
        """Of the inputs."""
        (top, _), (left, _) = self.window.padding
        (h, w), (sh, sw), (oh, ow) = self.window.padded_size, self.window.stride, self.window.out_size
        return Border((max(h, sh * (oh - 1) + self.window.span[0]), max(w, sw * (ow - 1) + self.window.span[1])), top, left)

    @cached_property
    def delta_border(self) -> Border:
        """Of the deltas, for the gradient of the inputs."""
        rows, columns = (self._delta_axis(axis) for axis in (0, 1))
        return Border((rows[1], columns[1]), rows[0], columns[0])

    def _delta_axis(self, axis: int) -> tuple[int, int]:
        """Zeros before the deltas, and the size with those before and after them."""
        window = self.window
        before, stride, reach = window.padding[axis][0], window.stride[axis], window.span[axis] - 1
        zeros = max(0, reach // stride - before // stride)
        last = (window.in_shape[axis] - 1 + before) // stride
        return zeros, zeros + max(window.out_size[axis], last + 1)

    @cached_property
    def forward(self) -> Part:
        """All outputs from the inputs inside their border."""
        (oh, ow), (sh, sw), (dh, dw), (kh, kw) = (getattr(self.window, n) for n in ("out_size", "stride", "dilation", "kernel"))
        c, width = self.channels, self.border.size[1]
        rows = (np.arange(oh)[:, None] * sh * width + np.arange(ow) * sw) * c
        taps = (np.arange(kh)[:, None] * dh * width + np.arange(kw) * dw) * c
        together = kw if dw == 1 else 1
        at_filters = np.arange(0, kh * kw, together) * c * padded(self.filters)
        out, numbers = np.arange(oh * ow) * self.filters, np.arange(kh * kw)
        runs = taps[:, ::together]
        return Part(Table(rows), Table(out), Table(taps), Table(numbers), Table(runs), Table(at_filters), together * c)

    @cached_property
    def backward(self) -> list[Part]:
        """The inputs from the deltas inside their border: a part for each remainder of a pixel's place by the stride."""
        return list(self._backward())

    def _backward(self) -> Iterator[Part]:
        window, border, f = self.window, self.delta_border, self.filters
        w, kw, width = window.in_shape[1], window.kernel[1], border.size[1]
        together = kw if window.dilation[1] == window.stride[1] == 1 else 1
        for y, rows, down in self._remainders(0):
            for x, columns, across in self._remainders(1):
                starts = ((rows[:, None] + border.top) * width + columns + border.left) * f
                out = (y[:, None] * w + x) * self.channels
                taps = -(down[1][:, None] * width + across[1]) * f
                numbers = down[0][:, None] * kw + across[0]
                reversed_ = down[0][:, None] * kw + kw - 1 - across[0]
                at_filters = reversed_ * f * padded(self.channels)
                last = slice(None) if together == 1 else slice(-1, None)
                runs, at_filters = taps[:, last], at_filters[:, last]
                yield Part(Table(starts), Table(out), Table(taps), Table(numbers), Table(runs), Table(at_filters), together * f)

    def _remainders(self, axis: int) -> Iterator[tuple[Array, Array, tuple[Array, Array]]]:
        """Pixels along an axis, the last output that each meets, and the taps with the outputs before that."""
        window = self.window
        stride, before = window.stride[axis], window.padding[axis][0]
        pixels, taps = np.arange(window.in_shape[axis]), np.arange(window.kernel[axis])
        reach = taps * window.dilation[axis]
        for remainder in range(stride):
            here, met = pixels[(pixels + before) % stride == remainder], taps[reach % stride == remainder]
            if len(here):
                yield here, (here + before) // stride, (met, reach[met] // stride)


class NativePlan(ConvPlan):
    """A convolution by products whose rows are pixels, read in place."""

    backend: NativeOperations
    normalizes = True

    def __init__(self, backend: NativeOperations, window: Window, filters: int, bias: bool, groups: int = 1) -> None:
        super().__init__(backend, window, filters, groups, bias)
        self.tables = Geometry(window, window.in_shape[2], filters)
        self.lines = max(1, min(_MOST_LINES, SUMMED // window.out_size[1]))
        self.temporaries = self._bordered_size(self.tables.border, window.in_shape[2]) * window.is_padded

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """W for `convolve`, forward and backward, and b."""
        (kh, kw), c, f = self.window.kernel, self.channels, self.filters
        forward = memory.persist("filters", (kh * kw * c, padded(f)), W.dtype)
        backward = memory.persist("by tap", (kh * kw * f, padded(c)), W.dtype)
        kernels(W.dtype)["arrange_filters"](address(W), f, kh, kw, c, address(forward), address(backward))
        return forward, backward, b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        W, _, b = filters
        a, by = source(self.backend, a, W.dtype, self.window.in_shape)
        z = self.backend.room(out, (len(a), *self.out_shape), a.dtype)
        for part in self._few(len(a), self.tables.border, a.shape[3]):
            self._convolve(self._bordered(a[part], self.tables.border, by), self.tables.forward, W, b, relu, z[part])
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        (oh, ow), size = self.window.out_size, padded(self.filters)
        delta = self.backend.given(delta, dW.dtype, self.out_shape)
        a, by = source(self.backend, a, dW.dtype, self.window.in_shape)
        image = self._bordered(a, self.tables.border, by)
        values = self._values_of_taps
        scratch = self.backend.scratch("sums of taps", (2 * values.size + oh * ow, size), delta.dtype)
        step, row = self.window.stride[1] * image.shape[3], self.window.stride[0] * image.shape[2] * image.shape[3]
        kernels(delta.dtype)["filter_gradient"](
            address(image), image[0].size, values.address, values.size, step, row, address(delta), len(delta), oh, ow,
            self.lines, self.filters, address(dW), address(scratch),
        )  # fmt: skip
        if db is not None:
            self.backend.sum_columns(self.backend.rows(delta), db)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        delta = self.backend.given(delta, filters[1].dtype, self.out_shape)
        da = self.backend.room(out, (len(delta), *self.window.in_shape), delta.dtype)
        for few in self._few(len(da), self.tables.delta_border, delta.shape[3]):
            bordered = self._bordered(delta[few], self.tables.delta_border)
            for part in self.tables.backward:
                self._convolve(bordered, part, filters[1], None, False, da[few])
        return da

    @cached_property
    def _values_of_taps(self) -> Table:
        return Table(self.tables.forward.taps.offsets[:, None] + np.arange(self.channels))

    def _convolve(self, a: Array, part: Part, filters: Array, b: Array | None, relu: bool, z: Array) -> None:
        scratch = self.backend.scratch("block of outputs", (_BLOCK, padded(z.shape[3])), z.dtype)
        kernels(z.dtype)["convolve"](
            address(a), a[0].size, address(filters), 0 if b is None else address(b), relu, address(z), z[0].size, len(z),
            part.rows.address, part.out.address, part.rows.size, part.runs.address, part.at_filters.address, part.runs.size,
            part.k, z.shape[3], address(scratch),
        )  # fmt: skip

    def _bordered(self, a: Array, border: Border, by: Columns = (0, 0, 0)) -> Array:
        """Images inside zeros, normalised and rectified `by`; themselves where nothing is to be done."""
        n, h, w, c = a.shape
        if border.size == (h, w) and not any(by):
            return a
        image = self.backend.scratch("bordered", (n, *border.size, c), a.dtype)
        kernels(a.dtype)["add_border"](address(a), *by, address(image), n, h, w, c, border.top, border.left, *border.size)
        return image

    def _few(self, images: int, border: Border, channels: int) -> list[slice]:
        """As many images at a time as stay in the cache between their border and the convolution."""
        few = max(1, _NEAR // self._bordered_size(border, channels))
        return [slice(first, first + few) for first in range(0, images, few)]

    def _bordered_size(self, border: Border, channels: int) -> int:
        return border.size[0] * border.size[1] * channels


class NativeDepthwisePlan(NativePlan):
    """One filter for each channel: a weighted sum of shifted images."""

    def __init__(self, backend: NativeOperations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, bias, groups=filters)

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        by_tap = memory.persist("by tap", (self.patch, self.filters), W.dtype)
        by_tap[...] = W.reshape(self.filters, -1).T
        return by_tap, by_tap, b

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        delta, part = self.backend.given(delta, dW.dtype, self.out_shape), self.tables.forward
        a, by = source(self.backend, a, dW.dtype, self.window.in_shape)
        image = self._bordered(a, self.tables.border, by)
        by_tap = self.backend.scratch("gradient by tap", (self.patch, self.filters), delta.dtype)
        kernels(delta.dtype)["depthwise_gradient"](
            address(image), image[0].size, part.rows.address, part.rows.size, part.taps.address, part.taps.size,
            address(delta), len(delta), self.filters, address(by_tap),
        )  # fmt: skip
        dW.reshape(self.filters, -1)[...] = by_tap.T
        if db is not None:
            self.backend.sum_columns(self.backend.rows(delta), db)

    def _convolve(self, a: Array, part: Part, filters: Array, b: Array | None, relu: bool, z: Array) -> None:
        kernels(z.dtype)["convolve_depthwise"](
            address(a), a[0].size, address(filters), part.numbers.address, 0 if b is None else address(b), relu, address(z),
            z[0].size, len(z), part.rows.address, part.out.address, part.rows.size, part.taps.address, part.taps.size,
            self.filters,
        )  # fmt: skip
