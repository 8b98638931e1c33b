"""The convolution, and that of each channel by itself."""

from typing import Any

from nnlite.arguments import flag, pair, whole, window_padding
from nnlite.backend import Array, Memory, Padding, Pair, Window
from nnlite.errors import ShapeError
from nnlite.init import initialiser
from nnlite.layers.base import Context, Init, Layer, Shape


class Conv2D(Layer):
    """z[i, j] = W patch(a, i, j) + b: a Dense layer on every patch, with the same weights.

    a: (N, H, W, C)   W: (filters, kh, kw, C / groups)   b: (filters,)   z: (N, OH, OW, filters)
    OH = (H + padding - dilation (kh - 1) - 1) // stride + 1, and OW accordingly.

    Backward, with delta = dJ/dz:   dJ/dW = sum of delta[i, j] patch(a, i, j)'    dJ/db = sum of delta[i, j]
    dJ/da: each pixel collects W' delta[i, j] from every patch that contains it.

    kernel_size, stride, padding, dilation: an integer or (height, width).  padding: also ((top, bottom), (left, right)),
    "valid" (none) or "same" (OH = ceil(H / stride), surplus at bottom and right).  groups: each filter sees only its group of
    the channels; groups = C is a depthwise convolution.  bias: whether there is a b, initially zero.  init: of W, a name in
    `nn.init` or a function (shape, rng) -> array; default "he_normal", for ReLU.  Raises ShapeError for inputs that are not
    images, a kernel larger than the padded input, and groups that do not divide the channels and the filters.
    """

    keeps, shares_memory, images = "input", False, True

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = "he_normal",
    ) -> None:
        self.filters, self.kernel_size = whole("filters", filters, 1), pair("kernel_size", kernel_size)
        self.stride, self.padding, self.dilation = pair("stride", stride), window_padding(padding), pair("dilation", dilation)
        self.groups, self.bias, self.init = whole("groups", groups, 1), flag("bias", bias), initialiser(init)

    def build(self, in_shape: Shape) -> Shape:
        window = Window.of(in_shape, self.kernel_size, self.stride, self.padding, self.dilation)
        filters, groups, channels, (kh, kw) = int(self.filters), int(self.groups), in_shape[2], window.kernel
        if channels % groups or filters % groups:
            raise ShapeError(f"groups={groups} must divide {channels} channels and {filters} filters")
        self.plan = self.backend.conv_plan(window, filters, groups, bool(self.bias))
        self.declare("W", (filters, kh, kw, channels // groups), self.init, fan_out=filters // groups * kh * kw)
        if self.bias:
            self.declare("b", (filters,), "zeros")
        return (*window.out_size, filters)

    def prepare(self, memory: Memory) -> Any:
        return self.plan.prepare(self.W, self.b if self.bias else None, memory)

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.a = a
        return self.plan.forward(a, ctx.prepared, ctx, ctx.out, self.ends_with_relu)

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        db = ctx.db if ctx.trained and self.bias else None
        if ctx.trained and ctx.needs_delta:
            return self.plan.gradients(ctx.a, delta, ctx.prepared, ctx, ctx.dW, db, ctx.out)
        if ctx.trained:
            self.plan.weight_gradient(ctx.a, delta, ctx, ctx.dW, db)
        return self.plan.input_gradient(delta, ctx.prepared, ctx, ctx.out) if ctx.needs_delta else None

    def flops(self) -> int:
        return 2 * self.plan.positions * self.declared["W"].size

    def weights(self) -> int:
        return self.plan.weights

    def temporaries(self) -> int:
        return self.plan.temporaries


class DepthwiseConv2D(Conv2D):
    """A convolution of each channel by itself, with `multiplier` filters: `Conv2D` with as many groups as channels.

    z[i, j, m c + k] = W[m c + k] patch(a, i, j)[c] + b[m c + k],  m = multiplier,  k = 0 ... m - 1
    a: (N, H, W, C)   W: (m C, kh, kw, 1)   b: (m C,)   z: (N, OH, OW, m C)

    The other arguments are those of `Conv2D`.  Source: Howard et al. 2017, equation 3.
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        *,
        multiplier: int = 1,
        stride: int | Pair = 1,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        bias: bool = True,
        init: Init = "he_normal",
    ) -> None:
        super().__init__(1, kernel_size, stride=stride, padding=padding, dilation=dilation, bias=bias, init=init)
        self.multiplier = whole("multiplier", multiplier, 1)

    def build(self, in_shape: Shape) -> Shape:
        self.groups = in_shape[-1] if in_shape else 1
        self.filters = self.groups * int(self.multiplier)
        return super().build(in_shape)
