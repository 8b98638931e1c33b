"""Layers that only change the shape of a sample."""

import math

from nnlite.backend import Array
from nnlite.errors import ShapeError
from nnlite.layers.base import Context, Layer, Shape


class Flatten(Layer):
    """(N, ...) -> (N, n): each sample as a vector, in row-major order."""

    keeps, shares_memory = None, True
    gives_probabilities = None

    def build(self, in_shape: Shape) -> Shape:
        return (math.prod(in_shape),)

    def forward(self, a: Array, ctx: Context) -> Array:
        return a.reshape(len(a), *self.out_shape)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return delta.reshape(len(delta), *self.in_shape)


class Reshape(Layer):
    """(N, ...) -> (N, *shape), in row-major order. One entry of shape may be -1: whatever is left.

    Raises ShapeError where the numbers of values differ.
    """

    keeps, shares_memory = None, True
    gives_probabilities = None

    def __init__(self, shape: Shape) -> None:
        self.shape = tuple(shape)

    def build(self, in_shape: Shape) -> Shape:
        size, known = math.prod(in_shape), math.prod(n for n in self.shape if n != -1)
        shape = tuple(size // known if n == -1 and known else n for n in self.shape)
        if self.shape.count(-1) > 1 or min(shape, default=1) < 1 or math.prod(shape) != size:
            raise ShapeError(f"cannot give {in_shape}, {size} values, the shape {self.shape}")
        return shape

    def forward(self, a: Array, ctx: Context) -> Array:
        return a.reshape(len(a), *self.out_shape)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return delta.reshape(len(delta), *self.in_shape)
