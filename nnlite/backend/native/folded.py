"""Convolutions of wider windows, strides and dilations as r x r of stride 1, of images with more channels or samples."""

import math
from typing import Any

import numpy as np

from nnlite.backend.conv import ConvPlan
from nnlite.backend.cpu.winograd import conv_algorithm
from nnlite.backend.memory import Memory
from nnlite.backend.native.operations import NativeOperations, address, kernels, padded
from nnlite.backend.native.plans import Table
from nnlite.backend.native.winograd import TILES, NativeWinogradPlan, cheapest_tile
from nnlite.backend.window import Array, Window

_COPY = 4  # the cost of a copied value, in multiplications of a product
_WORTH = 0.75  # of the cost in place: tiles lose digits


class Fold:
    """Where the pixels of images go: rows, columns (samples, places, groups) have the pixel of each, or -1 for zeros."""

    def __init__(self, shape: tuple[int, ...], rows: Array, columns: Array) -> None:
        self.samples = len(rows) * len(columns)
        self.shape = (rows.shape[1], columns.shape[1], rows.shape[2] * columns.shape[2] * shape[2])
        self._tables = Table(rows), Table(columns)
        self._arguments = (*shape, self._tables[0].address, *rows.shape, self._tables[1].address, *columns.shape)

    def fold(self, images: Array, folded: Array) -> Array:
        kernels(images.dtype)["fold"](address(images), address(folded), len(images), *self._arguments)
        return folded

    def unfold(self, folded: Array, images: Array) -> Array:
        """The adjoint: a pixel is the sum of its copies."""
        kernels(images.dtype)["unfold"](address(folded), address(images), len(images), *self._arguments)
        return images


