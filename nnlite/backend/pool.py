"""Max and average pooling. Images are (N, H, W, C), in any order in memory."""

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from nnlite.backend.masks import left_out, masked
from nnlite.backend.memory import Memory
from nnlite.backend.operations import Operations
from nnlite.backend.sums import TERMS
from nnlite.backend.window import Array, Window

# Taps of a window up to which visiting them one by one is fastest, forward and backward.
FEW, FEW_BACKWARD = 9, 49
Taps = Sequence[tuple[slice, slice, slice]]


class _PoolPlan:
    """What all kinds of pooling share."""

    def __init__(self, backend: Operations, window: Window) -> None:
        self.backend, self.window = backend, window
        self.out_shape = (*window.out_size, window.in_shape[2])

    def _pad(self, a: Array, value: float) -> Array:
        if not self.window.is_padded:
            return a
        padded = self.backend.scratch_batch("padded", (len(a), *self.window.padded_size, a.shape[3]), a.dtype)
        for border in self.window.borders():
            padded[border] = value
        padded[self.window.interior] = a
        return padded

    def _out(self, shape: tuple[int, ...], dtype: Any, out: Array | None) -> Array:
        return self.backend.empty_batch(shape, dtype) if out is None else out

    def _unpad(self, padded: Array, out: Array | None) -> Array:
        if not self.window.is_padded:
            return padded
        out = self._out((len(padded), *self.window.in_shape), padded.dtype, out)
        out[...] = padded[self.window.interior]
        return out

    def _padded_target(self, n: int, dtype: Any, out: Array | None) -> Array:
        shape = (n, *self.window.padded_size, self.window.in_shape[2])
        return self.backend.scratch_batch("padded", shape, dtype) if self.window.is_padded else self._out(shape, dtype, out)


class Tap(NamedTuple):
    """A place in a window: its number, counted from the last, the outputs with a pixel there, and these pixels."""

    number: int
    outputs: tuple[slice, ...]
    pixels: tuple[slice, ...]


