"""Functions of each value, and cross-entropy, by the kernels of `pointwise.c` and `loss.c`."""

from typing import Any

import numpy as np

from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.native.sums import are_real
from nnlite.backend.window import Array


class Pointwise(NativeOperations):
    """exp, log, tanh and erf have errors below two units in the last place, and the same bits everywhere."""

    def exp(self, a: Array, out: Array | None = None) -> Array:
        return self._of_each("exp_values", a, out)

    def expm1(self, a: Array, out: Array | None = None) -> Array:
        return self._of_each("expm1_values", a, out)

    def log(self, a: Array, out: Array | None = None) -> Array:
        return self._of_each("log_values", a, out)

    def log1p(self, a: Array, out: Array | None = None) -> Array:
        return self._of_each("log1p_values", a, out)

    def tanh(self, a: Array, out: Array | None = None) -> Array:
        return self._of_each("tanh_values", a, out)

    def erf(self, x: Array) -> Array:
        return self._of_each("erf_values", x, None)

    def relu(self, a: Array, out: Any) -> Array:
        return self._of_each("relu_values", a, out) if are_real(a) else super().relu(a, out)

    def relu_delta(self, delta: Array, y: Array, out: Any) -> Array:
        if not are_real(delta, y) or delta.shape != y.shape:
            return super().relu_delta(delta, y, out)
        return self._of_two("relu_delta", delta, y, out)

    def drop(self, a: Array, mask: Array, out: Any) -> Array:
        if not are_real(a, mask) or a.shape != mask.shape:
            return super().drop(a, mask, out)
        return self._of_two("drop", a, mask, out)

    def add_bias(self, z: Array, b: Array, relu: bool = False) -> None:
        if are_real(z, b) and z.flags.c_contiguous and b.flags.c_contiguous and b.shape == z.shape[-1:]:
            kernels(z.dtype)["add_bias"](address(z), address(b), relu, *self.rows(z).shape)
        else:
            super().add_bias(z, b, relu)

    def cross_entropy_of_labels(self, z: Array, t: Array) -> tuple[Array, Array]:
        if not are_real(z):
            return super().cross_entropy_of_labels(z, t)
        z, t = self.given(z), self.given(t, np.int64)
        losses, delta = np.empty(len(z), z.dtype), np.empty_like(z)
        kernels(z.dtype)["cross_entropy_of_labels"](address(z), address(t), *z.shape, address(delta), address(losses))
        return losses, delta

    def _of_each(self, kernel: str, a: Array, out: Array | None) -> Array:
        a = self.given(a if are_real(a) else a.astype(np.float64))
        y = self.room(out, a.shape, a.dtype)
        kernels(a.dtype)[kernel](address(a), address(y), a.size)
        return self.written(y, out)

    def _of_two(self, kernel: str, a: Array, b: Array, out: Array | None) -> Array:
        a, b, y = self.given(a), self.given(b), self.room(out, a.shape, a.dtype)
        kernels(a.dtype)[kernel](address(a), address(b), address(y), a.size)
        return self.written(y, out)
