"""The axes of a value in a file, and of the same value here: permutations and joined axes, without moving a number.

A file transposes and reshapes freely, nnlite's layers only join and split axes. So a value's axes are followed as parts:
of images behind Flatten, ((C, H, W),) in the file and ((H, W, C),) here, are one axis of three parts, and the Dense that reads
them permutes its columns. An axis of length 1 has no parts.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from nnlite.backend import Array
from nnlite.interop.onnx.operation import Unsupported
from nnlite.layers.base import Shape


class Part:
    """An axis, or a factor of one.   size: above 1"""

    def __init__(self, size: int) -> None:
        self.size = size


Axis = tuple[Part, ...]  # in row-major order


def axis(size: int) -> Axis:
    """An axis of one part."""
    return (Part(size),) if size != 1 else ()


def flat(axes: Iterable[Axis]) -> Axis:
    """All parts, one after another."""
    return tuple(part for parts in axes for part in parts)


def lengths(axes: Iterable[Axis]) -> Shape:
    """The length of each axis."""
    return tuple(math.prod(part.size for part in parts) for parts in axes)


def places(file: Axis, here: Axis) -> Array:
    """Where the values of an axis stored in the order `here` are in the file: stored = in_file[places]."""
    numbers = np.arange(math.prod(part.size for part in file)).reshape([part.size for part in file])
    return numbers.transpose([file.index(part) for part in here]).reshape(-1)


class Axes:
    """file: as the file has them, without the batch.   here: as the layers have them."""

    def __init__(self, file: Sequence[Axis], here: Sequence[Axis]) -> None:
        self.file, self.here = tuple(file), tuple(here)

    @classmethod
    def ordered(cls, shape: Shape, order: Sequence[int]) -> "Axes":
        """New axes of a shape in the file; here in this order."""
        file = [axis(n) for n in shape]
        return cls(file, [file[i] for i in order])

    @property
    def shape(self) -> Shape:
        """The shape of a sample in the file."""
        return lengths(self.file)

    def transposed(self, perm: Sequence[int]) -> "Axes":
        """The file's axes in another order."""
        return Axes([self.file[i] for i in perm], self.here)

    def reshaped(self, shape: Shape) -> "Axes":
        """The file's axes joined and split, as a row-major reshape does."""
        axes, file, rest = self, list[Axis](), list(flat(self.file))
        for n in shape:
            parts, size = list[Part](), 1
            while size < n:
                part = rest.pop(0)
                size *= part.size
                if size > n:
                    behind, remainder = divmod(size, n)
                    if remainder or part.size % behind:
                        raise Unsupported(f"it joins and splits axes of {self.shape} at once, to {tuple(shape)}")
                    pair = Part(part.size // behind), Part(behind)
                    axes, rest, part, size = axes._replaced(part, pair), [pair[1], *rest], pair[0], n
                parts.append(part)
            file.append(tuple(parts))
        return Axes(file, axes.here)._joined()

    def _replaced(self, part: Part, by: Axis) -> "Axes":
        split: list[list[Axis]] = [
            [tuple(new for old in parts for new in (by if old is part else (old,))) for parts in axes]
            for axes in (self.file, self.here)
        ]
        return Axes(*split)

    def _joined(self) -> "Axes":
        """Parts that are neighbours in the file and here as one."""
        neighbours = {pair for parts in self.here for pair in pairwise(parts)}
        for parts in self.file:
            for pair in pairwise(parts):
                if pair in neighbours:
                    whole = Part(pair[0].size * pair[1].size)
                    return self._replaced(pair[1], ())._replaced(pair[0], (whole,))._joined()
        return self

    def like(self, other: "Axes") -> list[Axis]:
        """The axes `here` of a value of the same shape in the file that is stored in the order of `other`."""
        mine, theirs = flat(self.file), flat(other.file)
        sizes = [[part.size for part in parts] for parts in (mine, theirs)]
        if self.shape != other.shape or sizes[0] != sizes[1]:
            raise Unsupported(f"its inputs have the shapes {other.shape} and {self.shape}, or different orders")
        return [tuple(mine[theirs.index(part)] for part in parts) for parts in other.here]
