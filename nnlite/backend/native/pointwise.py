"""Functions of each value, softmax, dropout and cross-entropy by the kernels of `pointwise.c`, `activation.c` and `loss.c`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite.backend.native.operations import NativeOperations, address, kernels, repeated
from nnlite.backend.native.sums import are_real
from nnlite.backend.window import Array

_WORD = (1 << 64) - 1
_BESIDE = 16  # rows, of fewer values


class Pointwise(NativeOperations):
    """In one sweep each. Functions have errors below two units in the last place, and the same bits everywhere."""

    def exp(self, a: Array, out: Any = None) -> Array:
        return self._sweep("exp_values", (a,), out) if are_real(a) else super().exp(a, out)

    def expm1(self, a: Array, out: Any = None) -> Array:
        return self._sweep("expm1_values", (a,), out) if are_real(a) else super().expm1(a, out)

    def log(self, a: Array, out: Any = None) -> Array:
        return self._sweep("log_values", (a,), out) if are_real(a) else super().log(a, out)

    def log1p(self, a: Array, out: Any = None) -> Array:
        return self._sweep("log1p_values", (a,), out) if are_real(a) else super().log1p(a, out)

    def tanh(self, a: Array, out: Any = None) -> Array:
        return self._sweep("tanh_values", (a,), out) if are_real(a) else super().tanh(a, out)

    def sigmoid(self, a: Array, out: Any = None) -> Array:
        return self._sweep("sigmoid_values", (a,), out) if are_real(a) else super().sigmoid(a, out)

    def erf(self, a: Array) -> Array:
        return self._sweep("erf_values", (a,), None) if are_real(a) else super().erf(a)

    def relu(self, a: Array, out: Any) -> Array:
        return self._sweep("relu_values", (a,), out) if are_real(a) else super().relu(a, out)

    def relu_delta(self, delta: Array, y: Array, out: Any) -> Array:
        return self._sweep("relu_delta", (delta, y), out) if _are_alike(delta, y) else super().relu_delta(delta, y, out)

    def sweep(self, formula: Callable[..., Array], *arguments: Any, out: Array | None) -> Array:
        arrays = [x for x in arguments if isinstance(x, np.ndarray)]
        if not are_real(*arrays) or formula.__name__ not in kernels(arrays[0].dtype):
            return super().sweep(formula, *arguments, out=out)
        wide, numbers = [a for a in arrays if a.shape == arrays[0].shape], list[Any]()
        rows = [long_row(row, wide[0].shape[-1], row.dtype) for row in arrays[len(wide) :]]
        for row in rows:
            numbers += address(row), row.size
        return self._sweep(formula.__name__, tuple(wide), out, *numbers, *arguments[len(arrays) :])

    def add_bias(self, z: Array, b: Array, relu: bool = False) -> None:
        if not are_real(z, b) or not z.flags.carray or b.shape != z.shape[-1:]:
            super().add_bias(z, b, relu)
        else:
            b = self.given(b)
            kernels(z.dtype)["add_bias"](address(z), address(b), *self.rows(z).shape, relu)

    def dropout_mask(
        self, key: int, stream: tuple[int, int], start: int, shape: tuple[int, ...], rate: float, dtype: Any
    ) -> Array:
        mask, words = self.empty_batch(shape, dtype), math.prod(shape[1:])
        place = key & _WORD, key >> 64, *stream, start * -(-words // 8)
        kernels(mask.dtype)["dropout_mask"](*place, shape[0], words, int(rate * 2**32), 1 / (1 - rate), address(mask))
        return mask

    def drop(self, a: Array, mask: Array, out: Any) -> Array:
        return self._sweep("drop_values", (a, mask), out) if _are_alike(a, mask) else super().drop(a, mask, out)

    def softmax(self, a: Array, out: Any = None) -> Array:
        return self._by_rows("softmax_rows", (a,), out) if are_real(a) else super().softmax(a, out)

    def softmax_delta(self, delta: Array, y: Array, out: Any = None) -> Array:
        if not _are_alike(delta, y):
            return super().softmax_delta(delta, y, out)
        return self._by_rows("softmax_delta", (delta, y), out)

    def cross_entropy(self, z: Array, q: Array, sums_to_one: bool) -> tuple[Array, Array]:
        if not _are_alike(z, q):
            return super().cross_entropy(z, q, sums_to_one)
        return self._losses("cross_entropy", z, self.given(q), sums_to_one)

    def cross_entropy_of_labels(self, z: Array, t: Array) -> tuple[Array, Array]:
        if not are_real(z) or t.shape != z.shape[:1]:
            return super().cross_entropy_of_labels(z, t)
        return self._losses("cross_entropy_of_labels", z, self.given(t, np.dtype("int64")))

    def binary_cross_entropy(self, z: Array, t: Array) -> tuple[Array, Array]:
        return self._of_outputs("binary_cross_entropy", z, t) if _are_alike(z, t) else super().binary_cross_entropy(z, t)

    def weighted_binary_cross_entropy(self, z: Array, t: Array, v_0: float, v_1: Any) -> tuple[Array, Array]:
        if not _are_alike(z, t):
            return super().weighted_binary_cross_entropy(z, t, v_0, v_1)
        row = long_row(v_1, z.shape[-1], z.dtype)
        return self._of_outputs("weighted_binary_cross_entropy", z, t, v_0, address(row), row.size)

    def _of_outputs(self, name: str, z: Array, t: Array, *numbers: Any) -> tuple[Array, Array]:
        z, t, losses, delta = self.given(z), self.given(t), np.empty(z.shape, z.dtype), np.empty(z.shape, z.dtype)
        kernels(z.dtype)[name](*map(address, (z, t, losses, delta)), *numbers, z.size)
        return losses, delta

    def _losses(self, name: str, z: Array, target: Array, *numbers: int) -> tuple[Array, Array]:
        z, losses, delta = self.given(z), np.empty(len(z), z.dtype), np.empty(z.shape, z.dtype)
        kernels(z.dtype)[name](address(z), address(target), address(losses), address(delta), *z.shape, *numbers)
        return losses, delta

    def _sweep(self, name: str, arrays: tuple[Array, ...], out: Array | None, *numbers: float) -> Array:
        """A kernel of arrays of one shape and dtype, value by value."""
        given = [self.given(a) for a in arrays]
        y = self.room(out, given[0].shape, given[0].dtype)
        kernels(y.dtype)[name](*map(address, given), address(y), *numbers, y.size)
        return self.written(y, out)

    def _by_rows(self, name: str, arrays: tuple[Array, ...], out: Array | None) -> Array:
        """A kernel of arrays of one shape and dtype, row by row."""
        given = [self.given(a) for a in arrays]
        y = self.room(out, given[0].shape, given[0].dtype)
        kernels(y.dtype)[name](*map(address, given), address(y), *self.rows(y).shape)
        return self.written(y, out)


def long_row(row: Any, channels: int, dtype: Any) -> Array:
    """One value for each channel, or the same for all; for few channels repeated, so that no vector is cut."""
    return repeated(row, (_BESIDE if channels < _BESIDE else 1, channels), dtype)


def _are_alike(a: Array, b: Array) -> bool:
    """Whether the kernels take these arrays, value by value."""
    return a.shape == b.shape and are_real(a, b)
