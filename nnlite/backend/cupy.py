"""A CUDA device through CuPy: products by cuBLAS, the kernels of `cuda/*.cu`. Importing this module does not import CuPy.

Nothing here reads a value back from the device, which would wait for it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

from nnlite.backend.base import GELU_CUBIC, GELU_LINEAR, Backend, Normalization
from nnlite.backend.conv import ConvPlan, GroupedPlan
from nnlite.backend.cupy_plans import CudaAveragePoolPlan, CudaConvPlan, CudaDepthwisePlan, CudaMaxPoolPlan, CudaPointwisePlan
from nnlite.backend.kernels import Kernels
from nnlite.backend.tally import Tally
from nnlite.backend.window import Array, Pair, Window
from nnlite.errors import DataError, DeviceError

Precision = Literal["float32", "tf32"]
_COMPUTE_TYPES = {"float32": 1, "tf32": 7}  # CuPy's COMPUTE_TYPE_DEFAULT and COMPUTE_TYPE_TF32
_ROWS_A_BLOCK = 1024  # of a sum of columns: each block of 8 rows of threads takes about so many rows
_MASK = (1 << 64) - 1


class CupyBackend(Backend):
    """Arrays on the current CUDA device. There is one shard: the batch.

    precision: of float32 products. "float32" is strict, whatever CUPY_TF32 says; "tf32" rounds the factors to 10 bits.
    """

    device = "cuda"
    joins_pool, fuses_relu = False, True
    sweep_values = 1 << 62

    def __init__(self, precision: Precision = "float32") -> None:
        if precision not in _COMPUTE_TYPES:
            raise ValueError(f'precision must be "float32" or "tf32", not {precision!r}')
        self.xp, self.precision = _import_cupy(), precision
        self.kernels = Kernels(self.xp)
        self._relu = False

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """A real numeric array on the device; host data is moved."""
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

    def unless_bad(self, loss: Any, vector: Array, change: Callable[[], None]) -> None:
        """As the base class: the change is made, and undone on the device where the loss was bad."""
        before = vector.copy()
        change()
        vector[...] = self.xp.where(self.xp.isfinite(loss), vector, before)

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes may be kept: half of what is free."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return 2 * size <= int(free)

    def out_of_memory(self, error: MemoryError) -> Exception:
        """What to raise where the device has no memory left."""
        free, total = self.xp.cuda.runtime.memGetInfo()
        return DeviceError(
            f"device 'cuda' has not enough memory: {error}; {free:,} of {total:,} bytes are free: use smaller batches"
        )

    # ---- batches of images lie as their shape says

    def lay_out(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """In the order of the shape, as the kernels take them."""
        return flat.reshape(shape)

    def rows(self, a: Array) -> Array:
        """Likewise."""
        return a.reshape(-1, a.shape[-1])

    # ---- products and convolutions

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """a b by cuBLAS, in this backend's precision."""
        linalg = self.xp._core._routines_linalg
        before = linalg.get_compute_type("float32")
        linalg.set_compute_type("float32", _COMPUTE_TYPES[self.precision])
        try:
            result: Array = self.xp.dot(a, b, out=out)
        finally:
            linalg.set_compute_type("float32", before)
        return result

    def conv_plan(self, window: Window, filters: int, groups: int, bias: bool, pool: Pair = (1, 1)) -> ConvPlan:
        """Plain products for 1 x 1, a kernel for depthwise, blocks for groups, else patches."""
        if groups == 1 and window.kernel == window.stride == (1, 1) and not window.is_padded:
            return CudaPointwisePlan(self, window, filters, bias)
        if groups == filters == window.in_shape[2] > 1:
            return CudaDepthwisePlan(self, window, filters, bias)
        if groups > 1:
            return GroupedPlan(self, window, filters, groups, bias)
        return CudaConvPlan(self, window, filters, bias)

    def max_pool_plan(self, window: Window) -> CudaMaxPoolPlan:
        """Max-pooling by a kernel."""
        return CudaMaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window) -> CudaAveragePoolPlan:
        """Average-pooling by a kernel."""
        return CudaAveragePoolPlan(self, window)

    # ---- batch normalisation

    def moments(self, a: Array) -> tuple[Array, Array]:
        """As the base class: partial sums about the first row, then their sum."""
        partial, blocks = self._partial("column_moments", a)
        mean, squares = (self.xp.empty(a.shape[1], a.dtype) for _ in range(2))
        self.kernels.values("finish_moments", a.dtype, a.shape[1], partial, a, mean, squares, blocks, len(a), a.shape[1])
        return mean, squares

    def delta_sums(self, delta: Array, a: Array, by: Normalization) -> tuple[Array, Array]:
        """As the base class."""
        partial, blocks = self._partial("column_deltas", delta, a, by.mean)
        total, total_x = (self.xp.empty(a.shape[1], a.dtype) for _ in range(2))
        self.kernels.values("finish_deltas", a.dtype, a.shape[1], partial, by.inv_std, total, total_x, blocks, a.shape[1])
        return total, total_x

    def _partial(self, name: str, a: Array, *arrays: Array) -> tuple[Array, int]:
        """Sums of the columns by block, (blocks, C, 2)."""
        rows, channels = a.shape
        blocks = max(1, min(-(-rows // _ROWS_A_BLOCK), 1 << 10))
        partial = self.xp.empty((blocks, channels, 2), a.dtype)
        self.kernels.launch(name, a.dtype, (blocks, -(-channels // 32), 1), (32, 8, 1), a, *arrays, partial, rows, channels)
        return partial, blocks

    def normalization(
        self, mean: Array, inv_std: Array, gamma: Array | None, beta: Array | None, rows: int = 1
    ) -> Normalization:
        """The kernels take these as they are."""
        return Normalization(mean, inv_std, gamma, beta)

    def normalize(self, a: Array, by: Normalization, out: Any) -> Array:
        """As the base class, in one sweep."""
        y = self._like(a, out)
        self.kernels.values("normalize", a.dtype, a.size, a, *by[:4], y, a.size, a.shape[-1], self._relu)
        return y

    def delta_normalization(self, by: Normalization, mean_delta: Array, mean_delta_x: Array) -> Normalization:
        """Likewise."""
        return by._replace(means=(mean_delta, mean_delta_x))

    def normalize_delta(self, delta: Array, a: Array, by: Normalization, out: Any) -> Array:
        """As the base class, in one sweep."""
        da = self._like(a, out)
        columns = (by.mean, by.inv_std, by.gamma, *by.means)
        self.kernels.values("normalize_delta", a.dtype, a.size, delta, a, *columns, da, a.size, a.shape[-1])
        return da

    # ---- value by value

    def _like(self, a: Array, out: Array | None) -> Array:
        return self.xp.empty(a.shape, a.dtype) if out is None else out

    def relu_delta(self, delta: Array, y: Array, out: Any) -> Array:
        """As the base class, in one sweep."""
        da = self._like(delta, out)
        self.kernels.values("relu_delta", delta.dtype, delta.size, delta, y, da, delta.size)
        return da

    def add_bias(self, z: Array, b: Array) -> None:
        """As the base class, in one sweep."""
        self.kernels.values("add_bias", z.dtype, z.size, z, b, z.size, z.shape[-1], self._relu)

    def with_relu(self) -> "CupyBackend":
        """The same backend, but `add_bias` and `normalize` end with max(y, 0)."""
        twin = object.__new__(CupyBackend)
        vars(twin).update(vars(self), _relu=True)
        return twin

    def gelu_tanh(self, a: Array, out: Any) -> Array:
        """As the base class, in one sweep."""
        y = self._like(a, out)
        self.kernels.values("gelu_tanh", a.dtype, a.size, a, y, GELU_LINEAR, GELU_CUBIC, a.size)
        return y

    def gelu_tanh_delta(self, delta: Array, a: Array, out: Any) -> Array:
        """As the base class, in one sweep."""
        da = self._like(a, out)
        self.kernels.values("gelu_tanh_delta", a.dtype, a.size, delta, a, da, GELU_LINEAR, GELU_CUBIC, a.size)
        return da

    def erf(self, x: Array) -> Array:
        """The error function."""
        from cupyx.scipy.special import erf

        result: Array = erf(x)
        return result

    def random_bits(self, key: int, stream: tuple[int, int], start: int, rows: int, words: int) -> Array:
        """As the base class, bit for bit."""
        bits = self.xp.empty((rows, words), "uint32")
        self.kernels.values("random_bits", "float32", rows * -(-words // 8), *_words(key), *stream, start, rows, words, bits)
        return bits

    def dropout_mask(
        self, key: int, stream: tuple[int, int], start: int, shape: tuple[int, ...], rate: float, dtype: Any
    ) -> Array:
        """As the base class, bit for bit, in one sweep."""
        mask, words = self.xp.empty(shape, dtype), math.prod(shape[1:])
        numbers = (start, shape[0], words, int(rate * 2**32), 1 / (1 - rate))
        self.kernels.values("dropout_mask", dtype, shape[0] * -(-words // 8), *_words(key), *stream, *numbers, mask)
        return mask

    # ---- losses and optimisers

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        """As the base class; a label out of range gives NaN, so that the loss shows it."""
        q = self.xp.empty((len(t), classes), dtype)
        self.kernels.values("one_hot", dtype, q.size, self.xp.asarray(t, "int64"), q, q.size, classes)
        return q

    def cross_entropy(self, z: Array, q: Array, sums_to_one: bool) -> tuple[Array, Array]:
        """As the base class, in one sweep."""
        losses, delta = self.xp.empty(len(z), z.dtype), self.xp.empty(z.shape, z.dtype)
        z, rows = self.xp.ascontiguousarray(z), 4
        grid = (-(-len(z) // rows), 1, 1)
        self.kernels.launch("cross_entropy", z.dtype, grid, (32, rows, 1), z, q, losses, delta, *z.shape, sums_to_one)
        return losses, delta

    def adam(
        self,
        p: Array,
        g: Array,
        m: Array,
        v: Array,
        d: Array,
        betas: tuple[float, float],
        eps: float,
        rate: float,
        decay: float,
        halted: Any = None,
    ) -> None:
        """As the base class, in one sweep."""
        self.kernels.values("adam", p.dtype, len(p), p, g, m, v, halted, *betas, eps, rate, decay, len(p))

    def sgd(
        self, p: Array, g: Array, v: Array | None, d: Array, rate: float, momentum: float, nesterov: bool, halted: Any = None
    ) -> None:
        """As the base class, in one sweep."""
        self.kernels.values("sgd", p.dtype, len(p), p, g, v, halted, rate, momentum, nesterov, len(p))

    def __reduce__(self) -> Any:
        return get_cupy_backend, (self.precision,)


class DeviceTally(Tally):
    """Kept on the device, where it also stops the optimiser: `halted` says so to its kernels."""

    def __init__(self, backend: CupyBackend, skip: bool) -> None:
        super().__init__(skip)
        self.backend = backend
        self.sums, self.halted = backend.xp.zeros(2, "float64"), backend.xp.zeros(2, "int32")

    def add(self, value: Any, weight: float) -> None:
        """Take in a number that may not have been computed yet."""
        self.count += 1
        value = self.backend.xp.asarray(value, "float64")
        self.backend.kernels.launch(
            "note_loss", "float32", (1, 1, 1), (1, 1, 1), value, weight, self.sums, self.halted, self.skip
        )

    def sums_so_far(self) -> list[float]:
        """Waits for the device."""
        sums: list[float] = self.backend.to_host(self.sums).tolist()
        return sums

    def go_on_from(self, total: float, weight: float) -> None:
        """Begin with these sums instead of zero."""
        self.sums = self.backend.xp.asarray([total, weight], "float64")

    def read(self) -> tuple[float, int]:
        """Waits for the device."""
        total, weight = self.sums_so_far()
        bad = 0 if self.skip else int(self.backend.to_host(self.halted)[1])
        return total / weight if weight else math.nan, bad


def _words(key: int) -> tuple[int, int]:
    return key & _MASK, key >> 64


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError("device 'cuda' needs CuPy: pip install 'nnlite[cuda12]' or 'nnlite[cuda13]'") from error
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda': CuPy is installed, but there is no usable CUDA driver or device")
    return cupy


@functools.cache
def get_cupy_backend(precision: Precision = "float32") -> CupyBackend:
    """The one CUDA backend of a precision; raises DeviceError where there is none."""
    return CupyBackend(precision)
