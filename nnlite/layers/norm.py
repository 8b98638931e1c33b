"""Normalisation: of each channel over the batch, of each sample over its channels or groups of them, and of the data itself."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from nnlite.arguments import flag, number, numbers, shortened, whole
from nnlite.backend import Array, Backend, Memory
from nnlite.errors import ShapeError
from nnlite.layers.base import BatchLayer, Context, Elementwise, Layer, Shape

Numbers = float | tuple[float, ...]
FAR = 16  # standard deviations from zero: a mean beyond that is subtracted before anything is multiplied


class Normalization:
    """y = gamma x + beta,  x = (a - mean) inv_std,  channel by channel, and its derivative; shared by the shards of a pass.

    a, y: (..., C)   mean, inv_std = 1 / sqrt(var + eps), gamma, beta: (C,); gamma and beta may be None, for 1 and 0.
    rows: about how many values per channel.

    No array holds x: y = (a - center) scale + shift, with center = mean. Where the mean is near zero nothing cancels, and
    center = 0, None here, saves a sweep. A backend may have kernels for this: see `Backend.normalization`.
    """

    def __init__(
        self, backend: Backend, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None, rows: int
    ) -> None:
        self.backend, self.mean, self.inv_std, self.rows = backend, mean, inv_std, rows
        self.center = mean if bool((abs(mean) * inv_std > FAR).any()) else None
        scale = inv_std if gamma is None else gamma * inv_std
        shift = backend.xp.zeros_like(mean) if beta is None else beta
        if self.center is None:
            shift = shift - mean * scale
        self.scale, self.shift = backend.wide_row(scale, rows), backend.wide_row(shift, rows)

    def forward(self, a: Array, out: Array | None, relu: bool = False) -> Array:
        """y = gamma x + beta = (a - center) scale + shift, and with relu max(y, 0)."""
        return self.backend.affine(a, self.center, self.scale, self.shift, out, relu)

    def delta_sums(self, delta: Array, a: Array) -> tuple[Array, Array]:
        """The sums of delta and of delta x over a shard, by channel."""
        total = self.backend.column_sums(delta)
        if self.center is None:
            products = self.backend.column_products(delta, a) - self.mean * total
        else:
            deviation = self.backend.scratch("deviation", a.shape, a.dtype)
            products = self.backend.column_products(delta, self.backend.xp.subtract(a, self.center, out=deviation))
        return total.astype(a.dtype), (products * self.inv_std).astype(a.dtype)

    def combine_deltas(self, parts: list[Any], m: float, dgamma: Array | None, dbeta: Array | None) -> tuple[Array, Array]:
        """Write dJ/dbeta = sum of delta and dJ/dgamma = sum of delta x, over all shards; return slope and offset, with which

        delta - mean_delta - x mean_delta_x = delta + slope (a - center) + offset;   mean_delta, mean_delta_x: the sums over m
        """
        total, total_x = (sum(part.astype("float64") for part in column) for column in zip(*parts, strict=True))
        for gradient, sums in ((dbeta, total), (dgamma, total_x)):
            if gradient is not None:
                gradient[...] = sums
        mean_delta, mean_delta_x = (total / m).astype(self.mean.dtype), (total_x / m).astype(self.mean.dtype)
        slope, offset = -self.inv_std * mean_delta_x, -mean_delta
        if self.center is None:
            offset = offset - self.mean * slope
        return self.backend.wide_row(slope, self.rows), self.backend.wide_row(offset, self.rows)

    def backward(self, delta: Array, a: Array, slope: Array, offset: Array, out: Array | None) -> Array:
        """dJ/da = gamma inv_std (delta - mean_delta - x mean_delta_x) = scale (delta + slope (a - center) + offset)."""
        a = a if self.center is None else self.backend.xp.subtract(a, self.center, out=out)
        da = self.backend.by_column("multiply", a, slope, out)
        da += delta
        self.backend.by_column("add", da, offset, da)
        return self.backend.by_column("multiply", da, self.scale, da)


class Moments(NamedTuple):
    """Of a batch: m values per channel, their mean and unbiased variance (C,), and the normalisation by mean and variance."""

    m: float
    mean: Array
    unbiased_var: Array
    normalization: Normalization


class BatchNorm(BatchLayer):
    """y = gamma x + beta,  x = (a - mean) / sqrt(var + eps),  mean and var of each channel over the batch and all pixels.

    a, y: (N, C), (N, T, C) or (N, H, W, C)   gamma, beta, running_mean, running_var: (C,)   m = N, N T, N H W: values a channel

    Backward:   dJ/dbeta = sum of delta    dJ/dgamma = sum of delta x
                dJ/da = gamma / sqrt(var + eps) (delta - dJ/dbeta / m - x dJ/dgamma / m)

    Inference uses running_mean and running_var: after each training pass running <- momentum running + (1 - momentum) batch,
    with the unbiased variance. With one value per channel the output is beta, the gradient zero, running_var unchanged.

    Freezing it also freezes its statistics: see `FrozenBatchNorm`.
    momentum: in [0, 1].  eps: not negative, in units of a^2.  scale, shift: whether there are gamma and beta.
    Raises ValueError for other arguments.  Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """

    has_frozen_form = images = True

    def __init__(self, *, momentum: float = 0.9, eps: float = 1e-5, scale: bool = True, shift: bool = True) -> None:
        self.momentum, self.eps = number("momentum", momentum, least=0, most=1), number("eps", eps, least=0)
        self.scale, self.shift = flag("scale", scale), flag("shift", shift)

    def build(self, in_shape: Shape) -> Shape:
        if len(in_shape) not in (1, 2, 3):
            raise ShapeError(f"expects (channels,), (length, channels) or (height, width, channels), got {shortened(in_shape)}")
        channels = in_shape[-1:]
        if self.scale:
            self.declare("gamma", channels, "ones")
        if self.shift:
            self.declare("beta", channels, "zeros")
        self.declare("running_mean", channels, "zeros", trained=False)
        self.declare("running_var", channels, "ones", trained=False)
        return in_shape

    def frozen_form(self) -> "FrozenBatchNorm":
        return FrozenBatchNorm(self)

    def statistics(self, a: Array) -> Any:
        a = self.backend.rows(a)
        return len(a), *self.backend.moments(a)

    def combine(self, parts: list[Any]) -> Any:
        m, mean, unbiased_var, inv_std = self.backend.combine_moments(parts, float(self.eps))
        return Moments(m, mean, unbiased_var, self._normalization(mean, inv_std, int(m)))

    def commit(self, batch: Moments) -> None:
        weight = 1 - float(self.momentum)
        self.backend.lerp(self.running_mean, batch.mean, weight)
        if batch.m > 1:
            self.backend.lerp(self.running_var, batch.unbiased_var, weight)

    def forward(self, a: Array, ctx: Context) -> Array:
        by = ctx.batch.normalization if ctx.training else self.running_normalization(a.size // a.shape[-1])
        return by.forward(a, ctx.out, self.ends_with_relu)

    def delta_statistics(self, delta: Array, ctx: Context) -> Any:
        return ctx.batch.normalization.delta_sums(self.backend.rows(delta), self.backend.rows(ctx.a))

    def combine_deltas(self, parts: list[Any], ctx: Context) -> Any:
        dgamma, dbeta = ctx.dgamma if self.scale else None, ctx.dbeta if self.shift else None
        return ctx.batch.normalization.combine_deltas(parts, ctx.batch.m, dgamma, dbeta)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return ctx.batch.normalization.backward(delta, ctx.a, *ctx.delta_batch, ctx.out)

    def running_normalization(self, rows: int) -> Normalization:
        """The normalisation by the running mean and variance, for about `rows` values per channel."""
        return self._normalization(self.running_mean, 1 / self.xp.sqrt(self.running_var + float(self.eps)), rows)

    def _normalization(self, mean: Array, inv_std: Array, rows: int) -> Normalization:
        """The normalisation by these statistics, in the dtype of the model."""
        mean, inv_std = (v.astype(self.running_mean.dtype, copy=False) for v in (mean, inv_std))
        gamma, beta = self.gamma if self.scale else None, self.beta if self.shift else None
        return (self.backend.normalization or partial(Normalization, self.backend))(mean, inv_std, gamma, beta, rows)


class FrozenBatchNorm(Elementwise):
    """A BatchNorm whose parameters and statistics are frozen: y = s a + t, the same map for each sample.

    s = gamma / sqrt(running_var + eps), t = beta - s running_mean.     Backward: dJ/da = s delta
    """

    keeps = None

    def __init__(self, norm: BatchNorm) -> None:
        self.norm = norm
        self.backend, self.in_shape, self.out_shape = norm.backend, norm.in_shape, norm.out_shape
        self.declared, self.frozen = norm.declared, norm.frozen

    def prepare(self, memory: Memory) -> Normalization:
        return self.norm.running_normalization(math.prod(self.in_shape[:-1]))

    def forward(self, a: Array, ctx: Context) -> Array:
        return ctx.prepared.forward(a, ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.by_column("multiply", delta, ctx.prepared.scale, ctx.out)

    def line(self) -> tuple[Array, Array]:
        """s and t, both (C,)."""
        norm = self.norm
        s = (norm.gamma if norm.scale else 1) / self.xp.sqrt(norm.running_var + float(norm.eps))
        return s, (norm.beta if norm.shift else 0) - s * norm.running_mean


class SampleNorm(Layer):
    """y = gamma x + beta,  x = (a - mean) / sqrt(var + eps),  mean and var over values of one sample that a subclass chooses.

    Backward: see `LayerNorm`.
    """

    keeps, shares_memory, images = None, False, None
    eps: float
    scale: bool
    shift: bool

    def build(self, in_shape: Shape) -> Shape:
        if self.scale:
            self.declare("gamma", in_shape[-1:], "ones")
        if self.shift:
            self.declare("beta", in_shape[-1:], "zeros")
        return in_shape

    def _parts(self, a: Array) -> tuple[int, int, int]:
        """As what `a` is normalised: so many images of so many pixels, with so many groups of channels."""
        raise NotImplementedError

    def _first(self, a: Array) -> Array:
        """One of the values that each mean is over."""
        raise NotImplementedError

    def _mean(self, a: Array) -> Array:
        """The means, in a shape that can be subtracted from a."""
        raise NotImplementedError

    def forward(self, a: Array, ctx: Context) -> Array:
        gamma, beta, eps = self.gamma if self.scale else 1, self.beta if self.shift else 0, float(self.eps)
        if self.backend.sample_norm is not None:
            y, ctx.x, ctx.inv_std = self.backend.sample_norm(a, self._parts(a), gamma, beta, eps, ctx, ctx.out)
            return y
        # About the first value: equal values give exactly 0; their rounded mean would not.
        x = a - self._first(a)
        x -= self._mean(x)
        squares = self.xp.multiply(x, x, out=ctx.out)
        ctx.inv_std = 1 / self.xp.sqrt(self._mean(squares) + eps)
        x *= ctx.inv_std
        ctx.x = x
        y = self.xp.multiply(x, gamma, out=squares)
        if self.shift:
            y += beta
        return y

    def backward(self, delta: Array, ctx: Context) -> Array:
        rows, gamma = self.backend.rows(delta), self.gamma if self.scale else 1
        if self.shift:
            self.backend.sum_columns(rows, ctx.dbeta)
        if self.scale:
            ctx.dgamma[...] = self.backend.column_products(rows, self.backend.rows(ctx.x))
        if self.backend.sample_norm_delta is not None:
            return self.backend.sample_norm_delta(delta, ctx.x, ctx.inv_std, self._parts(delta), gamma, ctx.out)
        xp, products = self.xp, self.backend.scratch_batch("products", delta.shape, delta.dtype)
        d = xp.multiply(delta, gamma, out=ctx.out)
        slope = self._mean(xp.multiply(d, ctx.x, out=products))
        d -= self._mean(d)
        d -= xp.multiply(ctx.x, slope, out=products)
        d *= ctx.inv_std
        return d


class LayerNorm(SampleNorm):
    """y = gamma x + beta,  x = (a - mean) / sqrt(var + eps),  mean and var of each sample (and pixel) over its C channels.

    a, y: (N, ..., C)   gamma, beta: (C,)

    Backward, with d = gamma delta:   dJ/dbeta = sum of delta    dJ/dgamma = sum of delta x
                                      dJ/da = (d - mean of d - x mean of (d x)) / sqrt(var + eps)

    A sample of equal values gives beta.  eps: not negative, in units of a^2.  scale, shift: whether there are gamma and beta.
    Raises ValueError for other arguments.  Source: Ba, Kiros and Hinton 2016, equation 4.
    """

    def __init__(self, *, eps: float = 1e-5, scale: bool = True, shift: bool = True) -> None:
        self.eps, self.scale, self.shift = number("eps", eps, least=0), flag("scale", scale), flag("shift", shift)

    def _parts(self, a: Array) -> tuple[int, int, int]:
        return a.size // max(1, a.shape[-1]), 1, 1

    def _first(self, a: Array) -> Array:
        return a[..., :1]

    def _mean(self, a: Array) -> Array:
        return self.backend.row_means(a)


class GroupNorm(SampleNorm):
    """y = gamma x + beta,  x = (a - mean) / sqrt(var + eps),  mean and var of a sample over all pixels and a group of channels.

    a, y: (N, ..., C)   gamma, beta: (C,)   a group: C / groups neighbouring channels; with as many groups as channels it is
    instance normalisation.   Backward: as for `LayerNorm`, with means over a group.

    A group of equal values gives beta.  eps, scale, shift: as for `LayerNorm`.  Raises ValueError for other arguments,
    ShapeError for groups that do not divide the channels.  Source: Wu and He 2018, equations 1, 2 and 7.
    """

    def __init__(self, groups: int, *, eps: float = 1e-5, scale: bool = True, shift: bool = True) -> None:
        self.groups, self.eps = whole("groups", groups, 1), number("eps", eps, least=0)
        self.scale, self.shift = flag("scale", scale), flag("shift", shift)

    def build(self, in_shape: Shape) -> Shape:
        if not in_shape or in_shape[-1] % self.groups:
            raise ShapeError(f"groups={self.groups} must divide the channels of {shortened(in_shape)}")
        return super().build(in_shape)

    def _parts(self, a: Array) -> tuple[int, int, int]:
        return len(a), math.prod(a.shape[1:-1]), int(self.groups)

    def _first(self, a: Array) -> Array:
        return self._for_each_channel(a[(slice(None), *[slice(1)] * (a.ndim - 2), slice(None, None, self._width))])

    def _mean(self, a: Array) -> Array:
        images = a if a.ndim == 4 else a.reshape(len(a), -1, 1, a.shape[-1])
        sums = self.backend.pixel_sums(images).reshape(len(a), -1, self._width)
        means = (self.backend.row_means(sums) / (a[0].size // a.shape[-1])).astype(a.dtype)
        return self._for_each_channel(means.reshape(len(a), *[1] * (a.ndim - 2), -1))

    @property
    def _width(self) -> int:
        """Channels of a group."""
        return self.in_shape[-1] // int(self.groups)

    def _for_each_channel(self, of_groups: Array) -> Array:
        """(N, 1, ..., groups) -> (N, 1, ..., C)"""
        return self.xp.repeat(of_groups, self._width, axis=-1)


class Normalize(Elementwise):
    """y = (a - mean) / std, with constants given by the user.     a, y: (N, ..., C)     dJ/da = delta / std

    mean, std: one number, or one for each channel, in the units of the data (0 to 255 for uint8 images). They are part of
    the model and saved with it. Raises ValueError unless all are finite and every std positive, ShapeError for other numbers
    of channels.
    """

    keeps = None

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self.std = numbers("mean", mean), numbers("std", std, above=0)

    def build(self, in_shape: Shape) -> Shape:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if _is_sequence(value) and len(value) != in_shape[-1]:
                raise ShapeError(f"{name} has {len(value)} values for inputs {shortened(in_shape)} of {in_shape[-1]} channels")
        self.constants = _floats(self.mean), _floats(self.std)
        return in_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        out = ctx.out
        minus_mean, inv_std = self._rows(out)
        return self.backend.standardize(a, minus_mean if self.constants[0] else None, inv_std, out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.by_column("multiply", delta, self._rows(delta)[1], ctx.out)

    def _rows(self, like: Array) -> tuple[Array, Array]:
        return self.backend.standardization(*self.constants, like.shape[-1], like.dtype)


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__")


def _floats(value: Any) -> Numbers:
    return tuple(map(float, value)) if _is_sequence(value) else float(value)
