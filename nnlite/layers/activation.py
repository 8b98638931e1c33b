"""Activation functions: y = f(a), value by value (Softmax: over the last axis). The input is called a, the output y.

The formulas are functions; `backend.sweep` computes them as they stand here, or by a kernel of the same name.
"""

import math
from typing import Any, Literal

from nnlite.arguments import choice, flag, number
from nnlite.backend import Array, Backend
from nnlite.init import constant
from nnlite.layers.base import Context, Elementwise, Layer, Shape

_LINEAR, _CUBIC = math.sqrt(2 / math.pi), 0.044715
_FAR_OF_TANH = 10.0  # beyond, tanh u is 1 to the last bit, and a^3 might overflow
_FAR = 30.0  # standard deviations: beyond, Phi is 0 or 1 to the last bit of float64, and a^2 might overflow
_STEEP = 1000.0  # beyond, exp(-|a|) is 0; both bounds are for infinite a, too: 0 times infinity would be NaN


class ReLU(Elementwise):
    """y = max(a, 0)      dJ/da = delta where y > 0, else 0"""

    keeps = "output"

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.relu(a, ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.relu_delta(delta, ctx.y, ctx.out)


class LeakyReLU(Elementwise):
    """y = a where a > 0, else slope a      dJ/da = delta where y > 0, else slope delta

    slope: in [0, 1), so that y is the larger of a and slope a; raises ValueError otherwise. Default 0.01; 0 gives ReLU.
    """

    keeps = "output"

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = number("slope", slope, least=0, below=1)

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.sweep(leaky_relu, a, float(self.slope), out=ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.sweep(leaky_relu_delta, delta, ctx.y, float(self.slope), out=ctx.out)


def leaky_relu(backend: Backend, a: Array, slope: float, out: Any) -> Array:
    """y of `LeakyReLU`."""
    return backend.xp.maximum(a, slope * a if slope else 0.0, out=out)  # 0 times infinity is NaN


def leaky_relu_delta(backend: Backend, delta: Array, y: Array, slope: float, out: Any) -> Array:
    """dJ/da of `LeakyReLU`."""
    return backend.xp.where(y > 0, delta, slope * delta if slope else 0.0)


class PReLU(Elementwise):
    """y = max(a, 0) + s min(a, 0): a ReLU with a learned slope s below zero, of each channel or of all.

    a, y: (N, ..., C)   slopes, s: (C,), or with shared (1,)
    Backward:   dJ/ds = sum of delta min(a, 0)    dJ/da = delta where a > 0, else s delta

    slope: the initial value of each s.  shared: whether all channels have one.  Source: He et al. 2015, Delving Deep into
    Rectifiers, equations 1 and 8 to 10.  Raises ValueError for a slope that is no number.
    """

    keeps = "input"

    def __init__(self, slope: float = 0.25, *, shared: bool = False) -> None:
        self.slope, self.shared = number("slope", slope), flag("shared", shared)

    def build(self, in_shape: Shape) -> Shape:
        self.declare("slopes", (1,) if self.shared else in_shape[-1:], constant(float(self.slope)))
        return in_shape

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.a = a
        return self.backend.sweep(prelu, a, self.slopes, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        if ctx.trained:
            rows = (self.backend.rows(x).reshape(-1, len(self.slopes)) for x in (delta, self.xp.minimum(ctx.a, 0)))
            ctx.dslopes[...] = self.backend.column_products(*rows)
        return self.backend.sweep(prelu_delta, delta, ctx.a, self.slopes, out=ctx.out)


def prelu(backend: Backend, a: Array, slopes: Array, out: Any) -> Array:
    """y of `PReLU`."""
    below = slopes * backend.xp.minimum(a, 0)
    return backend.xp.add(below, backend.xp.maximum(a, 0), out=out)


def prelu_delta(backend: Backend, delta: Array, a: Array, slopes: Array, out: Any) -> Array:
    """dJ/da of `PReLU`."""
    return backend.xp.multiply(delta, backend.xp.where(a > 0, 1, slopes), out=out)


class Sigmoid(Elementwise):
    """y = 1 / (1 + exp(-a))      dJ/da = delta y (1 - y)"""

    keeps = "output"
    gives_probabilities = True

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.sigmoid(a, ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.sweep(sigmoid_delta, delta, ctx.y, out=ctx.out)


def sigmoid_delta(backend: Backend, delta: Array, y: Array, out: Any) -> Array:
    """dJ/da of `Sigmoid`."""
    return backend.xp.multiply(delta, y * (1 - y), out=out)


class Tanh(Elementwise):
    """y = tanh(a)      dJ/da = delta (1 - y^2)"""

    keeps = "output"

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.tanh(a, ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.sweep(tanh_delta, delta, ctx.y, out=ctx.out)


def tanh_delta(backend: Backend, delta: Array, y: Array, out: Any) -> Array:
    """dJ/da of `Tanh`."""
    return backend.xp.multiply(delta, 1 - y * y, out=out)


class GELU(Elementwise):
    """y = a Phi(a)      dJ/da = delta (Phi(a) + a phi(a))      Phi, phi: distribution and density of the normal law

    approximate: "none" (erf) or "tanh", where Phi(a) = (1 + tanh u) / 2 with u = sqrt(2 / pi) (a + 0.044715 a^3).
    Source: Hendrycks and Gimpel 2016, section 2.  Raises ValueError for another `approximate`.
    """

    keeps = "input"

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        self.approximate = choice("approximate", approximate, "none", "tanh")

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.a = a
        if self.approximate == "tanh":
            return self.backend.sweep(gelu_tanh, a, _LINEAR, _CUBIC, out=ctx.out)
        return self.backend.sweep(gelu, a, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        if self.approximate == "tanh":
            return self.backend.sweep(gelu_tanh_delta, delta, ctx.a, _LINEAR, _CUBIC, out=ctx.out)
        return self.backend.sweep(gelu_delta, delta, ctx.a, out=ctx.out)


def gelu(backend: Backend, a: Array, out: Any) -> Array:
    """y of `GELU`."""
    a = backend.xp.clip(a, -_FAR, math.inf)
    return backend.xp.multiply(a, _Phi(backend, backend.xp.clip(a, -_FAR, _FAR)), out=out)


def gelu_delta(backend: Backend, delta: Array, a: Array, out: Any) -> Array:
    """dJ/da of `GELU`."""
    a = backend.xp.clip(a, -_FAR, _FAR)
    slope = _Phi(backend, a) + a * backend.exp(-0.5 * a * a) * (1 / math.sqrt(2 * math.pi))
    return backend.xp.multiply(delta, slope, out=out)


def _Phi(backend: Backend, a: Array) -> Array:
    Phi = backend.erf(a * (1 / math.sqrt(2)))
    Phi += 1
    Phi *= 0.5
    return Phi


def gelu_tanh(backend: Backend, a: Array, linear: float, cubic: float, out: Any) -> Array:
    """a (1 + tanh u) / 2 with u = linear (a + cubic a^3), in sweeps over temporary arrays."""
    t = _tanh_u(backend, _bounded(backend, a), linear, cubic)
    t += 1
    t *= _bounded(backend, a, most=math.inf)  # at minus infinity, t is 0
    return backend.xp.multiply(t, 0.5, out=out)


def gelu_tanh_delta(backend: Backend, delta: Array, a: Array, linear: float, cubic: float, out: Any) -> Array:
    """delta times the derivative of `gelu_tanh`: (1 + t) (1 + (1 - t) a du/da) / 2 with t = tanh u."""
    xp, a = backend.xp, _bounded(backend, a)
    t = _tanh_u(backend, a, linear, cubic)
    slope = xp.multiply(a, a, out=backend.scratch_batch("gelu slope", a.shape, a.dtype))
    slope *= 3 * linear * cubic
    slope += linear
    slope *= a
    slope *= xp.subtract(1, t, out=backend.scratch_batch("gelu rest", a.shape, a.dtype))
    slope += 1
    t += 1
    slope *= t
    slope *= delta
    return xp.multiply(slope, 0.5, out=out)


def _bounded(backend: Backend, a: Array, most: float = _FAR_OF_TANH) -> Array:
    return backend.xp.clip(a, -_FAR_OF_TANH, most, out=backend.scratch_batch("gelu bounded", a.shape, a.dtype))


def _tanh_u(backend: Backend, a: Array, linear: float, cubic: float) -> Array:
    t = backend.xp.multiply(a, a, out=backend.scratch_batch("gelu", a.shape, a.dtype))
    t *= linear * cubic
    t += linear
    t *= a
    return backend.tanh(t, t)


class SiLU(Elementwise):
    """y = a s(a)      dJ/da = delta s (1 + a (1 - s))      s(a) = 1 / (1 + exp(-a))"""

    keeps = "input"

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.a = a
        return self.backend.sweep(silu, a, out=ctx.out)

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.sweep(silu_delta, delta, ctx.a, out=ctx.out)


def silu(backend: Backend, a: Array, out: Any) -> Array:
    """y of `SiLU`."""
    return backend.xp.multiply(backend.xp.clip(a, -_STEEP, math.inf), backend.sigmoid(a), out=out)


def silu_delta(backend: Backend, delta: Array, a: Array, out: Any) -> Array:
    """dJ/da of `SiLU`."""
    s, a = backend.sigmoid(a), backend.xp.clip(a, -_STEEP, _STEEP)
    return backend.xp.multiply(delta, s * (1 + a * (1 - s)), out=out)


class ELU(Elementwise):
    """y = a where a > 0, else alpha (exp(a) - 1)      dJ/da = delta where y > 0, else delta (y + alpha)

    alpha: positive, default 1; raises ValueError otherwise.  Source: Clevert, Unterthiner and Hochreiter 2016, equation 15.
    """

    keeps = "output"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = number("alpha", alpha, above=0)

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.sweep(elu, a, float(self.alpha), out=ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.sweep(elu_delta, delta, ctx.y, float(self.alpha), out=ctx.out)


def elu(backend: Backend, a: Array, alpha: float, out: Any) -> Array:
    """y of `ELU`."""
    below = alpha * backend.expm1(backend.xp.minimum(a, 0))
    return backend.xp.add(below, backend.xp.maximum(a, 0), out=out)


def elu_delta(backend: Backend, delta: Array, y: Array, alpha: float, out: Any) -> Array:
    """dJ/da of `ELU`."""
    return backend.xp.multiply(delta, backend.xp.where(y > 0, 1, y + alpha), out=out)


class Softplus(Elementwise):
    """y = log(1 + exp(a))      dJ/da = delta (1 - exp(-y))"""

    keeps = "output"

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.sweep(softplus, a, out=ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.sweep(softplus_delta, delta, ctx.y, out=ctx.out)


def softplus(backend: Backend, a: Array, out: Any) -> Array:
    """y of `Softplus`."""
    rest = backend.log1p(backend.exp(-abs(a)))  # of -|a|, so that nothing overflows
    return backend.xp.add(rest, backend.xp.maximum(a, 0), out=out)


def softplus_delta(backend: Backend, delta: Array, y: Array, out: Any) -> Array:
    """dJ/da of `Softplus`."""
    return backend.xp.multiply(delta, -backend.expm1(-y), out=out)


class Softmax(Layer):
    """y_i = exp(a_i) / sum over j of exp(a_j)      dJ/da_i = y_i (delta_i - sum over j of delta_j y_j)

    Over the last axis. Omit it to train a classifier: `CrossEntropy` takes logits.
    """

    keeps, shares_memory, images = "output", False, None
    gives_probabilities = True

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = self.backend.softmax(a, ctx.out)
        return ctx.y

    def backward(self, delta: Array, ctx: Context) -> Array:
        return self.backend.softmax_delta(delta, ctx.y, ctx.out)
