"""Pooling by the kernels of `pool.c`: tables say which places each result depends on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from nnlite.backend.memory import Memory
from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.pool import AveragePoolPlan, MaxPoolPlan
from nnlite.backend.window import Array, Window

_NARROW = 8  # channels: of fewer, those of all images are pooled side by side


class Places(NamedTuple):
    """The results (H, W, C) of one image, and tables of the places that they depend on in an image of another shape."""

    shape: tuple[int, int, int]
    rows: Array
    columns: Array

    def gather(self, name: str, sources: list[Array], *results: Array | None) -> None:
        """Call the kernel of this name for a batch; of the results, batches are written and other arrays read."""
        n, channels = len(sources[0]), self.shape[2]
        if n < 2 or channels >= _NARROW:
            self._call(name, sources, results)
            return
        beside = [np.empty((1, *self.shape[:2], n * channels), r.dtype) if _is_batch(r) else r for r in results]
        self._call(name, [_beside(a) for a in sources], beside)
        for result, made in zip(results, beside, strict=True):
            if _is_batch(result) and made is not None:
                result[...] = made.reshape(*self.shape[:2], n, channels).transpose(2, 0, 1, 3)

    def _call(self, name: str, sources: list[Array], results: Sequence[Any]) -> None:
        (height, width), source = self.shape[:2], sources[0]
        kernels(source.dtype)[name](
            *map(address, sources),
            source[0].size,
            len(source),
            source.shape[3],
            address(self.rows),
            height,
            address(self.columns),
            width,
            *(None if result is None else address(result) for result in results),
        )


def _is_batch(a: Any) -> TypeGuard[Array]:
    return a is not None and a.ndim == 4


def _beside(a: Array) -> Array:
    """Images (N, H, W, C) as one of N C channels."""
    return np.ascontiguousarray(a.transpose(1, 2, 0, 3)).reshape(1, *a.shape[1:3], -1)


def places_of(window: Window) -> tuple[Places, Places]:
    """Of each output its pixels, and of each pixel its outputs."""
    inputs, outputs = window.in_shape, (*window.out_size, window.in_shape[2])
    forward, backward = list[Array](), list[Array]()
    for axis, number in ((0, window.kernel[1]), (1, 1)):
        taps, places, pixels = _meetings(window, axis)
        of_pixel, of_output = (math.prod(shape[axis + 1 : 2]) for shape in (inputs, outputs))
        forward.append(_table(outputs[axis], places, of_pixel * pixels, number * taps))
        backward.append(_table(inputs[axis], pixels, of_output * places, number * taps))
    return Places(outputs, *forward), Places(inputs, *backward)


def _meetings(window: Window, axis: int) -> Any:
    """Along an axis: taps, outputs and pixels that meet."""
    parts = [
        (tap, outputs.start, np.arange(pixels.start, pixels.stop, pixels.step))
        for tap, outputs, pixels in window.taps_inside(axis)
    ]
    return (
        np.concatenate([np.full(len(pixels), tap) for tap, _, pixels in parts]),
        np.concatenate([np.arange(len(pixels)) + start for _, start, pixels in parts]),
        np.concatenate([pixels for *_, pixels in parts]),
    )


def _table(size: int, results: Array, offsets: Array, taps: Array) -> Array:
    """The table of `pool.c`: where the list of each result begins, then all lists."""
    begin = size + 1 + 2 * np.concatenate([[0], np.cumsum(np.bincount(results, minlength=size))])
    pairs = np.stack([offsets, taps], axis=1)[np.argsort(results, kind="stable")]
    return np.concatenate([begin, pairs.ravel()]).astype(np.int64)


class NativeMaxPoolPlan(MaxPoolPlan):
    """Max-pooling: the winning tap is kept; each pixel then gathers from the windows that contain it."""

    backend: NativeOperations

    def __init__(self, backend: NativeOperations, window: Window) -> None:
        super().__init__(backend, window)
        self.places = places_of(window)

    def forward(self, a: Array, memory: Memory, out: Array | None) -> Array:
        y = self.backend.room(out, (len(a), *self.out_shape), a.dtype)
        winner = memory.persist("winner", y.shape, f"int{8 * y.itemsize}") if memory.needs_backward else None
        self.places[0].gather("max_pool", [self.backend.given(a, shape=self.window.in_shape)], y, winner)
        return self.backend.written(y, out)

    def backward(self, delta: Array, memory: Memory, out: Array | None) -> Array:
        winner: Any = memory.kept("winner")
        delta = self.backend.given(delta, np.dtype(f"f{winner.itemsize}"), self.out_shape)  # as wide as the winners
        da = self.backend.room(out, (len(delta), *self.window.in_shape), delta.dtype)
        self.places[1].gather("max_pool_delta", [delta, winner], da)
        return self.backend.written(da, out)


class NativeAveragePoolPlan(AveragePoolPlan):
    """Average-pooling: sums over windows, and of the deltas of windows over pixels."""

    backend: NativeOperations

    def __init__(self, backend: NativeOperations, window: Window, count_padding: bool = True) -> None:
        super().__init__(backend, window, count_padding)
        self.places = places_of(window)
        self.counts = np.ascontiguousarray(np.broadcast_to(np.asarray(self.divisor, np.float64), (*window.out_size, 1)))

    def forward(self, a: Array, out: Array | None) -> Array:
        y = self.backend.room(out, (len(a), *self.out_shape), a.dtype)
        self.places[0].gather("sum_pool", [self.backend.given(a, shape=self.window.in_shape)], self.counts, y)
        return self.backend.written(y, out)

    def backward(self, delta: Array, out: Array | None) -> Array:
        share = np.divide(delta, self.divisor, out=self.backend.scratch_batch("part", delta.shape, delta.dtype))
        da = self.backend.room(out, (len(delta), *self.window.in_shape), delta.dtype)
        self.places[1].gather("sum_pool", [share], None, da)
        return self.backend.written(da, out)
