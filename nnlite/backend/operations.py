"""What a backend offers: an array module and its operations, written here in plain `xp` for every backend."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nnlite.backend.frames import places_of
from nnlite.backend.functions import Functions
from nnlite.backend.masks import masked
from nnlite.backend.random import random_bits
from nnlite.backend.tally import Tally
from nnlite.backend.window import Array

# Deviations from the mean come from a sum of squares of n values where they are at least CANCELLED / sqrt(n) of it: the more
# values, the more of their rounding errors cancel, up to AT_MOST. With fewer than AT_LEAST the mean is subtracted first.
CANCELLED, AT_LEAST, AT_MOST = 4.0, 1 << 10, 1 << 16
MANY = 1 << 20  # rows for which constants are prepared
SMALL = 1e-30  # a factor near the smallest of float32


def by_pixel(a: Array) -> Array:
    """Images (N, H, W, C) as (H, W, N, C)."""
    return a.transpose(1, 2, 0, 3)


@lru_cache
def _standardization(backend: "Operations", mean: Any, std: Any, channels: int, dtype: Any) -> tuple[Array, Array]:
    rows = (backend.xp.broadcast_to(v, (channels,)) for v in (-backend.asarray(mean, dtype), 1 / backend.asarray(std, dtype)))
    shift, scale = (backend.wide_row(row, MANY) for row in rows)
    return shift, scale


class Operations(Functions):
    """Arrays and kernels of one device. Subclasses override only what measurements justify.

    Batches of images have the shape (N, H, W, C) and are stored in the order (H, W, N, C). So m neighbouring pixels of all
    images are a contiguous matrix (m, N C), which Winograd's transforms multiply without copying tiles; and factors per
    channel apply to rows of N C values.

    kernel_set: whose kernels it uses: "numpy", "native" or "cuda".
    cuts_batches: whether a batch is cut into shards for threads.
    finer_inference: how many times smaller than in training these are in inference.
    has_own_memory: whether data must be moved to it, a data set once if it fits.
    waits_for_reads: whether reading a value back makes Python wait for all earlier work of the device.
    joins_pool: whether a convolution gains from including the max-pooling after it in its plan.
    fuses_relu: whether it gains from ReLU as the `relu` argument of `add_bias`, `affine` and convolutions.
    rectifies_norms: whether batch norm includes the ReLU behind it in both directions, by `normalization(...).rectified`.
    sweep_values: how many values of the flat vectors an optimiser updates at a time.
    normalization, sample_norm, sample_norm_delta, adam, rmsprop, sgd: the formulas of these names in `layers/norm.py` and
    `optim/` as kernels, if the backend has them.
    """

    device: str
    kernel_set: str
    cuts_batches = True
    finer_inference = 1
    has_own_memory = False
    waits_for_reads = False
    joins_pool = True
    fuses_relu = rectifies_norms = False
    normalization: Callable[..., Any] | None = None
    sample_norm: Callable[..., Any] | None = None
    sample_norm_delta: Callable[..., Array] | None = None
    adam: Callable[..., None] | None = None
    rmsprop: Callable[..., None] | None = None
    sgd: Callable[..., None] | None = None
    sweep_values = 1 << 18  # fewer fit a closer cache, but threads wait for each other between short calls

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` as an array of this device; host data is moved here."""
        raise NotImplementedError

    def to_host(self, x: Array) -> Any:
        """`x` as a NumPy array."""
        raise NotImplementedError

    def number(self, x: Array) -> Any:
        """`x`, 0-dimensional, as a float; unchanged if reading it would wait for a device."""
        return float(x)

    def tally(self, skip: bool = False) -> Tally:
        """An empty tally."""
        return Tally(skip)

    def unless_bad(self, numbers: Sequence[Any], vector: Array, change: Callable[[], None]) -> None:
        """Run `change()`, which writes to `vector`, if these numbers are finite."""
        if all(map(math.isfinite, numbers)):
            change()

    def halt_unless_finite(self, number: Any, halted: Any) -> None:
        """Mark `halted`, of a device's tally, if a number is not finite."""

    def unless_halted(self, halted: Any, vectors: list[Array], change: Callable[[], None]) -> None:
        """Run `change()`, which writes to these vectors, unless `halted`, of a device's tally, says that a loss was bad."""
        change()

    def wait(self) -> None:
        """Block until the device has finished all its work."""

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be kept."""
        return True

    def out_of_memory(self, error: MemoryError) -> Exception:
        """The exception to raise when memory is exhausted."""
        return error

    def empty(self, size: int, dtype: Any) -> Array:
        """A new uninitialised vector of `size` values."""
        return self.xp.empty(size, dtype)

    def zeros(self, size: int, dtype: Any) -> Array:
        """A new vector of zeros."""
        vector = self.empty(size, dtype)
        vector[...] = 0
        return vector

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array for the duration of one operation; the next one of that name may share its memory."""
        return self.empty(math.prod(shape), dtype).reshape(shape)

    def scratch_batch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A scratch array for a batch of samples, in this backend's memory order."""
        return self.lay_out(self.scratch(name, (math.prod(shape),), dtype), shape)

    def empty_batch(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new uninitialised batch of this shape, in this backend's memory order."""
        return self.lay_out(self.empty(math.prod(shape), dtype), shape)

    def lay_out(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """View `flat` as a batch of this shape, in this backend's memory order."""
        if len(shape) != 4:
            return flat.reshape(shape)
        n, h, w, c = shape
        return flat.reshape(h, w, n, c).transpose(2, 0, 1, 3)

    def rows(self, a: Array) -> Array:
        """A batch (..., C) as (M, C), in the order of `lay_out`: a view if it is stored so, else a copy."""
        return (by_pixel(a) if a.ndim == 4 else a).reshape(-1, a.shape[-1])

    def row_view(self, a: Array) -> Array:
        """`rows(a)` for writing. Raises ValueError if it would be a copy, as of an array that `lay_out` did not make."""
        rows = self.rows(a)
        if not self.xp.may_share_memory(rows, a):
            raise ValueError(
                f"rows of an array of shape {a.shape} and strides {a.strides} are a copy: nothing may be written to it"
            )
        return rows

    def views(self, key: Any, make: Callable[[], Any]) -> Any:
        """`make()`: views of scratch arrays. A backend may keep them for this key as long as the arrays are the same."""
        return make()

    def constant_rows(self, key: Any, n: int, make: Callable[[int], Array]) -> Array:
        """`make(n)`: n rows of constants. A backend may cache the longest made for this key and return its first n rows."""
        return make(n)

    def strided(self, a: Array, shape: tuple[int, ...], strides: tuple[int, ...], start: int = 0) -> Array:
        """A view of `a`, from a[:, start] on, with other axes: windows that may overlap."""
        return self.xp.lib.stride_tricks.as_strided(a[:, start:], shape, strides)

    def copy_runs(self, target: Array, source: Array) -> None:
        """target[...] = source, both of one dtype: many runs along the last axis, usually contiguous."""
        target[...] = source

    def moments(self, a: Array) -> tuple[Array, Array]:
        """Mean and sum of squared deviations of each column of `a` (M, C), both (C,)."""
        n, mean = len(a), self.column_sums(a) / len(a)
        if n >= AT_LEAST:
            squares = self.column_products(a, a)
            deviations = squares - mean * mean * n
            if (deviations >= CANCELLED / math.sqrt(min(n, AT_MOST)) * squares).all():
                return mean.astype(a.dtype), deviations.astype(a.dtype)
        # About the rounded mean: nothing cancels, and constant columns are exact.
        center = mean.astype(a.dtype)
        d = self.xp.subtract(a, center, out=self.scratch("deviation", a.shape, a.dtype))
        rest = self.column_sums(d) / n
        deviations = self.xp.maximum(self.column_products(d, d) - rest * rest * n, 0)
        return (center + rest).astype(a.dtype), deviations.astype(a.dtype)

    def combine_moments(self, parts: list[Any], eps: float) -> tuple[float, Array, Array, Array]:
        """(m, mean, unbiased variance, 1 / sqrt(biased variance + eps)) of the columns of several arrays.

        parts: (rows, *moments) of each, in a fixed order.  m: total rows.  The means are float64, inv_std as the arrays.
        Deviations within the arrays plus those of the arrays' means: Chan, Golub and LeVeque 1983.
        """
        xp, m = self.xp, float(sum(rows for rows, _, _ in parts))
        wide = [(float(rows), part.astype("float64"), M2.astype("float64")) for rows, part, M2 in parts]
        first = wide[0][1]
        mean = first + sum(n * (part - first) for n, part, _ in wide) / m  # exact for equal means
        squares = sum(M2 for _, _, M2 in wide) + sum(n * (part - mean) ** 2 for n, part, _ in wide)
        var = squares / m
        return m, mean, var * m / max(m - 1, 1), (1 / xp.sqrt(var + eps)).astype(parts[0][1].dtype)

    def lerp(self, a: Array, b: Array, weight: float) -> None:
        """a += weight (b - a)"""
        a += weight * (b - a)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """The product a b of matrices or stacks of them, on this thread."""
        return self.xp.matmul(a, b, out=out)

    def matmul_rows(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """a' b for a (rows, m) and b (rows, n), with many rows, or stacks of them."""
        return self.xp.matmul(a.swapaxes(-2, -1), b, out=out)

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """The matrix product a b; large ones may be cut into fixed blocks of columns that threads share."""
        return self.matmul(a, b, out)

    def biased_product(self, a: Array, b: Array, bias: Array, out: Array | None, relu: bool = False) -> Array:
        """The product a b plus `bias`, by column, and with relu max( , 0) of that."""
        z = self.product(a, b, out)
        self.add_bias(z, bias, relu)
        return z

    def product_of_rows(self, a: Array, b: Array, out: Array | None) -> Array:
        """The product a' b, as in `matmul_rows`; cut like `product`."""
        return self.product(a.T, b, out)

    def column_sums(self, a: Array) -> Array:
        """The sums of the columns of `a` (M, C), in float64: every sum over rows comes from here or from `column_products`."""
        return a.sum(axis=0, dtype="float64")

    def sum_columns(self, a: Array, out: Array) -> None:
        """Write the sums of the columns of `a` (M, C) to `out`."""
        out[...] = self.column_sums(a)

    def column_products(self, a: Array, b: Array) -> Array:
        """The sums of the columns of `a b`, value by value, in float64; both (M, C), or (H, W, C) and summed over H and W."""
        return (a * b).sum(axis=tuple(range(a.ndim - 1)), dtype="float64")

    def pixel_sums(self, a: Array) -> Array:
        """The sums over all pixels of images (N, H, W, C), in float64: (N, C)."""
        return a.sum(axis=(1, 2), dtype="float64")

    def row_means(self, a: Array) -> Array:
        """The means over the last axis, in the dtype of `a`: (..., C) -> (..., 1)."""
        means: Array = a.mean(axis=-1, keepdims=True)
        return means

    def wide_row(self, row: Array, rows: int) -> Array:
        """`row` (C,) in the form that `by_column` uses fastest, for an array of about `rows` rows."""
        return row

    def standardization(self, mean: Any, std: Any, channels: int, dtype: Any) -> tuple[Array, Array]:
        """Rows for `by_column` of -mean and 1 / std, numbers or tuples of them; made once, read-only."""
        return _standardization(self, mean, std, channels, dtype)

    def standardize(self, a: Array, minus_mean: Array | None, inv_std: Array, out: Array) -> Array:
        """(a - mean) / std, by column, in the dtype of these rows, to which `a` is cast if it is uint8; no mean is 0."""
        if a.dtype != out.dtype:
            out[...] = a
            a = out
        y = a if minus_mean is None else self.by_column("add", a, minus_mean, out)
        return self.by_column("multiply", y, inv_std, out)

    def by_column(self, name: str, a: Array, row: Array, out: Any) -> Array:
        """xp's "add" or "multiply" of `a` (..., C) and `row` (C,), or its `wide_row`."""
        return getattr(self.xp, name)(a, row, out=out)

    def affine(self, a: Array, center: Array | None, scale: Array, shift: Array, out: Any, relu: bool = False) -> Array:
        """y = (a - center) scale + shift, by column, and with relu max(y, 0); center None is 0, the others may be wide rows."""
        y = self.by_column("multiply", a if center is None else self.xp.subtract(a, center, out=out), scale, out)
        self.by_column("add", y, shift, y)
        return self.relu(y, y) if relu else y

    def sweep(self, formula: Callable[..., Array], *arguments: Any, out: Array | None) -> Array:
        """`formula(self, *arguments, out)`, value by value; a backend may have a kernel of the formula's name.

        arguments: arrays of one shape, whose values may be overwritten by `out`; then numbers and rows (C,).
        """
        return formula(self, *arguments, out)

    def relu(self, a: Array, out: Any) -> Array:
        """max(a, 0)."""
        return self.xp.maximum(a, 0, out=out)

    def relu_delta(self, delta: Array, y: Array, out: Any) -> Array:
        """delta where y > 0, else 0."""
        return masked(self.xp, delta, self.xp.greater(y, 0, out=self.scratch_batch("mask", y.shape, "bool")), out)

    def add_bias(self, z: Array, b: Array, relu: bool = False) -> None:
        """z += b, by column, and with relu max(z, 0) of that; z: (..., C), b: (C,)."""
        z += b
        if relu:
            self.relu(z, z)

    def random_bits(self, key: int, stream: tuple[int, int], start: int, rows: int, words: int) -> Array:
        """Rows `start` to `start + rows` of a random table of uint32 (rows, words); see `backend/random.py`."""
        return self.asarray(random_bits(key, stream, start, rows, words))

    def dropout_mask(
        self, key: int, stream: tuple[int, int], start: int, shape: tuple[int, ...], rate: float, dtype: Any
    ) -> Array:
        """0 with probability rate, else 1 / (1 - rate): 32 random bits for each value, dropped below rate 2^32."""
        bits = self.random_bits(key, stream, start, shape[0], math.prod(shape[1:]))
        mask = self.empty_batch(shape, dtype)
        self.xp.multiply((bits >= int(rate * 2**32)).reshape(shape), mask.dtype.type(1 / (1 - rate)), out=mask)
        return mask

    def drop(self, a: Array, mask: Array, out: Any) -> Array:
        """a mask, and 0 where mask is 0, whatever a is."""
        y = masked(self.xp, a, mask > 0, out)
        y *= mask
        return y

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        """q[n, t[n]] = 1, else 0; t: (N,) checked labels."""
        q: Array = self.xp.zeros((len(t), classes), dtype)
        q[self.xp.arange(len(t)), t] = 1
        return q

    def add_rows(self, ids: Array, rows: Array, out: Array) -> None:
        """out[i] = the sum of the rows whose id is i, in float64 in their order.  ids: (M,)   rows: (M, D)   out: (n, D)"""
        n, columns = out.shape
        places = self.to_host(ids).astype(np.intp)[:, None] * columns + np.arange(columns)
        sums = np.bincount(places.ravel(), self.to_host(rows).astype(np.float64).ravel(), n * columns)
        out[...] = self.asarray(sums.reshape(n, columns))

    def cross_entropy(self, z: Array, q: Array, sums_to_one: bool) -> tuple[Array, Array]:
        """J_n = -sum over c of q_c log y_c and dJ_n/dz = y sum(q) - q,  y = softmax(z); z, q: (N, C)."""
        shifted = z - z.max(axis=1, keepdims=True)
        y = self.exp(shifted)
        sums = y.sum(axis=1, keepdims=True)
        y /= sums
        log_sums = self.log(sums)
        if not sums_to_one:
            weights = q.sum(axis=1, keepdims=True)
            log_sums *= weights
            y *= weights
        y -= q
        # Where q = 0 the logit may be -inf, and 0 times that is NaN.
        losses = log_sums[:, 0] - (q * self.xp.where(q, shifted, 0)).sum(axis=1)
        return losses, y

    def cross_entropy_of_labels(self, z: Array, t: Array) -> tuple[Array, Array]:
        """`cross_entropy` where q is 1 at the checked labels t (N,) and 0 elsewhere."""
        return self.cross_entropy(z, self.one_hot(t, z.shape[1], z.dtype), True)

    def total(self, a: Array) -> Any:
        """The sum of all values, in float64."""
        return self.number(a.sum(dtype="float64"))

    def norm(self, vector: Array) -> Any:
        """sqrt(sum of squares) of a vector: finite if all values are, whatever their size; those below 1e-20 may count as 0."""
        squares = self.sum_of_squares(vector)
        if math.isfinite(squares):
            return math.sqrt(squares)
        largest = float(abs(vector).max())  # the squares may overflow where the values do not
        return largest * math.sqrt(self.sum_of_squares(vector / largest)) if math.isfinite(largest) else math.inf

    def sum_of_squares(self, vector: Array) -> float:
        """The sum of the squares of a vector, in float64."""
        with self.xp.errstate(over="ignore", invalid="ignore"):
            return float((vector * vector).sum(dtype="float64"))

    def scale_to_norm(self, vector: Array, norm: Any, most: float) -> None:
        """Scale a vector of this norm down so that its norm is at most `most`."""
        factor = most / (norm + 1e-6)
        if factor < SMALL:  # in two steps: float32 has no such number
            vector *= math.sqrt(factor)
            vector *= math.sqrt(factor)
        elif factor < 1:
            vector *= factor

    def all_finite(self, a: Array) -> bool:
        """Whether no value is infinite or NaN; it may also be False if squares overflow."""
        return bool(self.xp.isfinite(a).all())

    def framed(self, images: Array, frames: Any, reflect: bool) -> Array:
        """New pictures cut out of images (N, H, W, C), of their shape and dtype: see `backend/frames.py`."""
        places, is_zero = places_of(frames, images.shape[1], images.shape[2], reflect)
        pictures: Array = images[tuple(map(self.asarray, places))]
        pictures[self.asarray(is_zero)] = 0
        return pictures

    def map_shards(self, work: Callable[[int], None], count: int, on_error: Callable[[], None] = lambda: None) -> None:
        """Call `work(0)` ... `work(count - 1)`: one after another here, on threads where that is faster.

        on_error: called as soon as one fails, for those on other threads that wait for it.
        """
        for index in range(count):
            work(index)
