"""Functions of each value, softmax and binary cross-entropy in plain `xp`."""

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

    def binary_cross_entropy(self, z: Array, t: Array) -> tuple[Array, Array]:
        """J = -t log y - (1 - t) log(1 - y) and dJ/dz = y - t, value by value, with y = 1 / (1 + exp(-z))."""
        y, rest = self._logistic(z)
        return self.xp.maximum(z, 0) - z * t + rest, y - t

    def weighted_binary_cross_entropy(self, z: Array, t: Array, v_0: float, v_1: Any) -> tuple[Array, Array]:
        """J = -q_1 log y - q_0 log(1 - y) and dJ/dz = y (q_0 + q_1) - q_1,  q_1 = v_1 t,  q_0 = v_0 (1 - t).

        v_1: a number, or one for each of the last axis.
        """
        (y, rest), q_0, q_1 = self._logistic(z), v_0 * (1 - t), v_1 * t
        losses = q_1 * (self.xp.maximum(-z, 0) + rest) + q_0 * (self.xp.maximum(z, 0) + rest)
        return losses, y * (q_0 + q_1) - q_1

    def _logistic(self, z: Array) -> tuple[Array, Array]:
        """y = 1 / (1 + exp(-z)) and log(1 + exp(-|z|))."""
        e = self.exp(-abs(z))  # of -|z|, so that nothing overflows
        return self.xp.where(z >= 0, 1, e) / (1 + e), self.log1p(e)
