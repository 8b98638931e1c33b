"""What a backend offers: an array module and a dozen operations, written here in plain `xp` for every backend."""

from collections.abc import Callable
from typing import Any

from nnlite.backend.conv import ConvPlan
from nnlite.backend.pool import AveragePoolPlan, MaxPoolPlan
from nnlite.backend.random import random_bits
from nnlite.backend.window import Array, Pair, Window


class Backend:
    """Arrays and kernels of one device. A subclass overrides only what a measurement justifies."""

    device: str
    xp: Any

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` as an array of this device; host data is moved here."""
        raise NotImplementedError

    def to_host(self, x: Array) -> Any:
        """`x` as a NumPy array."""
        raise NotImplementedError

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array for the duration of one operation, undefined at first; the next one of that name may be the same."""
        array: Array = self.xp.empty(shape, dtype)
        return array

    def strided(self, a: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """A view of `a` with other axes: windows that overlap, tiles."""
        view: Array = self.xp.lib.stride_tricks.as_strided(a, shape, strides)
        return view

    def conv_plan(self, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> ConvPlan:
        """The algorithm for a convolution of this shape, with a max-pooling behind it: a rule of the shape, never a timing."""
        return ConvPlan(self, window, filters, groups, bias, pool)

    def max_pool_plan(self, window: Window) -> MaxPoolPlan:
        """The algorithm for max-pooling."""
        return MaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window) -> AveragePoolPlan:
        """The algorithm for average-pooling."""
        return AveragePoolPlan(self, window)

    def moments(self, a: Array) -> tuple[Array, Array]:
        """Mean and sum of squared deviations of each column of `a` (M, C), both (C,)."""
        # About the first row: exact for constant columns, and no cancellation where the mean is far from zero.
        d = self.xp.subtract(a, a[0], out=self.scratch("deviation", a.shape, a.dtype))
        total = self.column_sums(d)
        squares = self.xp.einsum("mc,mc->c", d, d) - total * total / len(d)
        return a[0] + total / len(d), self.xp.maximum(squares, 0)

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """The matrix product a b; large ones may be cut into fixed blocks of columns, one for each thread at a time."""
        result: Array = self.xp.matmul(a, b, out=out)
        return result

    def sums_with(self, d: Array, a: Array, mean: Array) -> tuple[Array, Array]:
        """The sums of the columns of `d` and of `d (a - mean)`, all (M, C) but mean (C,)."""
        deviation = self.xp.subtract(a, mean, out=self.scratch("deviation", a.shape, a.dtype))
        return self.column_sums(d), self.xp.einsum("mc,mc->c", d, deviation)

    def column_sums(self, a: Array) -> Array:
        """The sums of the columns of `a` (M, C), as a product: several times faster than a reduction."""
        sums: Array = self.xp.ones(len(a), a.dtype) @ a
        return sums

    def erf(self, x: Array) -> Array:
        """The error function, to float32 accuracy (Abramowitz and Stegun, formula 7.1.26: |error| < 1.5e-7)."""
        t = 1 / (1 + 0.3275911 * abs(x))
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        result: Array = self.xp.copysign(1 - series * self.xp.exp(-x * x), x)
        return result

    def random_bits(self, key: int, stream: tuple[int, int], start: int, rows: int, words: int) -> Array:
        """Rows `start` to `start + rows` of a random table of uint32 (rows, words); see `backend/random.py`."""
        return self.asarray(random_bits(key, stream, start, rows, words))

    def map_shards(self, work: Callable[[int], None], count: int) -> None:
        """Call `work(0)` ... `work(count - 1)`: one after another here, on threads where that pays."""
        for index in range(count):
            work(index)