class MaxPoolPlan(_PoolPlan):
    """y = the largest pixel of each window. The delta goes to the first of equal pixels, and to the first NaN if any.

    Padding is never read: a tap has only the outputs whose pixel there is in the image. Taps are visited from last to first,
    so that of equal pixels the one with the larger number wins. In a window with many taps the largest pixel of each row of
    the window is found first, then the largest of these.
    """

    is_large = False  # a large window is not worth joining with the convolution before it

    def __init__(self, backend: Operations, window: Window) -> None:
        super().__init__(backend, window)
        (kh, kw), every = window.kernel, slice(None)
        rows, columns = window.taps_inside(0), window.taps_inside(1)
        self.rows = [Tap((kh - 1 - i) * kw, (every, y), (every, pixels)) for i, y, pixels in rows]
        self.columns = [Tap(kw - 1 - j, (every, every, x), (every, every, pixels)) for j, x, pixels in columns]
        self.count, (sh, sw) = kh * kw, window.stride
        self.overlaps = kh > sh or kw > sw
        self.takes_apart = self.count > FEW or kw * sh + kh < self.count  # where that compares fewer values
        self.number = f"uint{8 if self.count <= 1 << 8 else 16 if self.count <= 1 << 16 else 32}"

    @cached_property
    def all_taps(self) -> list[Tap]:
        """All taps, row by row."""
        return [
            Tap(row.number + column.number, (*row.outputs, column.outputs[2]), (*row.pixels, column.pixels[2]))
            for row, column in product(self.rows, self.columns)
        ]

    def forward(self, a: Array, memory: Memory, out: Array | None) -> Array:
        """(N, H, W, C) -> (N, OH, OW, C); keeps the number of the tap that won."""
        xp, y = self.backend.xp, self._out((len(a), *self.out_shape), a.dtype, out)
        winner = memory.persist_batch("winner", y.shape, self.number) if memory.needs_backward else None
        a = self._laid_out(a) if self.overlaps else a
        self._largest(a, y, winner)
        if winner is not None:
            is_nan = xp.isnan(y, out=self.backend.scratch_batch("nan", y.shape, "bool"))
            if is_nan.any():  # it wins, but compares as larger than nothing
                of_nan = xp.empty_like(winner)
                self._largest(xp.isnan(a).astype(a.dtype), xp.empty_like(y), of_nan)
                xp.copyto(winner, of_nan, where=is_nan)
        return y

    def _laid_out(self, a: Array) -> Array:
        """a, or a copy, so that what is read several times has the memory order of the outputs."""
        copy = self.backend.scratch_batch("laid out", a.shape, a.dtype)
        if a.strides == copy.strides:
            return a
        copy[...] = a
        return copy

    def _largest(self, a: Array, y: Array, winner: Array | None) -> None:
        down, across = (any(pads) for pads in self.window.padding)
        if not self.takes_apart:
            self._sweep(self.all_taps, down or across, a, y, winner)
            return
        shape = (*a.shape[:2], *y.shape[2:])
        of_rows = self.backend.scratch_batch("largest of rows", shape, a.dtype)
        winners = None if winner is None else self.backend.scratch_batch("winners of rows", shape, self.number)
        self._sweep(self.columns, across, a, of_rows, winners)
        self._sweep(self.rows, down, of_rows, y, winner, winners)

    def _sweep(
        self, taps: list[Tap], padded: bool, a: Array, y: Array, winner: Array | None, numbers: Array | None = None
    ) -> None:
        """y = the largest of a at these taps; winner: the number of that tap, plus what `numbers` has for that pixel of a."""
        xp, best = self.backend.xp, y
        if winner is not None:
            mask, room = (self.backend.scratch_batch(name, y.shape, d) for name, d in (("mask", "bool"), ("room", self.number)))
            winner[...] = 0
        if padded:
            y[...] = -math.inf
        else:  # all outputs meet the last tap
            *taps, last = taps
            best = a[last.pixels]
            if winner is not None and numbers is not None:
                winner[...] = numbers[last.pixels]
        for number, outputs, pixels in reversed(taps):
            candidate, current = a[pixels], best[outputs]
            if winner is not None:
                own = winner.dtype.type(number) if numbers is None else xp.add(numbers[pixels], number, out=room[outputs])
                won = xp.greater_equal(candidate, current, out=mask[outputs])
                xp.maximum(winner[outputs], xp.multiply(won, own, out=room[outputs]), out=winner[outputs])
            xp.maximum(candidate, current, out=y[outputs])
            best = y
        if best is not y:
            y[...] = best

    def backward(self, delta: Array, memory: Memory, out: Array | None) -> Array:
        """Send each delta to the pixel that won its window."""
        winner, tiles = memory.kept("winner"), self.window.tiles_exactly
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        if self.count > FEW_BACKWARD:
            da[...] = self._scattered(delta, winner)
            return da
        xp, size = self.backend.xp, delta.shape
        mask, part = (self.backend.scratch_batch(name, size, d) for name, d in (("mask", "bool"), ("part", delta.dtype)))
        if not tiles:
            da[...] = 0
        for number, outputs, pixels in self.all_taps:
            won, target = xp.equal(winner[outputs], number, out=mask[outputs]), da[pixels]  # type: ignore[index]
            if tiles:
                masked(xp, delta[outputs], won, target)
            else:
                target += masked(xp, delta[outputs], won, part[outputs])
        return da

    def _scattered(self, delta: Array, winner: Any) -> Array:
        """Add each delta to its pixel, whose place in memory follows from the number of the tap."""
        xp, window, (n, *_) = self.backend.xp, self.window, delta.shape
        flat = self.backend.zeros(n * math.prod(window.in_shape), delta.dtype)
        da = self.backend.lay_out(flat, (n, *window.in_shape))
        taps = xp.divmod(self.count - 1 - winner.astype("int64"), window.kernel[1])
        images, *places, channels = xp.ogrid[tuple(slice(size) for size in delta.shape)]
        axes = zip(places, taps, window.stride, window.dilation, window.padding, strict=True)
        pixels = [place * stride + tap * dilation - before for place, tap, stride, dilation, (before, _) in axes]
        index = sum(i * (step // da.itemsize) for i, step in zip((images, *pixels, channels), da.strides, strict=True))
        xp.add.at(flat, index.ravel(), delta.ravel())
        return da


class BlockMaxPoolPlan(_PoolPlan):
    """Max-pooling of large adjacent windows, such as whole images: the image is cut into blocks, which are reduced."""

    is_large = True

    def forward(self, a: Array, memory: Memory, out: Array | None) -> Array:
        """(N, H, W, C) -> (N, OH, OW, C); keeps row and column of the pixels that won."""
        xp, (kh, kw), (oh, ow, c) = self.backend.xp, self.window.kernel, self.out_shape
        blocks = a[:, : oh * kh, : ow * kw].reshape(len(a), oh, kh, ow, kw, c)
        of_rows = blocks.max(axis=4)
        y = of_rows.max(axis=2, out=self._out((len(a), oh, ow, c), a.dtype, out))
        if memory.needs_backward:
            i = of_rows.argmax(axis=2)
            row = xp.take_along_axis(blocks, i[:, :, None, :, None], axis=2)  # (N, OH, 1, OW, kw, C)
            j = row.argmax(axis=4)[:, :, 0]
            _, places_down, places_across, _ = xp.ogrid[tuple(slice(size) for size in y.shape)]
            memory.keep("winner", (places_down * kh + i, places_across * kw + j))
        return y

    def backward(self, delta: Array, memory: Memory, out: Array | None) -> Array:
        """Send each delta to the pixel that won its window."""
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        da[...] = 0
        images, _, _, channels = self.backend.xp.ogrid[tuple(slice(size) for size in delta.shape)]
        rows, columns = memory.kept("winner")  # type: ignore[misc]
        da[images, rows, columns, channels] = delta
        return da


def max_of_taps(xp: Any, taps: Sequence[Array], memory: Memory, out: Array, name: str = "larger") -> None:
    """The largest of taps[0], taps[1], ..., into `out`; keeps, as `name`, which were larger than all before."""
    larger = memory.persist(name, (len(taps) - 1, *out.shape), bool) if memory.needs_backward else None
    best = taps[0]
    for k, candidate in enumerate(taps[1:]):
        if larger is not None:
            xp.greater(candidate, best, out=larger[k])
        best = xp.maximum(best, candidate, out=out)


def spread_to_taps(xp: Any, delta: Array, memory: Memory, taps: Sequence[Array], name: str = "larger") -> None:
    """The adjoint: each delta goes to the last tap that was larger than all before, into `taps`."""
    larger, rest = memory.kept(name), delta
    assert larger is not None
    for k in range(len(taps) - 1, 0, -1):
        masked(xp, rest, larger[k - 1], taps[k])
        rest = left_out(xp, rest, taps[k], taps[0])


class AveragePoolPlan(_PoolPlan):
    """y = the mean of each window. Many taps are added pairwise, so that no digits are lost.

    count_padding: whether it is over padded zeros, too, those of `window.beyond` excepted.
    """

    def __init__(self, backend: Operations, window: Window, count_padding: bool = True) -> None:
        super().__init__(backend, window)
        counts = [window.taps_met(axis, count_padding) for axis in (0, 1)]
        self.is_even = all(set(met) == {k} for met, k in zip(counts, window.kernel, strict=True))
        table = [[[i * j] for j in counts[1]] for i in counts[0]]
        self.divisor: Any = len(window.taps) if self.is_even else backend.asarray(table, "float32")

    def forward(self, a: Array, out: Array | None) -> Array:
        """(N, H, W, C) -> (N, OH, OW, C)."""
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        self._add(self._pad(a, 0.0), self.window.taps, y)
        y /= self.divisor
        return y

    def backward(self, delta: Array, out: Array | None) -> Array:
        """Spread each delta evenly over its window."""
        share = self.backend.scratch_batch("part", delta.shape, delta.dtype)
        self.backend.xp.divide(delta, self.divisor, out=share)
        da = self._padded_target(len(delta), delta.dtype, out)
        self._spread(share, self.window.taps, da)
        return self._unpad(da, out)

    def _add(self, padded: Array, taps: Taps, y: Array) -> None:
        """y = the sum of these taps."""
        if len(taps) > TERMS:
            half, rest = len(taps) // 2, self.backend.scratch_batch(f"{len(taps)} taps", y.shape, y.dtype)
            self._add(padded, taps[:half], y)
            self._add(padded, taps[half:], rest)
            y += rest
            return
        y[...] = padded[taps[0]]
        for tap in taps[1:]:
            y += padded[tap]

    def _spread(self, share: Array, taps: Taps, da: Array) -> None:
        """The adjoint: da = the sum of the shares that reach each pixel through these taps."""
        if len(taps) > TERMS and self.window.overlap > TERMS:
            half, rest = len(taps) // 2, self.backend.scratch_batch(f"{len(taps)} taps", da.shape, da.dtype)
            self._spread(share, taps[:half], da)
            self._spread(share, taps[half:], rest)
            da += rest
            return
        da[...] = 0
        for tap in taps:
            da[tap] += share
