"""Dropout, of values and of channels."""

from nnlite.arguments import number
from nnlite.backend import Array
from nnlite.layers.base import Context, Elementwise, Shape, check_images


class Dropout(Elementwise):
    """y = a m / (1 - rate),  m = 0 with probability rate, else 1, drawn in each training pass; inference: y = a.

    Backward: dJ/da = delta m / (1 - rate). The mask of a sample depends on the model's seed, the layer's place in the model,
    the number of the pass and the sample's place in the batch; not on threads, shards or the device.

    rate: in [0, 1), else ValueError.  Source: Srivastava et al. 2014, section 4, scaled in training.
    """

    keeps, shares_memory = None, True

    def __init__(self, rate: float) -> None:
        self.rate = number("rate", rate, least=0, below=1)

    def forward(self, a: Array, ctx: Context) -> Array:
        if not ctx.training:
            return a
        shard, stream = ctx.shard, (ctx.layer_id, ctx.shard.pass_id)
        ctx.mask = self.backend.dropout_mask(shard.seed, stream, shard.start, self._shape(a), float(self.rate), a.dtype)
        return self.backend.drop(a, ctx.mask, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        if not ctx.training:
            return delta
        return self.backend.drop(delta, ctx.mask, ctx.out)

    def _shape(self, a: Array) -> tuple[int, ...]:
        """The shape of the mask."""
        shape: tuple[int, ...] = a.shape
        return shape


class SpatialDropout2D(Dropout):
    """y = a m / (1 - rate) with one m for each channel of a sample: whole channels are dropped.     a: (N, H, W, C)   m: (N, C)

    rate: as for `Dropout`.  Raises ShapeError for inputs that are not images.  Source: Tompson et al. 2015, section 3.2.
    """

    def build(self, in_shape: Shape) -> Shape:
        check_images(in_shape)
        return in_shape

    def _shape(self, a: Array) -> tuple[int, ...]:
        return len(a), 1, 1, a.shape[3]
