"""Pooling: summaries of neighbouring pixels."""

from nnlite.arguments import pair, shortened, window_padding
from nnlite.backend import Array, Padding, Pair, Window
from nnlite.errors import ShapeError
from nnlite.layers.base import Context, Layer, Shape


class Pooling(Layer):
    """The base of pooling layers: pooled probabilities are probabilities, and backward reads neither a nor y."""

    keeps, shares_memory, gives_probabilities = None, False, None


class MaxPool2D(Pooling):
    """y = the largest a of each window, channel by channel.     a: (N, H, W, C)   y: (N, OH, OW, C)

    OH = (H + padding - size) // stride + 1. Padding counts as minus infinity.
    Backward: each delta goes to the pixel that was largest; among equal ones the first, row by row.

    size, stride (default: size), padding: an integer or (height, width); padding also ((top, bottom), (left, right)). Raises
    ShapeError for a window that does not fit.
    """

    def __init__(self, size: int | Pair, stride: int | Pair | None = None, *, padding: Padding = 0) -> None:
        self.size, self.padding = pair("size", size), window_padding(padding)
        self.stride = None if stride is None else pair("stride", stride)

    def build(self, in_shape: Shape) -> Shape:
        window = _window(self, in_shape)
        self.plan = self.backend.max_pool_plan(window)
        return self.plan.out_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.plan.forward(a, ctx, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.plan.backward(delta, ctx, ctx.out)


class AvgPool2D(Pooling):
    """y = the mean of a over each window, channel by channel.     a: (N, H, W, C)   y: (N, OH, OW, C)

    Padded zeros are included. Backward: each delta is spread evenly over its window.

    size, stride (default: size), padding: an integer or (height, width); padding also ((top, bottom), (left, right)). Raises
    ShapeError for a window that does not fit.
    """

    def __init__(self, size: int | Pair, stride: int | Pair | None = None, *, padding: Padding = 0) -> None:
        self.size, self.padding = pair("size", size), window_padding(padding)
        self.stride = None if stride is None else pair("stride", stride)

    def build(self, in_shape: Shape) -> Shape:
        self.plan = self.backend.average_pool_plan(_window(self, in_shape))
        return self.plan.out_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.plan.forward(a, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.plan.backward(delta, ctx.out)


class GlobalAvgPool2D(Pooling):
    """y = the mean of a over all pixels.     a: (N, H, W, C)   y: (N, C)     Backward: dJ/da = delta / (H W) everywhere."""

    def build(self, in_shape: Shape) -> Shape:
        if len(in_shape) != 3:
            raise ShapeError(f"expects images of shape (height, width, channels), got {shortened(in_shape)}")
        return (in_shape[2],)

    def forward(self, a: Array, ctx: Context) -> Array:
        h, w, _ = self.in_shape
        return (self.backend.pixel_sums(a) / (h * w)).astype(a.dtype)

    def backward(self, delta: Array, ctx: Context) -> Array:
        h, w, _ = self.in_shape
        everywhere = self.xp.broadcast_to(delta[:, None, None, :], (len(delta), *self.in_shape))
        return self.xp.divide(everywhere, h * w, out=ctx.out)


class GlobalMaxPool2D(Pooling):
    """y = the largest a of all pixels, channel by channel.     a: (N, H, W, C)   y: (N, C)

    Backward: each delta goes to the pixel that was largest; among equal ones the first, row by row.
    """

    def build(self, in_shape: Shape) -> Shape:
        if len(in_shape) != 3:
            raise ShapeError(f"expects images of shape (height, width, channels), got {shortened(in_shape)}")
        self.plan = self.backend.max_pool_plan(Window.of(in_shape, in_shape[:2], stride=in_shape[:2]))
        return (in_shape[2],)

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.plan.forward(a, ctx, None).reshape(len(a), -1)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.plan.backward(delta[:, None, None, :], ctx, ctx.out)


def _window(layer: MaxPool2D | AvgPool2D, in_shape: Shape) -> Window:
    stride = layer.size if layer.stride is None else layer.stride
    window = Window.of(in_shape, layer.size, stride, layer.padding)
    if any(pad >= k for pads, k in zip(window.padding, window.kernel, strict=True) for pad in pads):
        raise ShapeError(f"padding {layer.padding} must be smaller than the window {window.kernel}")
    return window
