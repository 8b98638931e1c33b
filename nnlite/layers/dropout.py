"""Dropout."""

import math

from nnlite.backend import Array
from nnlite.layers.base import Context, Layer


class Dropout(Layer):
    """y = a m / (1 - rate),  m = 0 with probability rate, else 1, drawn anew in each training pass; inference: y = a.

    Backward: dJ/da = delta m / (1 - rate). The mask of a sample depends on the model's seed, the layer's place in the model,
    the number of the pass and the sample's place in the batch; not on threads, shards or the device.

    rate: in [0, 1), else ValueError.  Source: Srivastava et al. 2014, section 4, scaled in training.
    """

    elementwise, keeps, shares_memory = True, None, True

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, a: Array, ctx: Context) -> Array:
        if not ctx.training:
            return a
        ctx.mask = self._mask(a, ctx)
        return self.xp.multiply(a, ctx.mask, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.xp.multiply(delta, ctx.mask, out=ctx.out)

    def _mask(self, a: Array, ctx: Context) -> Array:
        """m / (1 - rate): 32 random bits for each value, dropped below rate 2^32."""
        shard, stream = ctx.shard, (ctx.layer_id, ctx.shard.pass_id)
        bits = self.backend.random_bits(shard.seed, stream, shard.start, len(a), math.prod(a.shape[1:]))
        mask = (bits >= int(self.rate * 2**32)).astype(a.dtype)
        mask *= 1 / (1 - self.rate)
        return mask.reshape(a.shape)
