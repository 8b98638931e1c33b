"""The backend of a CUDA device, and its plans: those of `conv.py` and `pool.py`, with the kernels of `cuda/`."""

import functools
from collections.abc import Iterator
from typing import Any

from nnlite.backend.base import Backend
from nnlite.backend.conv import ConvPlan
from nnlite.backend.cuda.kernels import Geometry
from nnlite.backend.cuda.operations import CudaOperations, Precision
from nnlite.backend.memory import Memory
from nnlite.backend.pool import AveragePoolPlan, MaxPoolPlan
from nnlite.backend.window import Array, Pair, Window

_EVEN = 4  # a row of patches is a multiple of this many values: cuBLAS reads as many at once
_MOST_TAPS = 1 << 16  # of a pooling window: the winner is kept in 16 bits


class CudaConvPlan(ConvPlan):
    """Products with patches, of all images at once where memory allows.

    row: values in a row of patches, those of the window followed by zeros; the filters have as many.
    """

    backend: CudaOperations

    def __init__(self, backend: CudaOperations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, 1, bias)
        self.geometry = Geometry(window)
        self.row = -(-self.patch // _EVEN) * _EVEN

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        W = W.reshape(self.filters, self.patch)
        if self.row == self.patch:
            return W, b
        rows = memory.persist("filters", (self.filters, self.row), W.dtype)
        rows[...] = 0
        rows[:, : self.patch] = W
        return rows, b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        (W, b), a = filters, self.backend.xp.ascontiguousarray(a)
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        for images in self._chunks(a):
            self.backend.products(self._columns(a[images]), W.T, z[images].reshape(-1, self.filters))
        if b is not None:
            self.backend.add_bias(z, b, relu)
        return self.backend.relu(z, z) if relu and b is None else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        a, delta = (self.backend.xp.ascontiguousarray(v) for v in (a, delta))
        target = dW = dW.reshape(self.filters, self.patch)
        if self.row != self.patch:
            target = self.backend.xp.empty((self.filters, self.row), dW.dtype)
        for images in self._chunks(a):
            chunk = delta[images].reshape(-1, self.filters).T
            self.backend.products(chunk, self._columns(a[images]), target, add=images.start > 0)
        if target is not dW:
            dW[...] = target[:, : self.patch]
        if db is not None:
            self.backend.sum_columns(delta.reshape(-1, self.filters), db)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        (W, _), delta = filters, self.backend.xp.ascontiguousarray(delta)
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        for images in self._chunks(delta):
            columns = self.backend.products(delta[images].reshape(-1, self.filters), W)
            part = da[images]
            self.backend.kernels.images("col2im", part.dtype, self.geometry, part.shape, columns, part, self.row)
        return da

    def _columns(self, a: Array) -> Array:
        """The patches, (N OH OW, row)."""
        patches = self.backend.xp.empty((len(a) * self.positions, self.row), a.dtype)
        shape = (len(a), *self.window.out_size, self.channels)
        self.backend.kernels.images("im2col", a.dtype, self.geometry, shape, a, patches, self.row)
        return patches

    def _chunks(self, a: Array) -> Iterator[slice]:
        count = max(1, self.backend.room_for_patches // (self.positions * self.row * a.itemsize))
        return (slice(first, first + count) for first in range(0, len(a), count))


class CudaPointwisePlan(CudaConvPlan):
    """1 x 1: the patches are the pixels."""

    def __init__(self, backend: CudaOperations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, bias)
        self.row = self.patch

    def _columns(self, a: Array) -> Array:
        return a.reshape(-1, self.channels)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        self.backend.products(delta.reshape(-1, self.filters), filters[0], da.reshape(-1, self.channels))
        return da

    def _chunks(self, a: Array) -> Iterator[slice]:
        yield slice(0, len(a))


class CudaDepthwisePlan(ConvPlan):
    """One filter per channel: a kernel for each direction."""

    backend: CudaOperations

    def __init__(self, backend: CudaOperations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, filters, bias)
        self.geometry = Geometry(window)

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        return W.reshape(self.filters, self.patch), b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        W, b = filters
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        self.backend.kernels.images("depthwise", z.dtype, self.geometry, z.shape, a, W, b, z)
        return self.backend.relu(z, z) if relu else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        n, xp = len(a), self.backend.xp
        grid = min(n, 64), self.patch, min(-(-self.positions // 256), 8)
        partial = xp.empty((grid[0] * grid[2], self.filters, self.patch), a.dtype)
        arguments = a, delta, partial, self.geometry.value, n, self.filters
        macros = self.geometry.macros
        self.backend.kernels.launch("depthwise_weight", a.dtype, grid, (32, 8, 1), *arguments, macros=macros)
        xp.sum(partial, axis=0, out=dW.reshape(self.filters, self.patch))
        if db is not None:
            self.backend.sum_columns(delta.reshape(-1, self.filters), db)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        self.backend.kernels.images("depthwise_input", da.dtype, self.geometry, da.shape, delta, filters[0], da)
        return da


class CudaMaxPoolPlan(MaxPoolPlan):
    """Max-pooling: the winning tap is kept in 16 bits; each pixel then gathers from the windows that contain it."""

    backend: CudaOperations

    def __init__(self, backend: CudaOperations, window: Window) -> None:
        super().__init__(backend, window)
        if len(window.taps) >= _MOST_TAPS:
            raise ValueError(f"max-pooling on 'cuda' takes windows of fewer than {_MOST_TAPS} pixels, not {window.kernel}")
        self.geometry = Geometry(window)

    def forward(self, a: Array, memory: Memory, out: Array | None) -> Array:
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        winner = memory.persist("winner", y.shape, "uint16") if memory.needs_backward else None
        self.backend.kernels.images("max_pool", y.dtype, self.geometry, y.shape, a, y, winner)
        return y

    def backward(self, delta: Array, memory: Memory, out: Array | None) -> Array:
        return _spread(self, "max_pool_delta", delta, [memory.kept("winner")], out)


class CudaAveragePoolPlan(AveragePoolPlan):
    """Average-pooling."""

    backend: CudaOperations

    def __init__(self, backend: CudaOperations, window: Window, count_padding: bool = True) -> None:
        super().__init__(backend, window, count_padding)
        self.geometry = Geometry(window)

    def forward(self, a: Array, out: Array | None) -> Array:
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        self.backend.kernels.images("average_pool", y.dtype, self.geometry, y.shape, a, self._counts(a), y)
        return y

    def backward(self, delta: Array, out: Array | None) -> Array:
        return _spread(self, "average_pool_delta", delta, [self._counts(delta)], out)

    def _counts(self, like: Array) -> Array | None:
        """What the sums are divided by, if that is not the same everywhere."""
        return None if self.is_even else self.divisor.astype(like.dtype, copy=False)


def _spread(plan: Any, name: str, delta: Array, more: list[Array | None], out: Array | None) -> Array:
    """Send the deltas of windows to the pixels in them."""
    da: Array = plan._out((len(delta), *plan.window.in_shape), delta.dtype, out)
    plan.backend.kernels.images(name, da.dtype, plan.geometry, da.shape, delta, *more, da)
    return da


class CupyBackend(CudaOperations, Backend):
    """CUDA's operations and plans."""

    pointwise_plan, depthwise_plan = CudaPointwisePlan, CudaDepthwisePlan

    def dense_plan(self, window: Window, filters: int, bias: bool, pool: Pair) -> ConvPlan:
        """Patches by a kernel."""
        return CudaConvPlan(self, window, filters, bias)

    def max_pool_plan(self, window: Window) -> CudaMaxPoolPlan:
        """Max-pooling by a kernel."""
        return CudaMaxPoolPlan(self, window)

    def average_pool_plan(self, window: Window, count_padding: bool = True) -> CudaAveragePoolPlan:
        """Average-pooling by a kernel."""
        return CudaAveragePoolPlan(self, window, count_padding)

    def __reduce__(self) -> Any:
        return get_cupy_backend, (self.precision,)


@functools.cache
def get_cupy_backend(precision: Precision = "float32") -> CupyBackend:
    """The one CUDA backend of a precision; raises DeviceError if there is no device."""
    return CupyBackend(precision)
