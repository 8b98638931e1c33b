"""Normalisation by the kernels of `norm.c`."""

import math
from typing import Any, NamedTuple

import numpy as np

from nnlite.backend.native.operations import NativeOperations, address, kernels
from nnlite.backend.native.sums import are_real
from nnlite.backend.window import Array
from nnlite.errors import ShapeError

_BESIDE = 16  # rows, of fewer values


def side_by_side(a: Array, columns: list[Array]) -> tuple[tuple[int, int], list[Array]]:
    """The shape of `a` (..., C) as rows, and these values of each column; up to _BESIDE narrow rows are one."""
    channels = a.shape[-1]
    if any(column.shape != (channels,) for column in columns):
        raise ShapeError(f"expects {len(columns[0])} channels, got arrays of shape {a.shape}")
    rows = a.size // max(1, channels)
    beside = math.gcd(rows, _BESIDE) if channels < _BESIDE else 1
    return (rows // beside, channels * beside), [np.tile(column, beside) for column in columns]


class Norms(NativeOperations):
    """Maps of columns in one sweep each."""

    def affine(self, a: Array, center: Array | None, scale: Array, shift: Array, out: Any, relu: bool = False) -> Array:
        constants = [scale, shift] if center is None else [scale, shift, center]
        if not are_real(a, *constants):
            return super().affine(a, center, scale, shift, out, relu)
        a, y = self.given(a), self.room(out, a.shape, a.dtype)
        shape, (scale, shift, *rest) = side_by_side(a, constants)
        places = address(a), address(rest[0]) if rest else None, address(scale), address(shift), address(y)
        kernels(a.dtype)["affine"](*places, *shape, relu)
        return self.written(y, out)

    def standardize(self, a: Array, minus_mean: Array | None, inv_std: Array, out: Array) -> Array:
        constants = [inv_std] if minus_mean is None else [inv_std, minus_mean]
        if a.dtype.char != "B" or not are_real(out, *constants) or any(row.shape != a.shape[-1:] for row in constants):
            return super().standardize(a, minus_mean, inv_std, out)
        a, y, (inv_std, *rest) = self.given(a), self.room(out, a.shape, out.dtype), map(self.given, constants)
        places = address(a), address(rest[0]) if rest else None, address(inv_std), address(y)
        kernels(y.dtype)["standardize_bytes"](*places, *self.rows(a).shape)
        return self.written(y, out)

    def by_column(self, name: str, a: Array, row: Array, out: Any) -> Array:
        if not are_real(a, row):
            return super().by_column(name, a, row, out)
        a, y, (shape, (row,)) = self.given(a), self.room(out, a.shape, a.dtype), side_by_side(a, [row])
        kernels(a.dtype)[f"{name}_columns"](address(a), address(row), address(y), *shape)
        return self.written(y, out)

    def normalization(
        self, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None, rows: int
    ) -> "NativeNormalization":
        """The kernels take these unchanged."""
        scale = inv_std if gamma is None else gamma * inv_std
        shift = np.zeros_like(mean) if beta is None else beta
        return NativeNormalization(self, *map(self.given, (mean, inv_std, scale, shift)))


class NativeNormalization(NamedTuple):
    """`Normalization` of `layers/norm.py` in one sweep each; its `scale` is gamma inv_std, its `shift` beta."""

    backend: Norms
    mean: Array
    inv_std: Array
    scale: Array
    shift: Array

    def forward(self, a: Array, out: Array | None, relu: bool = False) -> Array:
        """y = (a - mean) scale + shift."""
        return self.backend.affine(a, self.mean, self.scale, self.shift, out, relu)

    def delta_sums(self, delta: Array, a: Array) -> Array:
        """The sums of delta and of delta (a - mean) over a shard, by channel: (2, C)."""
        delta, a = self._alike(delta, a)
        sums = np.empty((2, len(self.mean)))
        kernels(a.dtype)["delta_sums"](address(delta), address(a), address(self.mean), *a.shape, address(sums))
        return sums

    def combine_deltas(self, parts: list[Array], m: float, dgamma: Array | None, dbeta: Array | None) -> tuple[Array, Array]:
        """slope and offset, as `backward` takes them."""
        totals: Array = sum(parts[1:], parts[0])
        total, total_x = totals[0], totals[1] * self.inv_std
        for gradient, sums in ((dbeta, total), (dgamma, total_x)):
            if gradient is not None:
                gradient[...] = sums
        dtype = self.mean.dtype
        return (total_x * self.inv_std / -m).astype(dtype), (total / -m).astype(dtype)

    def backward(self, delta: Array, a: Array, slope: Array, offset: Array, out: Array | None) -> Array:
        """dJ/da = scale (delta + slope (a - mean) + offset)."""
        backend, (delta, a) = self.backend, self._alike(delta, a)
        da = backend.room(out, a.shape, a.dtype)
        columns = map(address, (self.mean, self.scale, slope, offset))
        kernel = kernels(a.dtype)["normalize_delta"]
        kernel(address(delta), address(a), *columns, address(da), *backend.rows(a).shape)
        return backend.written(da, out)

    def _alike(self, delta: Array, a: Array) -> tuple[Array, Array]:
        """Both in the dtype of the statistics. Raises ShapeError unless their shapes and channels fit."""
        if delta.shape != a.shape or a.shape[-1] != len(self.mean):
            raise ShapeError(f"expects {len(self.mean)} channels and deltas like the inputs, got {delta.shape} for {a.shape}")
        return self.backend.given(delta, self.mean.dtype), self.backend.given(a, self.mean.dtype)
