"""Transforms of overlapping tiles along one axis of images, in place: products of a small matrix with rows of pixels.

Pixels are x (outer, size, inner), tiles y (k, outer, count, inner); outer and inner are the remaining axes. Along a row
of the images, outer is the height, inner N C; along a column, outer is the transformed rows, inner everything in a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from nnlite.backend.cpu.products import quiet_matmul
from nnlite.backend.operations import Operations
from nnlite.backend.window import Array


@dataclass(frozen=True)
class Part:
    """Tiles with the same number of places inside the image, so that they are one product.

    places: those of all, or of the first and of the last. first: the pixel of the first place; pitch: pixels from tile to tile.
    """

    tiles: slice
    places: tuple[slice, ...]
    first: int
    pitch: int

    @cached_property
    def size(self) -> int:
        """Places in the image."""
        return int(self.places[0].stop - self.places[0].start)

    @cached_property
    def count(self) -> int:
        """How many tiles."""
        return len(range(self.tiles.start, self.tiles.stop, self.tiles.step or 1))


class Axis:
    """The tiles along one axis of an image: tile t takes m + 2 pixels from m t - pad on, and gives m outputs from m t on."""

    def __init__(self, backend: Operations, m: int, pad: int, size: int, outputs: int) -> None:
        self.backend, self.m, self.pad, self.size, self.count = backend, m, pad, size, -(-outputs // m)
        self.inputs, self.outputs = self._parts(m + 2, pad, size), self._parts(m, 0, outputs)
        # Places that belong to one tile, and the two where tiles overlap; a single tile does not share its pixels.
        own = m if self.count > 1 else m + 2 - pad
        self.own, self.covered = self._parts(own, 0, size), own + m * (self.count - 1)
        self.others = [i for i in range(m + 2) if not pad <= i < pad + m]

    def windows(self, x: Array, part: Part) -> Array:
        """(outer, tiles, places, inner)."""
        (outer, _, inner), (s, pixel, value) = x.shape, x.strides
        shape, strides = (outer, part.count, part.size, inner), (s, part.pitch * pixel, pixel, value)
        return self.backend.strided(x, shape, strides, part.first)

    def tiles(self, y: Array, part: Part) -> Array:
        """(outer, tiles, k, inner)."""
        return y.transpose(1, 2, 0, 3)[:, part.tiles]

    def met(self, i: int) -> tuple[slice, slice]:
        """The pixels at place i of a tile, and the tiles they belong to."""
        shift = i - self.pad
        first, last = -(shift // self.m) if shift < 0 else 0, min(self.count, (self.size - 1 - shift) // self.m + 1)
        start = self.m * first + shift
        return slice(start, start + self.m * (last - first - 1) + 1 if last > first else start, self.m), slice(first, last)

    def _parts(self, length: int, pad: int, size: int) -> list[Part]:
        parts = list[Part]()
        for t in range(self.count):
            start = self.m * t - pad
            places = slice(max(0, -start), min(length, size - start))
            if parts and parts[-1].places == (places,):
                parts[-1] = replace(parts[-1], tiles=slice(parts[-1].tiles.start, t + 1))
            elif places.start < places.stop:
                parts.append(Part(slice(t, t + 1), (places,), start + places.start, self.m))
        if len(parts) > 1 and parts[0].size == parts[-1].size:  # one at each border
            (first, *inside, last), step = parts, self.count - 1
            both = Part(slice(0, step + 1, step), first.places + last.places, first.first, last.first - first.first)
            return [both, *inside]
        return parts


class _Products:
    """A product for each part of the tiles. The views of permanent arrays are made once: they are slow in Python."""

    def __init__(self, axis: Axis, parts: list[Part], matrices: Iterable[Array], x: Array | None, y: Array) -> None:
        self.axis = axis
        self.products = [
            (_product(T, y), part, None if x is None else axis.windows(x, part), axis.tiles(y, part))
            for part, T in zip(parts, matrices, strict=True)
        ]


class ToTiles(_Products):
    """y = T x for each tile along an axis."""

    def __init__(self, axis: Axis, parts: list[Part], T: Array, x: Array | None, y: Array) -> None:
        columns = (axis.backend.xp.stack([T[:, places] for places in part.places]) for part in parts)
        super().__init__(axis, parts, columns, x, y)

    def __call__(self, x: Array | None = None, y: Array | None = None) -> None:
        for multiply, part, windows, tiles in self.products:
            source = windows if x is None else self.axis.windows(x, part)
            multiply(source, out=tiles if y is None else self.axis.tiles(y, part))


class FromTiles(_Products):
    """x = T y for each tile along an axis, tiles side by side; T has a row for each place, from `skip` on."""

    def __init__(self, axis: Axis, parts: list[Part], T: Array, y: Array, x: Array | None, skip: int = 0) -> None:
        rows = (T[skip + places.start : skip + places.stop] for part in parts for places in part.places)  # one a part
        super().__init__(axis, parts, rows, x, y)

    def __call__(self, x: Array | None = None) -> None:
        for multiply, part, windows, tiles in self.products:
            multiply(tiles, out=windows if x is None else self.axis.windows(x, part))


class AddTiles:
    """The adjoint of ToTiles: each pixel is the sum over its tiles; T (m + 2, k), rest: room for (2, outer, count, inner)."""

    def __init__(self, axis: Axis, T: Array, y: Array, x: Array | None, rest: Array) -> None:
        self.axis, self.x, self.xp = axis, x, axis.backend.xp
        self.own = FromTiles(axis, axis.own, T, y, x, axis.pad)
        self.multiply = _product(axis.backend.xp.ascontiguousarray(T[axis.others]), y)
        self.tiles, self.rest = y.transpose(1, 2, 0, 3), rest.transpose(1, 2, 0, 3)
        met = [axis.met(i) for i in axis.others]
        self.sums = [
            (pixels, part[:, tiles])
            for part, (pixels, tiles) in zip(rest, met, strict=True)
            if tiles.start < tiles.stop and axis.count > 1
        ]

    def __call__(self, given: Array | None = None) -> None:
        self.own(given)
        x: Array = self.x if given is None else given
        if self.axis.covered < self.axis.size:
            x[:, self.axis.covered :] = 0
        if self.sums:
            self.multiply(self.tiles, out=self.rest)
        for pixels, part in self.sums:
            target = x[:, pixels]
            self.xp.add(target, part, out=target)


def _product(T: Array, y: Array) -> Any:
    """T times stacks of matrices, with y's inner values as columns."""
    return partial(quiet_matmul if 1 in (T.shape[-2], y.shape[3]) else np.matmul, T)
