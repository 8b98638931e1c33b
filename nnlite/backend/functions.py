"""Functions of each value, and softmax, in plain `xp`."""

from typing import Any

from nnlite.backend.window import Array


class Functions:
    """exp, log and what is made of them; a backend may have its own. `out` may be the argument."""

    xp: Any

    def exp(self, a: Array, out: Array | None = None) -> Array:
        """e^a, value by value."""
        return self.xp.exp(a, out=out)

    def expm1(self, a: Array, out: Array | None = None) -> Array:
        """e^a - 1, value by value."""
        return self.xp.expm1(a, out=out)

    def log(self, a: Array, out: Array | None = None) -> Array:
        """The natural logarithm, value by value."""
        return self.xp.log(a, out=out)

    def log1p(self, a: Array, out: Array | None = None) -> Array:
        """log(1 + a), value by value."""
        return self.xp.log1p(a, out=out)

    def tanh(self, a: Array, out: Array | None = None) -> Array:
        """The hyperbolic tangent, value by value."""
        return self.xp.tanh(a, out=out)

    def sigmoid(self, a: Array, out: Array | None = None) -> Array:
        """1 / (1 + exp(-a)), value by value."""
        e = self.exp(-abs(a))  # of -|a|, so that nothing overflows
        y: Array = self.xp.maximum(e, a >= 0, out=out)  # e is at most 1
        e += 1
        y /= e
        return y

    def erf(self, x: Array) -> Array:
        """The error function, to float32 accuracy (Abramowitz and Stegun, formula 7.1.26: |error| < 1.5e-7)."""
        t = 1 / (1 + 0.3275911 * abs(x))
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        return self.xp.copysign(1 - series * self.exp(-x * x), x)

    def softmax(self, a: Array, out: Array | None = None) -> Array:
        """y_i = exp(a_i) / sum over j of exp(a_j), over the last axis."""
        e = self.exp(a - a.max(axis=-1, keepdims=True))
        return self.xp.divide(e, e.sum(axis=-1, keepdims=True), out=out)

    def softmax_delta(self, delta: Array, y: Array, out: Array | None = None) -> Array:
        """y_i (delta_i - sum over j of delta_j y_j), over the last axis."""
        mean = (delta * y).sum(axis=-1, keepdims=True)
        return self.xp.multiply(y, delta - mean, out=out)
