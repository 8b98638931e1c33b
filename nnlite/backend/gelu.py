"""GELU in its form with tanh: y = a (1 + t) / 2,  t = tanh u,  u = sqrt(2 / pi) (a + 0.044715 a^3), in sweeps."""

import math
from typing import TYPE_CHECKING, Any

from nnlite.backend.window import Array

if TYPE_CHECKING:
    from nnlite.backend.base import Backend

GELU_LINEAR, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715
GELU_FAR = 10.0


def gelu_tanh(backend: "Backend", a: Array, out: Any) -> Array:
    """a (1 + t) / 2."""
    t = _tanh_u(backend, _bounded(backend, a))
    t += 1
    t *= _bounded(backend, a, most=math.inf)  # at minus infinity, t is 0
    result: Array = backend.xp.multiply(t, 0.5, out=out)
    return result


def gelu_tanh_delta(backend: "Backend", delta: Array, a: Array, out: Any) -> Array:
    """delta times the derivative: (1 + t) (1 + (1 - t) a du/da) / 2."""
    xp, a = backend.xp, _bounded(backend, a)
    t = _tanh_u(backend, a)
    slope = xp.multiply(a, a, out=backend.scratch_batch("gelu slope", a.shape, a.dtype))
    slope *= 3 * GELU_LINEAR * GELU_CUBIC
    slope += GELU_LINEAR
    slope *= a
    slope *= xp.subtract(1, t, out=backend.scratch_batch("gelu rest", a.shape, a.dtype))
    slope += 1
    t += 1
    slope *= t
    slope *= delta
    result: Array = xp.multiply(slope, 0.5, out=out)
    return result


def _bounded(backend: "Backend", a: Array, most: float = GELU_FAR) -> Array:
    """a, but at most `GELU_FAR` from zero: beyond, tanh u is 1 to the last bit, and a^3 might overflow."""
    bounded: Array = backend.xp.clip(a, -GELU_FAR, most, out=backend.scratch_batch("gelu bounded", a.shape, a.dtype))
    return bounded


def _tanh_u(backend: "Backend", a: Array) -> Array:
    t = backend.xp.multiply(a, a, out=backend.scratch_batch("gelu", a.shape, a.dtype))
    t *= GELU_LINEAR * GELU_CUBIC
    t += GELU_LINEAR
    t *= a
    result: Array = backend.xp.tanh(t, out=t)
    return result
