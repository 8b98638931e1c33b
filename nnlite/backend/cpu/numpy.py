"""The CPU: NumPy, shards on threads, one BLAS thread in each."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from nnlite.backend.base import Backend
from nnlite.backend.conv import ConvPlan
from nnlite.backend.cpu.frames import framed
from nnlite.backend.cpu.host import Host
from nnlite.backend.cpu.products import SUMMED, largest_divisor, matmul, matmul_rows
from nnlite.backend.cpu.threads import is_one_of_many, map_shards
from nnlite.backend.cpu.winograd import WinogradPlan, conv_algorithm
from nnlite.backend.operations import by_pixel
from nnlite.backend.sums import ROWS, TERMS, add_up, column_sums, pixel_products, squared_norm
from nnlite.backend.window import Array, Pair, Window

_WORTH_THREADS = 1 << 24  # multiplications of a product worth cutting, and into how many blocks of how many columns
_BLOCKS, _LEAST_COLUMNS = 4, 64
_LONG = 1 << 10  # values of a row long enough for an inner loop
_WIDE = 1 << 13  # ... and that NumPy does not copy to its buffers first when it is added to or multiplied by other rows
_FEW = 1 << 12  # values of a vector below which a call takes longer than its work
_SHORT = 64  # values of a run below which it is copied faster as one element
_quiet_multiply = np.errstate(invalid="ignore")(np.multiply)
_exact_erf = np.frompyfunc(math.erf, 1, 1)


def _in_one_piece(a: Array, b: Array) -> tuple[Array, Array] | None:
    """Both arrays with their axes permuted so that both are contiguous, or None."""
    if a.flags.c_contiguous and b.flags.c_contiguous:
        return a, b
    if a.ndim == b.ndim == 4:
        a, b = by_pixel(a), by_pixel(b)
        if a.flags.c_contiguous and b.flags.c_contiguous:
            return a, b
    return None


@cache
def _wide(size: int, channels: int) -> int:
    """The length of the row that `by_column` uses for `size` values: _WIDE to 2 _WIDE if a divisor allows, else about _LONG."""
    rows = size // channels
    beside = largest_divisor(rows, 2 * _WIDE // channels)
    return channels * (beside if beside * channels >= _WIDE else largest_divisor(rows, max(1, _LONG // channels)))


@cache
def _element(size: int) -> np.dtype[np.void]:
    """The dtype of an element of `size` bytes."""
    return np.dtype((np.void, size))


@cache
def _ones(dtype: Any) -> Array:
    """The vector of ones that sums of columns are products with."""
    return np.ones(ROWS, dtype)


class NumpyBackend(Host, Backend):
    """NumPy's operations; plans of products, tiles and sums."""

    kernel_set = "numpy"

    def strided(self, a: Array, shape: tuple[int, ...], strides: tuple[int, ...], start: int = 0) -> Array:
        """Takes a microsecond instead of eight: threads wait for each other while Python runs."""
        whole = by_pixel(a) if a.ndim == 4 and not a.flags.c_contiguous else a
        if not whole.flags.c_contiguous:
            return super().strided(a, shape, strides, start)
        return np.ndarray(shape, a.dtype, whole, start * a.strides[1], strides)

    def copy_runs(self, target: Array, source: Array) -> None:
        """Copies each short run as one element, because NumPy takes longer to start a run than to copy it."""
        if source.shape[-1] <= _SHORT and source.strides[-1] == target.strides[-1] == source.itemsize:
            run = _element(source.shape[-1] * source.itemsize)
            target, source = target.view(run), source.view(run)
        target[...] = source

    def dense_plan(self, window: Window, filters: int, bias: bool, pool: Pair) -> ConvPlan:
        """Winograd's where it is cheaper, else patches."""
        m = conv_algorithm.tile(window, filters, pool)
        if m is None:
            return super().dense_plan(window, filters, bias, pool)
        return WinogradPlan(self, window, filters, bias, m, pool)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """In pieces of the fastest size."""
        return matmul(a, b, out)

    def matmul_rows(self, a: Array, b: Array, out: Array | None = None) -> Array:
        return matmul_rows(a, b, out, self.scratch)

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """Cut if it is worth waking a thread, but not within one of several shards: these already use all threads."""
        if len(a) * b.size < _WORTH_THREADS:
            return matmul(a, b, out)
        return self._by_columns(matmul, len(a), a, b, out)

    def product_of_rows(self, a: Array, b: Array, out: Array | None) -> Array:
        if len(a) <= SUMMED and a.shape[1] * b.size < _WORTH_THREADS:
            return matmul(a.T, b, out)
        return self._by_columns(self.matmul_rows, a.shape[1], a, b, out)

    def _by_columns(self, product: Callable[..., Array], rows: int, a: Array, b: Array, out: Array | None) -> Array:
        columns = b.shape[1]
        if rows * b.size < _WORTH_THREADS or columns < _BLOCKS * _LEAST_COLUMNS or is_one_of_many():
            return product(a, b, out)
        result: Array = np.empty((rows, columns), a.dtype) if out is None else out

        def block(i: int) -> None:
            part = slice(columns * i // _BLOCKS, columns * (i + 1) // _BLOCKS)
            product(a, b[:, part], result[:, part])

        map_shards(block, _BLOCKS)
        return result

    def column_products(self, a: Array, b: Array) -> Array:
        """Joins narrow rows, because NumPy's inner loops are as long as a row."""
        if a.ndim == 3:
            return pixel_products(a, b)
        channels, pieces = a.shape[1], _in_one_piece(a, b)
        beside = largest_divisor(a.size // channels, max(1, _LONG // channels)) if pieces else 1
        left, right = (x.reshape(-1, 1, beside * channels) for x in pieces or (a, b))
        sums = pixel_products(left, right)
        return add_up(sums.reshape(beside, channels)) if beside > 1 else sums

    def column_sums(self, a: Array) -> Array:
        """By products with ones."""
        return column_sums(a, _ones(a.dtype))

    def pixel_sums(self, a: Array) -> Array:
        """By the sums of columns."""
        n, h, w, c = a.shape
        return self.column_sums(self.rows(a).reshape(h * w, n * c)).reshape(n, c)

    def all_finite(self, a: Array) -> bool:
        """By the sum of squares."""
        values = a.ravel(order="K")
        with np.errstate(over="ignore", invalid="ignore"):
            return math.isfinite(np.dot(values, values))

    def sum_columns(self, a: Array, out: Array) -> None:
        """Few rows in one product, which rounds no more often."""
        if len(a) <= TERMS and a.dtype == out.dtype:
            np.dot(_ones(a.dtype)[: len(a)], a, out=out)
        else:
            super().sum_columns(a, out)

    def cross_entropy_of_labels(self, z: Array, t: Array) -> tuple[Array, Array]:
        """The same bits as the base class: J_n = log(sum of exp z) - z_t and dJ_n/dz = y - 1 at the label, y elsewhere."""
        shifted, rows = z - z.max(axis=1, keepdims=True), np.arange(len(t))
        y = np.exp(shifted)
        sums = y.sum(axis=1, keepdims=True)
        y /= sums
        y[rows, t] -= 1
        return np.log(sums)[:, 0] - shifted[rows, t], y

    def norm(self, vector: Array) -> Any:
        """The squares of a few float32 values are added in float64, where they cannot overflow."""
        if len(vector) <= _FEW and vector.dtype == np.float32:
            wide = vector.astype(np.float64)
            return math.sqrt(np.dot(wide, wide))
        return super().norm(vector)

    def sum_of_squares(self, vector: Array) -> float:
        """Without an array of squares."""
        with np.errstate(over="ignore", invalid="ignore"):
            return squared_norm(vector)

    def wide_row(self, row: Array, rows: int) -> Array:
        """As many copies side by side as `by_column` can use."""
        return np.tile(row, max(1, min(rows, 2 * _WIDE // len(row))))

    def by_column(self, name: str, a: Array, row: Array, out: Any) -> Array:
        """Joins narrow rows."""
        out, channels = np.empty_like(a) if out is None else out, a.shape[-1]
        pieces = _in_one_piece(a, out)
        wide = _wide(a.size, channels) if pieces else channels
        if pieces is None or wide == channels:
            return super().by_column(name, a, row[:channels], out)
        row = row if len(row) >= wide else self.wide_row(row[:channels], wide)
        super().by_column(name, pieces[0].reshape(-1, wide), row[:wide], pieces[1].reshape(-1, wide))
        return out

    def relu(self, a: Array, out: Any) -> Array:
        """With a row of zeros, because NumPy's maximum of an array and a number is not vectorised."""
        out, size = np.empty_like(a) if out is None else out, math.gcd(a.size, 2 * _WIDE)
        pieces = _in_one_piece(a, out)
        if pieces is None or size < 64:
            return super().relu(a, out)
        zeros = self.constant_rows(("zeros", a.dtype), size, lambda n: np.zeros(n, a.dtype))
        np.maximum(pieces[0].reshape(-1, size), zeros, out=pieces[1].reshape(-1, size))
        return out

    def drop(self, a: Array, mask: Array, out: Any) -> Array:
        """In one sweep; only if the result is not finite, dropped values are then set to 0."""
        y: Array = _quiet_multiply(a, mask, out=out)
        if not self.all_finite(y):
            np.copyto(y, 0, where=mask == 0)
        return y

    def framed(self, images: Array, frames: Any, reflect: bool) -> Array:
        """By whole rows."""
        return framed(images, frames, reflect)

    def erf(self, x: Array) -> Array:
        """To the last bits in float64, for gradient checks; in float32 the base class's formula, in two arrays."""
        if x.dtype == np.float64:
            return np.asarray(_exact_erf(x), np.float64)
        t = abs(x)
        t *= 0.3275911
        t += 1
        np.divide(1, t, out=t)
        series = 1.061405429 * t
        for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            series += coefficient
            series *= t
        np.multiply(x, -x, out=t)
        series *= np.exp(t, out=t)
        return np.copysign(np.subtract(1, series, out=series), x, out=series)

    def __reduce__(self) -> Any:
        return get_numpy_backend, ()


@cache
def get_numpy_backend() -> NumpyBackend:
    """The one CPU backend."""
    return NumpyBackend()
