"""Sums and norms by the kernels of `sums.c`."""

from typing import Any

import numpy as np

from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.window import Array


def are_real(first: Array, *others: Array) -> bool:
    """Whether the kernels take these arrays: float32 or float64, all alike."""
    dtype = first.dtype
    for other in others:
        if other.dtype != dtype:
            return False
    return dtype.char in "fd"


class Sums(NativeOperations):
    """Every sum has one order, which depends on the shape alone, and is float64."""

    def column_sums(self, a: Array) -> Array:
        if not are_real(a):
            return super().column_sums(a)
        a, sums = self.given(a), np.empty(a.shape[1])
        kernels(a.dtype)["column_sums"](address(a), *a.shape, address(sums))
        return sums

    def column_products(self, a: Array, b: Array) -> Array:
        if not are_real(a, b) or a.shape != b.shape:
            return super().column_products(a, b)
        a, b, sums, channels = self.given(a), self.given(b), np.empty(a.shape[-1]), a.shape[-1]
        kernels(a.dtype)["column_products"](address(a), address(b), a[..., 0].size, channels, address(sums))
        return sums

    def pixel_sums(self, a: Array) -> Array:
        if not are_real(a):
            return super().pixel_sums(a)
        n, h, w, c = a.shape
        a, sums = self.given(a), np.empty((n, c))
        kernels(a.dtype)["pixel_sums"](address(a), n, h * w, c, address(sums))
        return sums

    def add_rows(self, ids: Array, rows: Array, out: Array) -> None:
        n, columns = out.shape
        if not are_real(rows, out) or rows.shape != (*ids.shape, columns):
            super().add_rows(ids, rows, out)
            return
        ids, rows, target = self.given(ids, np.dtype("int64")), self.given(rows), self.room(out, out.shape, out.dtype)
        scratch = np.empty(n, np.int64), np.empty(len(ids), np.int64), np.empty(columns)
        kernels(out.dtype)["add_rows"](*map(address, (ids, rows, target)), len(ids), n, columns, *map(address, scratch))
        self.written(target, out)

    def total(self, a: Array) -> Any:
        """As of one column; float64 one after another, for which a model of float32 need not compile."""
        if a.dtype.char == "d":
            return float(a.cumsum()[-1]) if a.size else 0.0
        if not are_real(a):
            return super().total(a)
        a, total = self.given(a), np.empty(1)
        kernels(a.dtype)["column_sums"](address(a), a.size, 1, address(total))
        return float(total[0])

    def row_means(self, a: Array) -> Array:
        if not are_real(a):
            return super().row_means(a)
        a, means = self.given(a), np.empty((*a.shape[:-1], 1), a.dtype)
        kernels(a.dtype)["row_means"](address(a), address(means), *self.rows(a).shape)
        return means

    def moments(self, a: Array) -> tuple[Array, Array]:
        """In one pass, or two where the guess at the mean was far off."""
        a = self.given(a)
        mean, deviations = np.empty((2, a.shape[1]), a.dtype)
        kernels(a.dtype)["moments"](address(a), *a.shape, address(mean), address(deviations))
        return mean, deviations

    def all_finite(self, a: Array) -> bool:
        if not are_real(a):
            return super().all_finite(a)
        a, result = self.given(a), np.empty(1, np.int64)
        kernels(a.dtype)["all_finite"](address(a), a.size, address(result))
        return bool(result[0])

    def sum_of_squares(self, vector: Array) -> Any:
        """As of one column."""
        vector, total = self.given(vector), np.empty(1)
        place = address(vector)
        kernels(vector.dtype)["column_products"](place, place, vector.size, 1, address(total))
        return float(total[0])