class Folds:
    """The folds of a window, for r x r taps. Along an axis with stride s and dilation d, one of which is 1,

        pixel s d y + m + d e - padding  ->  pixel y of sample m < d, channels e      output d y + m  ->  output y of sample m
        tap e + s w  ->  tap w < r, channels e

    for every e < k that is the first of r taps s apart.
    """

    def __init__(self, window: Window, filters: int, r: int) -> None:
        self.window, self.r, channels = window, r, window.in_shape[2]
        self.inputs = Fold(window.in_shape, *map(self._pixels, (0, 1)))
        self.taps = Fold((*window.kernel, channels), *map(self._taps, (0, 1)))
        self.outputs = Fold((*window.out_size, filters), *map(self._outputs, (0, 1)))
        self.inner = Window.of(self.inputs.shape, r, 1)

    def _pixels(self, axis: int) -> Array:
        stride, dilation = self.window.stride[axis], self.window.dilation[axis]
        sample, place, group = np.ix_(range(dilation), range(self._size(axis) + self.r - 1), self._firsts(axis))
        at = stride * dilation * place + sample + dilation * group - self.window.padding[axis][0]
        return np.where((at >= 0) & (at < self.window.in_shape[axis]), at, -1)

    def _taps(self, axis: int) -> Array:
        at = np.add.outer(np.arange(self.r) * self.window.stride[axis], self._firsts(axis))[None]
        return np.where(at < self.window.kernel[axis], at, -1)

    def _outputs(self, axis: int) -> Array:
        dilation = self.window.dilation[axis]
        at = np.add.outer(np.arange(dilation), dilation * np.arange(self._size(axis)))[..., None]
        return np.where(at < self.window.out_size[axis], at, -1)

    def _size(self, axis: int) -> int:
        """The outputs of a sample."""
        return -(-self.window.out_size[axis] // self.window.dilation[axis])

    def _firsts(self, axis: int) -> list[int]:
        return [tap for tap in range(self.window.kernel[axis]) if tap // self.window.stride[axis] % self.r == 0]


class FoldedPlan(ConvPlan):
    """A convolution by tiles of folded images. Every gradient is the adjoint."""

    backend: NativeOperations

    def __init__(self, backend: NativeOperations, window: Window, filters: int, bias: bool, folds: Folds, m: int) -> None:
        super().__init__(backend, window, filters, 1, bias)
        self.folds, self.tiles = folds, NativeWinogradPlan(backend, folds.inner, filters, bias, m)
        self.weights = self.tiles.weights
        self.temporaries = 2 * folds.inputs.samples * (math.prod(folds.inputs.shape) + math.prod(folds.outputs.shape))

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        return self.tiles.prepare(self._folded("filters", self.folds.taps, W), b, memory)

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        a = self.backend.given(a, filters[0].dtype, self.window.in_shape)
        z = self.backend.room(out, (len(a), *self.out_shape), a.dtype)
        folded = self._folded("inputs", self.folds.inputs, a)
        if self.folds.outputs.samples == 1:
            return self.tiles.forward(folded, filters, memory, z, relu)
        parts = self._room("outputs", self.folds.outputs, len(a), a.dtype)
        return self.folds.outputs.unfold(self.tiles.forward(folded, filters, memory, parts, relu), z)

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        self.gradients(a, delta, None, memory, dW, db, None)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        delta = self.backend.given(delta, filters[1].dtype, self.out_shape)
        room = self._room("inputs", self.folds.inputs, len(delta), delta.dtype)
        da = self.tiles.input_gradient(self._delta(delta), filters, memory, room)
        return self.folds.inputs.unfold(da, self.backend.room(out, (len(delta), *self.window.in_shape), delta.dtype))

    def gradients(
        self, a: Array, delta: Array, filters: Any, memory: Memory, dW: Array, db: Array | None, out: Array | None
    ) -> Array | None:
        """Both gradients; without `filters` only that of the weights."""
        a = self.backend.given(a, dW.dtype, self.window.in_shape)
        delta = self.backend.given(delta, dW.dtype, self.out_shape)
        of_taps = self._room("filters", self.folds.taps, len(dW), dW.dtype)
        room = None if filters is None else self._room("input deltas", self.folds.inputs, len(a), dW.dtype)
        folded = self._folded("inputs", self.folds.inputs, a)
        da = self.tiles.gradients(folded, self._delta(delta), filters, memory, of_taps, None, room)
        self.folds.taps.unfold(of_taps, dW)
        if db is not None:
            self.backend.sum_columns(self.backend.rows(delta), db)
        if da is None:
            return None
        return self.folds.inputs.unfold(da, self.backend.room(out, a.shape, a.dtype))

    def _delta(self, delta: Array) -> Array:
        outputs = self.folds.outputs
        return delta if outputs.samples == 1 else self._folded("deltas", outputs, delta)

    def _folded(self, name: str, fold: Fold, images: Array) -> Array:
        return fold.fold(images, self._room(name, fold, len(images), images.dtype))

    def _room(self, name: str, fold: Fold, images: int, dtype: Any) -> Array:
        return self.backend.scratch(f"folded {name}", (images * fold.samples, *fold.shape), dtype)


def best_fold(window: Window, filters: int) -> tuple[Folds, int] | None:
    """The folds that make this convolution cheapest and m of their tiles, or None for pixels in place."""
    (sh, sw), (dh, dw) = window.stride, window.dilation
    if conv_algorithm.name == "direct" or sh > 1 < dh or sw > 1 < dw:
        return None
    tried = [(*_cost(folds := Folds(window, filters, r), filters), folds) for r in TILES]
    cost, m, folds = min(tried, key=lambda one: one[0])
    in_place = math.prod(window.kernel) * window.in_shape[2] * padded(filters) * math.prod(window.out_size)
    return (folds, m) if cost < _WORTH * in_place else None


def _cost(folds: Folds, filters: int) -> tuple[float, int]:
    """Of an image, in multiplications of a product, and m of its tiles."""
    m, tiles = cheapest_tile(folds.inner, filters)
    copied: int = math.prod(folds.inputs.shape) + math.prod(folds.outputs.shape)
    return folds.inputs.samples * (tiles + _COPY * copied), m
