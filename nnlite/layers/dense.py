"""The fully connected layer."""

from nnlite.arguments import flag, shortened, whole
from nnlite.backend import Array
from nnlite.errors import ShapeError
from nnlite.init import initialiser
from nnlite.layers.base import Context, Init, Layer, Shape


class Dense(Layer):
    """z = W a + b.      a: (N, n_in)   W: (n_out, n_in)   b: (n_out,)   z: (N, n_out)

    Backward, with delta = dJ/dz:   dJ/dW = delta' a    dJ/db = sum of delta over the batch    dJ/da = delta W

    units: n_out.  bias: whether there is a b, initially zero.  init: of W, a name in `nn.init` or a function
    (shape, rng) -> array; default "he_normal", for ReLU.
    Raises ShapeError for inputs that are not vectors: put `Flatten()` before it.
    """

    keeps, shares_memory = "input", False

    def __init__(self, units: int, *, bias: bool = True, init: Init = "he_normal") -> None:
        self.units, self.bias, self.init = whole("units", units, 1), flag("bias", bias), initialiser(init)

    def build(self, in_shape: Shape) -> Shape:
        if len(in_shape) != 1:
            raise ShapeError(f"expects vectors (n_in,), got {shortened(in_shape)}: put a Flatten() before it")
        self.declare("W", (self.units, in_shape[0]), self.init)
        if self.bias:
            self.declare("b", (self.units,), "zeros")
        return (self.units,)

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.a = a
        if self.bias:
            return self.backend.biased_product(a, self.W.T, self.b, ctx.out, self.ends_with_relu)
        return self.backend.product(a, self.W.T, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        if ctx.trained:
            self.backend.product_of_rows(delta, ctx.a, ctx.dW)
            if self.bias:
                self.backend.sum_columns(delta, ctx.db)
        return self.backend.product(delta, self.W, ctx.out) if ctx.needs_delta else None

    def flops(self) -> int:
        return 2 * self.out_shape[0] * self.in_shape[0]
