"""A CUDA device through CuPy: products by cuBLAS, the kernels of `cuda/*.cu`. Importing this module does not import CuPy.

Nothing here reads a value back from the device, which would block.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from nnlite.backend.arrays import host_array
from nnlite.backend.cuda.cublas import Products
from nnlite.backend.cuda.kernels import Kernels
from nnlite.backend.operations import Operations
from nnlite.backend.tally import Tally
from nnlite.backend.window import Array
from nnlite.errors import DataError, DeviceError

Precision = Literal["float32", "tf32"]
_PATCHES = 16  # the share of the device's memory that patches may take is 1 / _PATCHES
_ROWS_A_BLOCK = 1024  # of a sum of columns: each block of 8 rows of threads takes about this many rows
_MASK = (1 << 64) - 1


class CudaOperations(Operations):
    """Arrays on the current CUDA device. There is one shard: the batch.

    precision: of float32 products. "float32" is strict, whatever CUPY_TF32 says; "tf32" rounds the factors to 10 bits.
    """

    device = kernel_set = "cuda"
    cuts_batches, has_own_memory, waits_for_reads = False, True, True
    joins_pool, fuses_relu = False, True
    sweep_values = 1 << 62

    def __init__(self, precision: Precision = "float32") -> None:
        if precision not in ("float32", "tf32"):
            raise ValueError(f'precision must be "float32" or "tf32", not {precision!r}')
        self.xp, self.precision = _import_cupy(), precision
        self.kernels, self.products = Kernels(self.xp), Products(self.xp, precision == "tf32")
        self.room_for_patches = int(self.xp.cuda.runtime.memGetInfo()[1]) // _PATCHES

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """An array of real numbers on the device; host data is copied."""
        if not hasattr(x, "__cuda_array_interface__"):
            x = host_array(x, dtype)
        array: Array = self.xp.asarray(x, dtype)
        if array.dtype.kind not in "biuf":
            raise DataError(f"expects real numbers, got an array of {array.dtype}")
        return array

    def to_host(self, x: Array) -> Any:
        """A NumPy copy of `x`."""
        return self.xp.asnumpy(x)

    def number(self, x: Array) -> Any:
        """`x` itself: reading it would wait for the device."""
        return x

    def tally(self, skip: bool = False) -> "DeviceTally":
        """A tally on the device."""
        return DeviceTally(self, skip)

    def unless_bad(self, numbers: Sequence[Any], vector: Array, change: Callable[[], None]) -> None:
        """The change is made, then undone on the device if a number was bad."""
        if not numbers:
            change()
            return
        before = vector.copy()
        change()
        good = functools.reduce(operator.and_, map(self.xp.isfinite, numbers))
        vector[...] = self.xp.where(good, vector, before)

    def halt_unless_finite(self, number: Any, halted: Any) -> None:
        """On the device, without reading the number."""
        self.kernels.launch("note_number", "float32", (1, 1, 1), (1, 1, 1), number, halted)

    def unless_halted(self, halted: Any, vectors: list[Array], change: Callable[[], None]) -> None:
        """The change is made, then undone on the device if it is halted."""
        if halted is None:
            change()
            return
        before = [vector.copy() for vector in vectors]
        change()
        for vector, old in zip(vectors, before, strict=True):
            self.kernels.values("take_back", vector.dtype, vector.size, vector, old, halted, vector.size)

    def wait(self) -> None:
        """Block until the device has finished all its work."""
        self.xp.cuda.runtime.deviceSynchronize()

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes fit into half of the free memory."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return 2 * size <= int(free)

    def out_of_memory(self, error: MemoryError) -> Exception:
        """The exception to raise when device memory is exhausted."""
        free, total = self.xp.cuda.runtime.memGetInfo()
        return DeviceError(
            f"device 'cuda' has not enough memory: {error}; {free:,} of {total:,} bytes are free: use smaller batches"
        )

    # ---- batches of images are stored in the order of their shape

    def lay_out(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """In the order of the shape, as the kernels expect."""
        return flat.reshape(shape)

    def rows(self, a: Array) -> Array:
        return a.reshape(-1, a.shape[-1])

    # ---- products and convolutions

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """a b by cuBLAS, in this backend's precision."""
        return self.products(a, b, out)

    def column_sums(self, a: Array) -> Array:
        """The sums of the columns of `a` (M, C), in its own dtype: partial sums, then their sum in double."""
        sums = self.xp.empty(a.shape[1], a.dtype)
        self.sum_columns(a, sums)
        return sums

    def sum_columns(self, a: Array, out: Array) -> None:
        """Without an intermediate array."""
        partial, blocks = self._partial("column_sums", a)
        self._finish("finish_sums", a, partial, out, blocks)

    def moments(self, a: Array) -> tuple[Array, Array]:
        """Partial sums about the first row, and that row, from which `combine_moments` computes the moments."""
        return self._partial("column_moments", a)[0], a[0]

    def combine_moments(self, parts: list[Any], eps: float) -> tuple[float, Array, Array, Array]:
        """In one kernel for each part, of which only several processes have more than one; these are combined as anywhere."""
        every = [self._finished_moments(rows, partial, first_row, eps) for rows, partial, first_row in parts]
        if len(every) == 1:
            return every[0]
        squares = [(rows, mean, unbiased * max(rows - 1, 1)) for rows, mean, unbiased, _ in every]
        m, *moments = super().combine_moments(squares, eps)
        mean, unbiased, inv_std = (values.astype(every[0][1].dtype) for values in moments)
        return m, mean, unbiased, inv_std

    def _finished_moments(self, rows: int, partial: Array, first_row: Array, eps: float) -> tuple[float, Array, Array, Array]:
        mean, unbiased, inv_std = self.xp.empty((3, len(first_row)), first_row.dtype)
        self._finish("finish_moments", first_row, partial, first_row, mean, unbiased, inv_std, eps, len(partial), rows)
        return float(rows), mean, unbiased, inv_std

    def _partial(self, name: str, a: Array, *arrays: Array) -> tuple[Array, int]:
        """Sums of the columns by block, (blocks, C, 2)."""
        rows, channels = a.shape
        blocks = max(1, min(-(-rows // _ROWS_A_BLOCK), 1 << 10))
        partial = self.xp.empty((blocks, channels, 2), a.dtype)
        self.kernels.launch(name, a.dtype, (blocks, -(-channels // 32), 1), (32, 8, 1), a, *arrays, partial, rows, channels)
        return partial, blocks

    def _finish(self, name: str, like: Array, *args: Any) -> None:
        """Launch a kernel that finishes partial sums, column by column; `like` (..., C)."""
        channels = like.shape[-1]
        self.kernels.launch(name, like.dtype, (-(-channels // 32), 1, 1), (32, 16, 1), *args, channels)

    def normalization(
        self, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None, rows: int
    ) -> "CudaNormalization":
        """The kernels take these unchanged."""
        return CudaNormalization(self, mean, inv_std, gamma, beta)

    def lerp(self, a: Array, b: Array, weight: float) -> None:
        """In one sweep."""
        self.kernels.values("lerp", a.dtype, a.size, a, b, weight, a.size)

    # ---- value by value

    def _like(self, a: Array, out: Array | None) -> Array:
        return self.xp.empty(a.shape, a.dtype) if out is None else out

    def relu_delta(self, delta: Array, y: Array, out: Any) -> Array:
        """In one sweep."""
        da = self._like(delta, out)
        self.kernels.values("relu_delta", delta.dtype, delta.size, delta, y, da, delta.size)
        return da

    def add_bias(self, z: Array, b: Array, relu: bool = False) -> None:
        """In one sweep."""
        self.kernels.rows("add_bias", z, z, b, z.size // z.shape[-1], z.shape[-1], relu)

    def sweep(self, formula: Callable[..., Array], *arguments: Any, out: Array | None) -> Array:
        """By a kernel for GELU's approximation."""
        name = formula.__name__
        if name not in ("gelu_tanh", "gelu_tanh_delta"):
            return super().sweep(formula, *arguments, out=out)
        *arrays, linear, cubic = arguments
        y = self._like(arrays[0], out)
        self.kernels.values(name, y.dtype, y.size, *arrays, y, linear, cubic, y.size)
        return y

    def erf(self, x: Array) -> Array:
        """The error function."""
        from cupyx.scipy.special import erf

        return erf(x)

    def random_bits(self, key: int, stream: tuple[int, int], start: int, rows: int, words: int) -> Array:
        """The bits of the base class."""
        bits = self.xp.empty((rows, words), "uint32")
        self.kernels.values("random_bits", "float32", rows * -(-words // 8), *_words(key), *stream, start, rows, words, bits)
        return bits

    def dropout_mask(
        self, key: int, stream: tuple[int, int], start: int, shape: tuple[int, ...], rate: float, dtype: Any
    ) -> Array:
        """The bits of the base class, in one sweep."""
        mask, words = self.xp.empty(shape, dtype), math.prod(shape[1:])
        numbers = (start, shape[0], words, int(rate * 2**32), 1 / (1 - rate))
        self.kernels.values("dropout_mask", dtype, shape[0] * -(-words // 8), *_words(key), *stream, *numbers, mask)
        return mask

    # ---- losses and optimisers

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        """A label out of range gives NaN, so that the loss shows it."""
        q = self.xp.empty((len(t), classes), dtype)
        self.kernels.rows("one_hot", q, self.xp.asarray(t, "int64"), q, len(t), classes)
        return q

    def cross_entropy(self, z: Array, q: Array, sums_to_one: bool) -> tuple[Array, Array]:
        """In one sweep."""
        losses, delta = self.xp.empty(len(z), z.dtype), self.xp.empty(z.shape, z.dtype)
        rows = 4
        grid = (-(-len(z) // rows), 1, 1)
        self.kernels.launch("cross_entropy", z.dtype, grid, (32, rows, 1), z, q, losses, delta, *z.shape, sums_to_one)
        return losses, delta

    def norm(self, vector: Array) -> Array:
        """A 0-dimensional array on the device."""
        blocks = max(1, min(-(-len(vector) // (256 * 64)), 1 << 10))
        partial, norm = self.xp.empty(blocks, "float64"), self.xp.empty((), "float64")
        self.kernels.launch("squares", vector.dtype, (blocks, 1, 1), (256, 1, 1), vector, partial, len(vector))
        self.kernels.launch("finish_norm", vector.dtype, (1, 1, 1), (256, 1, 1), partial, norm, blocks)
        return norm

    def scale_to_norm(self, vector: Array, norm: Array, most: float) -> None:
        """On the device, without reading the number."""
        self.kernels.values("scale_to_norm", vector.dtype, len(vector), vector, norm, most, len(vector))

    def adam(
        self, p: Array, g: Array, m: Array, v: Array, betas: tuple[float, float], eps: float, rate: float, decay: float
    ) -> None:
        """As in `optim/`, in one sweep."""
        self.kernels.values("adam", p.dtype, len(p), p, g, m, v, *betas, eps, rate, decay, len(p))

    def rmsprop(self, p: Array, g: Array, v: Array, alpha: float, eps: float, rate: float) -> None:
        """As in `optim/`, in one sweep."""
        self.kernels.values("rmsprop", p.dtype, len(p), p, g, v, alpha, eps, rate, len(p))

    def sgd(self, p: Array, g: Array, v: Array | None, rate: float, momentum: float, nesterov: bool) -> None:
        """As in `optim/`, in one sweep."""
        self.kernels.values("sgd", p.dtype, len(p), p, g, v, rate, momentum, nesterov, len(p))


class CudaNormalization(NamedTuple):
    """`Normalization` of `layers/norm.py` in one sweep each; its sums are finished in `combine_deltas`."""

    backend: CudaOperations
    mean: Array
    inv_std: Array
    gamma: Array | None
    beta: Array | None

    @property
    def scale(self) -> Array:
        """gamma inv_std."""
        return self.inv_std if self.gamma is None else self.gamma * self.inv_std

    def forward(self, a: Array, out: Array | None, relu: bool = False) -> Array:
        """y = gamma x + beta."""
        y = self.backend._like(a, out)
        self.backend.kernels.rows("normalize", y, a, *self[1:], y, a.size // a.shape[-1], a.shape[-1], relu)
        return y

    def delta_sums(self, delta: Array, a: Array) -> Array:
        """Partial sums of delta and of delta (a - mean)."""
        return self.backend._partial("column_deltas", delta, a, self.mean)[0]

    def combine_deltas(self, parts: list[Array], m: float, dgamma: Array | None, dbeta: Array | None) -> tuple[Array, Array]:
        """mean_delta and mean_delta_x, as `backward` takes them."""
        partial = parts[0] if len(parts) == 1 else self.backend.xp.concatenate(parts)
        mean_delta, mean_delta_x = self.backend.xp.empty((2, len(self.mean)), self.mean.dtype)
        results = (dgamma, dbeta, mean_delta, mean_delta_x)
        self.backend._finish("finish_deltas", self.mean, partial, self.inv_std, *results, m, len(partial))
        return mean_delta, mean_delta_x

    def backward(self, delta: Array, a: Array, mean_delta: Array, mean_delta_x: Array, out: Array | None) -> Array:
        """dJ/da = gamma inv_std (delta - mean_delta - x mean_delta_x)."""
        da = self.backend._like(a, out)
        columns = (*self[1:4], mean_delta, mean_delta_x)
        self.backend.kernels.rows("normalize_delta", da, delta, a, *columns, da, a.size // a.shape[-1], a.shape[-1])
        return da


class DeviceTally(Tally):
    """A tally on the device, which also stops the optimiser: its kernels read `halted`."""

    def __init__(self, backend: CudaOperations, skip: bool) -> None:
        super().__init__(skip)
        self.backend = backend
        self.sums, self.halted = backend.xp.zeros(2, "float64"), backend.xp.zeros(2, "int32")

    def add(self, value: Any, weight: float) -> None:
        """Add a number that may not have been computed yet."""
        self.count += 1
        value = self.backend.xp.asarray(value, "float64")
        self.backend.kernels.launch(
            "note_loss", "float32", (1, 1, 1), (1, 1, 1), value, weight, self.sums, self.halted, self.skip
        )

    def state(self) -> dict[str, list[float]]:
        """Waits for the device."""
        return {"sums": self.backend.to_host(self.sums).tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        total, weight = map(float, state["sums"])
        self.sums = self.backend.xp.asarray([total, weight], "float64")

    def read(self) -> tuple[float, int]:
        """Waits for the device."""
        total, weight = self.state()["sums"]
        bad = 0 if self.skip else int(self.backend.to_host(self.halted)[1])
        return total / weight if weight else math.nan, bad


def _words(key: int) -> tuple[int, int]:
    return key & _MASK, key >> 64


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError("device 'cuda' needs CuPy: pip install 'nnlite-numpy[cuda12]' or 'nnlite-numpy[cuda13]'") from error
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda': CuPy is installed, but there is no usable CUDA driver or device")
    return cupy
