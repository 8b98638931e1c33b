"""Max and average pooling: elementwise passes over the taps of a window. Images are (N, H, W, C), in any order in memory."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnlite.backend.masks import left_out, masked
from nnlite.backend.window import Array, Window

if TYPE_CHECKING:
    from nnlite.backend.base import Backend
    from nnlite.backend.memory import Memory

TERMS = 32  # that are added one after another
Taps = Sequence[tuple[slice, slice, slice]]


class _PoolPlan:
    """What both kinds of pooling share: padding, and spreading deltas back over overlapping windows."""

    def __init__(self, backend: "Backend", window: Window) -> None:
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


class MaxPoolPlan(_PoolPlan):
    """y = the largest of each window; of equal ones the first takes the delta."""

    def forward(self, a: Array, memory: "Memory", out: Array | None) -> Array:
        """(N, H, W, C) -> (N, OH, OW, C); keeps which tap won, one byte each."""
        xp, padded = self.backend.xp, self._pad(a, -math.inf)
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        best, *others = (padded[tap] for tap in self.window.taps)
        if memory.training:
            winner = memory.persist_batch("winner", y.shape, xp.uint8 if len(others) < 255 else xp.int32)
            winner[...] = 0
            mask, number = (
                self.backend.scratch_batch(name, y.shape, d) for name, d in (("mask", "bool"), ("tap", winner.dtype))
            )
        for k, candidate in enumerate(others, start=1):
            if memory.training:
                xp.multiply(xp.greater(candidate, best, out=mask), winner.dtype.type(k), out=number)
                xp.maximum(winner, number, out=winner)
            best = xp.maximum(best, candidate, out=y)
        if not others:
            y[...] = best
        return y

    def backward(self, delta: Array, memory: "Memory", out: Array | None) -> Array:
        """Each delta goes to the pixel that won its window."""
        xp, winner = self.backend.xp, memory.kept("winner")
        da = self._padded_target(len(delta), delta.dtype, out)
        mask, part = (self.backend.scratch_batch(name, delta.shape, d) for name, d in (("mask", "bool"), ("part", delta.dtype)))
        if not self.window.tiles_exactly:
            da[...] = 0
        for k, tap in enumerate(self.window.taps):
            target = da[tap]
            if self.window.tiles_exactly:
                masked(xp, delta, xp.equal(winner, k, out=mask), target)
            else:
                target += masked(xp, delta, xp.equal(winner, k, out=mask), part)
        return self._unpad(da, out)


def max_of_taps(xp: Any, taps: Sequence[Array], memory: "Memory", out: Array, name: str = "larger") -> None:
    """The largest of taps[0], taps[1], ..., into `out`; keeps which were larger than all before, as `name`."""
    larger = memory.persist(name, (len(taps) - 1, *out.shape), bool) if memory.training else None
    best = taps[0]
    for k, candidate in enumerate(taps[1:]):
        if larger is not None:
            xp.greater(candidate, best, out=larger[k])
        best = xp.maximum(best, candidate, out=out)


def spread_to_taps(xp: Any, delta: Array, memory: "Memory", taps: Sequence[Array], name: str = "larger") -> None:
    """The adjoint: each delta goes to the last tap that was larger than all before, into `taps`."""
    larger, rest = memory.kept(name), delta
    assert larger is not None
    for k in range(len(taps) - 1, 0, -1):
        masked(xp, rest, larger[k - 1], taps[k])
        rest = left_out(xp, rest, taps[k], taps[0])


class AveragePoolPlan(_PoolPlan):
    """y = the mean of each window, padded zeros counted. Many taps are added in halves, so that no digits are lost."""

    def forward(self, a: Array, out: Array | None) -> Array:
        """(N, H, W, C) -> (N, OH, OW, C)."""
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        self._add(self._pad(a, 0.0), self.window.taps, y)
        y /= len(self.window.taps)
        return y

    def backward(self, delta: Array, out: Array | None) -> Array:
        """Each delta is shared out evenly over its window."""
        share = self.backend.scratch_batch("part", delta.shape, delta.dtype)
        self.backend.xp.divide(delta, len(self.window.taps), out=share)
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
        """The adjoint: da = the sum of the shares that come to each pixel by these taps."""
        if len(taps) > TERMS and self.window.overlap > TERMS:
            half, rest = len(taps) // 2, self.backend.scratch_batch(f"{len(taps)} taps", da.shape, da.dtype)
            self._spread(share, taps[:half], da)
            self._spread(share, taps[half:], rest)
            da += rest
            return
        da[...] = 0
        for tap in taps:
            da[tap] += share
