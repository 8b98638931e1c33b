"""Pooling: summaries of neighbouring pixels."""

from nnlite.arguments import flag, pair, shortened, window_padding
from nnlite.backend import Array, Padding, Pair, Window
from nnlite.errors import ShapeError
from nnlite.layers.base import Context, Layer, Shape, check_images


class Pooling(Layer):
    """The base of pooling layers: pooled probabilities are probabilities, and backward reads neither a nor y."""

    keeps, shares_memory, gives_probabilities, images = None, False, None, True


class MaxPool2D(Pooling):
    """y = the largest a of each window, channel by channel.     a: (N, H, W, C)   y: (N, OH, OW, C)

    OH = (H + padding - dilation (size - 1) - 1) // stride + 1. Padding counts as minus infinity.
    Backward: each delta goes to the pixel that was largest; among equal ones the first, row by row.

    size, stride (default: size), padding, dilation: an integer or (height, width); padding also ((top, bottom), (left, right)).
    ceil_mode: whether the division is rounded up, so that pixels at bottom and right that do not fill a window have an output,
    too, unless it would start in the padding behind the image.  Raises ShapeError for a window that does not fit or meets only
    padding.
    """

    def __init__(
        self,
        size: int | Pair,
        stride: int | Pair | None = None,
        *,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
    ) -> None:
        self.size, self.padding, self.dilation = pair("size", size), window_padding(padding), pair("dilation", dilation)
        self.stride, self.ceil_mode = None if stride is None else pair("stride", stride), flag("ceil_mode", ceil_mode)

    def build(self, in_shape: Shape) -> Shape:
        self.plan = self.backend.max_pool_plan(_window(self, in_shape))
        return self.plan.out_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.plan.forward(a, ctx, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.plan.backward(delta, ctx, ctx.out)


class AvgPool2D(Pooling):
    """y = the mean of a over each window, channel by channel.     a: (N, H, W, C)   y: (N, OH, OW, C)

    Backward: each delta is spread evenly over its window.

    size, stride, padding, dilation, ceil_mode: as for `MaxPool2D`.  count_padding: whether padded zeros are included, but never
    what `ceil_mode` adds.  Raises ShapeError for a window that does not fit or meets only padding.
    """

    def __init__(
        self,
        size: int | Pair,
        stride: int | Pair | None = None,
        *,
        padding: Padding = 0,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
        count_padding: bool = True,
    ) -> None:
        self.size, self.padding, self.dilation = pair("size", size), window_padding(padding), pair("dilation", dilation)
        self.stride, self.ceil_mode = None if stride is None else pair("stride", stride), flag("ceil_mode", ceil_mode)
        self.count_padding = flag("count_padding", count_padding)

    def build(self, in_shape: Shape) -> Shape:
        self.plan = self.backend.average_pool_plan(_window(self, in_shape), bool(self.count_padding))
        return self.plan.out_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.plan.forward(a, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.plan.backward(delta, ctx.out)


class GlobalAvgPool2D(Pooling):
    """y = the mean of a over all pixels.     a: (N, H, W, C)   y: (N, C)     Backward: dJ/da = delta / (H W) everywhere."""

    def build(self, in_shape: Shape) -> Shape:
        check_images(in_shape)
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
        check_images(in_shape)
        height, width, channels = in_shape
        self.plan = self.backend.max_pool_plan(Window.of(in_shape, (height, width), (height, width)))
        return (channels,)

    def forward(self, a: Array, ctx: Context) -> Array:
        return self.plan.forward(a, ctx, None).reshape(len(a), -1)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.plan.backward(delta[:, None, None, :], ctx, ctx.out)


def _window(layer: MaxPool2D | AvgPool2D, in_shape: Shape) -> Window:
    stride = layer.size if layer.stride is None else layer.stride
    window = Window.of(in_shape, layer.size, stride, layer.padding, layer.dilation, bool(layer.ceil_mode))
    if any(0 in window.taps_met(axis, with_padding=False) for axis in (0, 1)):
        raise ShapeError(f"padding {layer.padding} leaves a window {window.kernel} without a pixel of {shortened(in_shape)}")
    return window
