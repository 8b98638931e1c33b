"""Normalisation: of each channel over the batch, of each sample over its channels, and of the data itself."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nnlite.backend import Array
from nnlite.errors import ShapeError
from nnlite.layers.base import BatchLayer, Context, Layer, Shape

Numbers = float | tuple[float, ...]


class Moments(NamedTuple):
    """Of a batch: m values a channel, their mean and variance (C,), and the normalisation by these."""

    m: float
    mean: Array
    var: Array
    normalization: Any


class BatchNorm(BatchLayer):
    """y = gamma x + beta,  x = (a - mean) / sqrt(var + eps),  mean and var of each channel over the batch and all pixels.

    a, y: (N, C) or (N, H, W, C)   gamma, beta, running_mean, running_var: (C,)   m = N or N H W: values a channel

    Backward:   dJ/dbeta = sum of delta    dJ/dgamma = sum of delta x
                dJ/da = gamma / sqrt(var + eps) (delta - dJ/dbeta / m - x dJ/dgamma / m)

    Inference uses running_mean and running_var: after each training pass running <- momentum running + (1 - momentum) batch,
    with the unbiased variance. With one value a channel the output is beta, the gradient zero, running_var left alone.

    scale, shift: whether there are gamma and beta.  Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """

    def __init__(self, momentum: float = 0.9, eps: float = 1e-5, scale: bool = True, shift: bool = True) -> None:
        self.momentum, self.eps, self.scale, self.shift = momentum, eps, scale, shift

    def build(self, in_shape: Shape) -> Shape:
        if len(in_shape) not in (1, 3):
            raise ShapeError(f"expects (channels,) or (height, width, channels), got {in_shape}")
        channels = in_shape[-1:]
        if self.scale:
            self.declare("gamma", channels, "ones")
        if self.shift:
            self.declare("beta", channels, "zeros")
        self.declare("running_mean", channels, "zeros", trained=False)
        self.declare("running_var", channels, "ones", trained=False)
        return in_shape

    def statistics(self, a: Array) -> Any:
        a = self.backend.rows(a)
        return len(a), *self.backend.moments(a)

    def combine(self, parts: list[Any]) -> Any:
        # Chan, Golub and LeVeque 1983: deviations within the shards plus those of the shards' means.
        m = float(sum(count for count, _, _ in parts))
        n = self.xp.asarray([float(count) for count, _, _ in parts])[:, None]
        means = self.xp.stack([mean for _, mean, _ in parts]).astype("float64")
        mean = (n * means).sum(axis=0) / m
        squares = sum(M2.astype("float64") for _, _, M2 in parts) + (n * (means - mean) ** 2).sum(axis=0)
        return Moments(m, mean, squares / m, self._normalization(mean, squares / m, int(m)))

    def commit(self, batch: Moments) -> None:
        m = batch.m
        self.running_mean += (1 - self.momentum) * (batch.mean - self.running_mean)
        if m > 1:
            self.running_var += (1 - self.momentum) * (batch.var * m / (m - 1) - self.running_var)

    def forward(self, a: Array, ctx: Context) -> Array:
        if ctx.training:
            by = ctx.batch.normalization
        else:
            by = self._normalization(self.running_mean, self.running_var, a.size // a.shape[-1])
        return self.backend.normalize(a, by, ctx.out)

    def delta_statistics(self, delta: Array, ctx: Context) -> Any:
        delta, a = self.backend.rows(delta), self.backend.rows(ctx.a)
        return self.backend.delta_sums(delta, a, ctx.batch.normalization)

    def combine_deltas(self, parts: list[Any], ctx: Context) -> Any:
        dbeta, dgamma = (sum(part.astype("float64") for part in column) for column in zip(*parts, strict=True))
        if self.shift:
            ctx.dbeta[...] = dbeta
        if self.scale:
            ctx.dgamma[...] = dgamma
        means = ((d / ctx.batch.m).astype(self.running_mean.dtype) for d in (dbeta, dgamma))
        return self.backend.delta_normalization(ctx.batch.normalization, *means)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.normalize_delta(delta, ctx.a, ctx.delta_batch, ctx.out)

    def _normalization(self, mean: Array, var: Array, rows: int) -> Any:
        """The normalisation by these moments, in the dtype of the model, of so many values a channel."""
        mean, inv_std = (v.astype(self.running_mean.dtype) for v in (mean, 1 / self.xp.sqrt(var + self.eps)))
        gamma, beta = self.gamma if self.scale else None, self.beta if self.shift else None
        return self.backend.normalization(mean, inv_std, gamma, beta, rows)


class LayerNorm(Layer):
    """y = gamma x + beta,  x = (a - mean) / sqrt(var + eps),  mean and var of each sample (and pixel) over its C channels.

    a, y: (N, ..., C)   gamma, beta: (C,)

    Backward, with d = gamma delta:   dJ/dbeta = sum of delta    dJ/dgamma = sum of delta x
                                      dJ/da = (d - mean of d - x mean of (d x)) / sqrt(var + eps)

    scale, shift: whether there are gamma and beta.  Source: Ba, Kiros and Hinton 2016, equation 4.
    """

    keeps, shares_memory = None, False

    def __init__(self, eps: float = 1e-5, scale: bool = True, shift: bool = True) -> None:
        self.eps, self.scale, self.shift = eps, scale, shift

    def build(self, in_shape: Shape) -> Shape:
        if self.scale:
            self.declare("gamma", in_shape[-1:], "ones")
        if self.shift:
            self.declare("beta", in_shape[-1:], "zeros")
        return in_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        deviation = a - a.mean(axis=-1, keepdims=True)
        ctx.inv_std = 1 / self.xp.sqrt((deviation * deviation).mean(axis=-1, keepdims=True) + self.eps)
        ctx.x = deviation * ctx.inv_std
        y = self.xp.multiply(ctx.x, self.gamma if self.scale else 1, out=ctx.out)
        if self.shift:
            y += self.beta
        return y

    def backward(self, delta: Array, ctx: Context) -> Array:
        rows = self.backend.rows(delta)
        if self.shift:
            ctx.dbeta[...] = self.backend.column_sums(rows)
        if self.scale:
            ctx.dgamma[...] = self.backend.column_products(rows, self.backend.rows(ctx.x))
        d = delta * self.gamma if self.scale else delta
        d = d - d.mean(axis=-1, keepdims=True) - ctx.x * (d * ctx.x).mean(axis=-1, keepdims=True)
        return self.xp.multiply(d, ctx.inv_std, out=ctx.out)


class Normalize(Layer):
    """y = (a - mean) / std, with constants given by the user.     a, y: (N, ..., C)     dJ/da = delta / std

    mean, std: one number, or one for each channel, in the units of the data (0 to 255 for uint8 images). They are part of
    the model and saved with it. Raises ValueError unless every std is positive, ShapeError for other numbers of channels.
    """

    elementwise, keeps, shares_memory = True, None, False

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self.std = _numbers(mean), _numbers(std)
        if not all(s > 0 for s in (self.std if isinstance(self.std, tuple) else (self.std,))):
            raise ValueError(f"every std must be positive, not {std}")

    def build(self, in_shape: Shape) -> Shape:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) != in_shape[-1]:
                raise ShapeError(f"{name} has {len(value)} values for inputs {in_shape} of {in_shape[-1]} channels")
        return in_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        (minus_mean, inv_std), out = self._rows(a), ctx.out
        y = self.backend.by_column("add", a, minus_mean, out) if self.mean else a
        return self.backend.by_column("multiply", y, inv_std, out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.by_column("multiply", delta, self._rows(delta)[1], ctx.out)

    def _rows(self, like: Array) -> tuple[Array, Array]:
        return self.backend.standardization(self.mean, self.std, like.shape[-1], like.dtype)


def _numbers(value: float | Sequence[float]) -> Numbers:
    """A float or a tuple of floats, from any sequence or array."""
    return tuple(float(v) for v in value) if isinstance(value, Iterable) else float(value)
