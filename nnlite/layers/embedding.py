"""Vectors for ids: characters, words, categories."""

from nnlite.arguments import shortened, whole
from nnlite.backend import Array
from nnlite.errors import DataError
from nnlite.init import initialiser
from nnlite.layers.base import Context, Init, Layer, Shape


class Embedding(Layer):
    """y = W[a]: row a of W for each id.     a: (N, ...), integers from 0 to n - 1   W: (n, dim)   y: (N, ..., dim)

    Backward: dJ/dW[i] = sum of delta where a = i, in float64 in the order of the places. Ids have no dJ/da.

    It is the first layer of a model, which then takes integers as they are.  init: of W, as for `Dense`, with a fan_in of
    1, as each y reads one row; the default has variance 1.
    Raises DataError for ids outside and for floats, before a step changes anything.
    """

    keeps, shares_memory, takes_integers = "input", False, True

    def __init__(self, n: int, dim: int, *, init: Init = "lecun_normal") -> None:
        self.n, self.dim, self.init = whole("n", n, 1), whole("dim", dim, 1), initialiser(init)

    def build(self, in_shape: Shape) -> Shape:
        self.declare("W", (self.n, self.dim), self.init, fan_in=1)
        return (*in_shape, self.dim)

    def forward(self, a: Array, ctx: Context) -> Array:
        if a.dtype.kind not in "iu":
            place = "as the first layer it gets integers as they are"
            raise DataError(f"{shortened(self)} takes ids, integers from 0 to {self.n - 1}, not {a.dtype}: {place}")
        if a.min() < 0 or a.max() >= self.n:
            raise DataError(f"{shortened(self)} takes ids from 0 to {self.n - 1}: these are from {a.min()} to {a.max()}")
        ctx.a = a
        return self.W.take(a.astype("int64", copy=False), axis=0)  # in half the time of W[a]

    def backward(self, delta: Array, ctx: Context) -> None:
        if ctx.trained:
            self.backend.add_rows(ctx.a.reshape(-1), delta.reshape(-1, self.dim), ctx.dW)
