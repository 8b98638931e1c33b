"""Normalisation by the kernels of `norm.c` and `samplenorm.c`."""

import math
from typing import Any, NamedTuple

import numpy as np

from nnlite.backend.memory import Memory
from nnlite.backend.native.operations import NativeOperations, address, kernels, repeated
from nnlite.backend.native.rectified import Columns, Rectified
from nnlite.backend.native.sums import are_real
from nnlite.backend.window import Array
from nnlite.errors import ShapeError

Parts = tuple[int, int, int]  # images, their pixels, groups of their channels
_BESIDE = 16  # rows, of fewer values


def side_by_side(a: Array, columns: list[Array]) -> tuple[tuple[int, int], list[Array]]:
    """The shape of `a` (..., C) as rows, and these values of each column; up to _BESIDE narrow rows are one."""
    channels = a.shape[-1]
    if any(column.shape != (channels,) for column in columns):
        raise ShapeError(f"expects {len(columns[0])} channels, got arrays of shape {a.shape}")
    rows = a.size // max(1, channels)
    beside = math.gcd(rows, _BESIDE) if channels < _BESIDE else 1
    return (rows // beside, channels * beside), [repeated(column, (beside, channels), column.dtype) for column in columns]


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

    def sample_norm(
        self, a: Array, parts: Parts, gamma: Array | float, beta: Array | float, eps: float, memory: Memory, out: Array | None
    ) -> tuple[Array, Array | None, Array]:
        """In one call; x is kept in `memory` if backward follows."""
        a = self.given(a, None if are_real(a) else np.dtype("float64"))
        y, inv_std = self.room(out, a.shape, a.dtype), np.empty(math.prod(parts[::2]), a.dtype)
        x = memory.persist("x", a.shape, a.dtype) if memory.needs_backward else None
        columns = [self._column(values, a) for values in (gamma, beta)]
        places = address(a), *map(address, columns), eps, x if x is None else address(x), address(inv_std), address(y)
        self._by_groups("norm", a, parts, *places)
        return self.written(y, out), x, inv_std

    def sample_norm_delta(
        self, delta: Array, x: Array, inv_std: Array, parts: Parts, gamma: Array | float, out: Array | None
    ) -> Array:
        """In one call."""
        if delta.shape != x.shape:
            raise ShapeError(f"expects deltas like the inputs, got {delta.shape} for {x.shape}")
        delta, da = self.given(delta, x.dtype), self.room(out, x.shape, x.dtype)
        arrays = delta, x, self._column(gamma, x), inv_std, da
        self._by_groups("norm_delta", x, parts, *map(address, arrays))
        return self.written(da, out)

    def _by_groups(self, name: str, a: Array, parts: Parts, *places: Any) -> None:
        """A kernel for rows where each is a part, else for groups, with scratch memory."""
        (images, pixels, groups), channels = parts, a.shape[-1]
        if pixels == groups == 1:
            kernels(a.dtype)[f"layer_{name}"](*places, images, channels)
            return
        scratch = np.empty((6, channels * (_BESIDE if channels < _BESIDE else 1)), a.dtype), np.empty((2, channels))
        kernels(a.dtype)[f"group_{name}"](*places, images, pixels, channels, groups, *map(address, scratch))

    def _column(self, values: Array | float, a: Array) -> Array:
        """`values`, one for each channel of `a` or the same for all, in its dtype."""
        return repeated(values, (1, a.shape[-1]), a.dtype)


class NativeNormalization(NamedTuple):
    """`Normalization` of `layers/norm.py` in one sweep each; its `scale` is gamma inv_std, its `shift` beta.

    rectified: whether y is max( , 0) of that, in both directions.
    unread: whether y is left to the convolution that reads it.
    """

    backend: Norms
    mean: Array
    inv_std: Array
    scale: Array
    shift: Array
    rectified: bool = False
    unread: bool = False

    def forward(self, a: Array, out: Array | None, relu: bool = False) -> Any:
        """y = (a - mean) scale + shift."""
        if self.unread:
            return Rectified(self._alike(a, a)[0], self.mean, self.scale, self.shift)
        return self.backend.affine(a, self.mean, self.scale, self.shift, out, relu or self.rectified)

    def delta_sums(self, delta: Array, a: Array) -> Array:
        """The sums of delta and of delta (a - mean) over a shard, by channel: (2, C)."""
        delta, a = self._alike(delta, a)
        sums = np.empty((2, len(self.mean)))
        kernel = kernels(a.dtype)["delta_sums"]
        kernel(address(delta), address(a), *self._columns, self.rectified, *a.shape, address(sums))
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
        kernel = kernels(a.dtype)["normalize_delta"]
        places = *self._columns, self.rectified, address(slope), address(offset), address(da)
        kernel(address(delta), address(a), *places, *backend.rows(a).shape)
        return backend.written(da, out)

    @property
    def _columns(self) -> Columns:
        """Where mean, scale and shift are."""
        return address(self.mean), address(self.scale), address(self.shift)

    def _alike(self, delta: Array, a: Array) -> tuple[Array, Array]:
        """Both in the dtype of the statistics. Raises ShapeError unless their shapes and channels fit."""
        if delta.shape != a.shape or a.shape[-1] != len(self.mean):
            raise ShapeError(f"expects {len(self.mean)} channels and deltas like the inputs, got {delta.shape} for {a.shape}")
        return self.backend.given(delta, self.mean.dtype), self.backend.given(a, self.mean.dtype)
