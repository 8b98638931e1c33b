"""Layers that only change the shape of a sample."""

import math

from nnlite.arguments import is_whole, shortened
from nnlite.backend import Array
from nnlite.errors import ShapeError
from nnlite.layers.base import Context, Layer, Shape


class Reshape(Layer):
    """(N, ...) -> (N, *shape), in row-major order. One entry of shape may be -1: it is inferred.

    Raises ShapeError for an invalid shape, and if the numbers of values differ.
    """

    keeps, shares_memory, gives_probabilities = None, True, None

    def __init__(self, shape: Shape) -> None:
        entries = shape if isinstance(shape, list | tuple) else [None]
        if not all(is_whole(n) and (n > 0 or n == -1) for n in entries) or entries.count(-1) > 1:
            raise ShapeError(f"shape must be like (4, -1): whole numbers, one of them -1 at most, not {shortened(shape)}")
        self.shape = shape

    def build(self, in_shape: Shape) -> Shape:
        size, known = math.prod(in_shape), math.prod(n for n in self.shape if n != -1)
        shape = tuple(size // known if n == -1 else n for n in self.shape)
        if math.prod(shape) != size:
            raise ShapeError(f"cannot give {shortened(in_shape)}, {size} values, the shape {shortened(self.shape)}")
        return shape

    def forward(self, a: Array, ctx: Context) -> Array:
        return a.reshape(len(a), *self.out_shape)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return delta.reshape(len(delta), *self.in_shape)


class Flatten(Reshape):
    """(N, ...) -> (N, n): each sample as a vector, in row-major order."""

    def __init__(self) -> None:
        super().__init__((-1,))
