"""Convolutions and pooling on a CUDA device: the plans of `conv.py` and `pool.py`, by the kernels of `cuda/`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nnlite.backend.conv import ConvPlan
from nnlite.backend.pool import AveragePoolPlan, MaxPoolPlan
from nnlite.backend.window import Array, Window

if TYPE_CHECKING:
    from nnlite.backend.cupy import CupyBackend
    from nnlite.backend.memory import Memory

WORKSPACE = 32 << 20  # bytes of patches at a time: they stay in the L2 cache of a large GPU
_MOST_TAPS = 1 << 16  # of a pooling window: the winner is kept in 16 bits


def _geometry(backend: "CupyBackend", w: Window) -> Array:
    """`struct Window` of common.h, on the device."""
    (top, _), (left, _) = w.padding
    sizes = (*w.in_shape[:2], *w.out_size, *w.kernel, *w.stride, *w.dilation, top, left)
    return backend.xp.asarray(sizes, "int32")


class CudaConvPlan(ConvPlan):
    """Products with patches, so many images at a time that the patches fit into the workspace."""

    backend: "CupyBackend"

    def __init__(self, backend: "CupyBackend", window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, 1, bias)
        self.geometry = _geometry(backend, window)

    def prepare(self, W: Array, b: Array | None, memory: "Memory") -> Any:
        return W.reshape(self.filters, self.patch), b

    def forward(self, a: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        (W, b), a = filters, self.backend.xp.ascontiguousarray(a)
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        for images in self._chunks(a):
            self.backend.product(self._columns(a[images]), W.T, z[images].reshape(-1, self.filters))
        if b is not None:
            self.backend.add_bias(z, b)
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: "Memory", dW: Array, db: Array | None) -> None:
        a, dW = self.backend.xp.ascontiguousarray(a), dW.reshape(self.filters, self.patch)
        for i, images in enumerate(self._chunks(a)):
            chunk = delta[images].reshape(-1, self.filters).T
            if i == 0:
                self.backend.product(chunk, self._columns(a[images]), dW)
            else:
                dW += self.backend.product(chunk, self._columns(a[images]), None)
        if db is not None:
            db[...] = self.backend.column_sums(delta.reshape(-1, self.filters))

    def input_gradient(self, delta: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        W, _ = filters
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        for images in self._chunks(delta):
            part = da[images]
            columns = self.backend.product(delta[images].reshape(-1, self.filters), W, None)
            pixels = part.size // self.channels
            self.backend.kernels.rows(
                "col2im", part.dtype, pixels, self.channels, columns, part, self.geometry, len(part), self.channels
            )
        return da

    def _columns(self, a: Array) -> Array:
        """The patches, (N OH OW, kh kw C)."""
        patches = self.backend.xp.empty((len(a) * self.positions, self.patch), a.dtype)
        self.backend.kernels.rows("im2col", a.dtype, len(patches), self.patch, a, patches, self.geometry, len(a), self.channels)
        return patches

    def _chunks(self, a: Array) -> Iterator[slice]:
        count = max(1, WORKSPACE // (self.positions * self.patch * a.itemsize))
        return (slice(first, first + count) for first in range(0, len(a), count))


class CudaPointwisePlan(CudaConvPlan):
    """1 x 1: the patches are the pixels."""

    def _columns(self, a: Array) -> Array:
        return a.reshape(-1, self.channels)

    def input_gradient(self, delta: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        self.backend.product(delta.reshape(-1, self.filters), filters[0], da.reshape(-1, self.channels))
        return da

    def _chunks(self, a: Array) -> Iterator[slice]:
        yield slice(0, len(a))


class CudaDepthwisePlan(ConvPlan):
    """One filter for each channel: a kernel for each direction."""

    backend: "CupyBackend"

    def __init__(self, backend: "CupyBackend", window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, filters, bias)
        self.geometry = _geometry(backend, window)

    def prepare(self, W: Array, b: Array | None, memory: "Memory") -> Any:
        return W.reshape(self.filters, self.patch), b

    def forward(self, a: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        (W, b), a = filters, self.backend.xp.ascontiguousarray(a)
        z = self._out((len(a), *self.out_shape), a.dtype, out)
        self._launch("depthwise", z, a, W, b, z)
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: "Memory", dW: Array, db: Array | None) -> None:
        xp = self.backend.xp
        a, delta = xp.ascontiguousarray(a), xp.ascontiguousarray(delta)
        blocks = max(1, min(len(a) * self.positions // 1024, 256))
        partial = xp.empty((blocks, self.filters, self.patch), a.dtype)
        sizes = (self.geometry, len(a), self.filters)
        self.backend.kernels.launch("depthwise_weight", a.dtype, (blocks, self.patch, 1), (32, 8, 1), a, delta, partial, *sizes)
        xp.sum(partial, axis=0, out=dW.reshape(self.filters, self.patch))
        if db is not None:
            db[...] = self.backend.column_sums(delta.reshape(-1, self.filters))

    def input_gradient(self, delta: Array, filters: Any, memory: "Memory", out: Array | None) -> Array:
        delta = self.backend.xp.ascontiguousarray(delta)
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        self._launch("depthwise_input", da, delta, filters[0], da)
        return da

    def _launch(self, name: str, result: Array, *args: Array | None) -> None:
        pixels = result.size // self.filters
        self.backend.kernels.rows(name, result.dtype, pixels, self.filters, *args, self.geometry, len(result), self.filters)


class CudaMaxPoolPlan(MaxPoolPlan):
    """Max-pooling: which tap won is kept in 16 bits; each pixel then gathers from the windows that it lies in."""

    backend: "CupyBackend"

    def __init__(self, backend: "CupyBackend", window: Window) -> None:
        super().__init__(backend, window)
        if len(window.taps) >= _MOST_TAPS:
            raise ValueError(f"max-pooling on 'cuda' takes windows of fewer than {_MOST_TAPS} pixels, not {window.kernel}")
        self.geometry = _geometry(backend, window)

    def forward(self, a: Array, memory: "Memory", out: Array | None) -> Array:
        a, channels = self.backend.xp.ascontiguousarray(a), a.shape[3]
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        winner = memory.persist("winner", y.shape, "uint16") if memory.training else None
        self.backend.kernels.rows(
            "max_pool", a.dtype, y.size // channels, channels, a, y, winner, self.geometry, len(a), channels
        )
        return y

    def backward(self, delta: Array, memory: "Memory", out: Array | None) -> Array:
        return _spread(self, "max_pool_delta", delta, [memory.kept("winner")], out)


class CudaAveragePoolPlan(AveragePoolPlan):
    """Average-pooling."""

    backend: "CupyBackend"

    def __init__(self, backend: "CupyBackend", window: Window) -> None:
        super().__init__(backend, window)
        self.geometry = _geometry(backend, window)

    def forward(self, a: Array, out: Array | None) -> Array:
        a, channels = self.backend.xp.ascontiguousarray(a), a.shape[3]
        y = self._out((len(a), *self.out_shape), a.dtype, out)
        self.backend.kernels.rows("average_pool", a.dtype, y.size // channels, channels, a, y, self.geometry, len(a), channels)
        return y

    def backward(self, delta: Array, out: Array | None) -> Array:
        return _spread(self, "average_pool_delta", delta, [], out)


def _spread(plan: Any, name: str, delta: Array, more: list[Array | None], out: Array | None) -> Array:
    """Deltas of windows to the pixels that lie in them."""
    backend, channels = plan.backend, delta.shape[3]
    delta = backend.xp.ascontiguousarray(delta)
    da = plan._out((len(delta), *plan.window.in_shape), delta.dtype, out)
    backend.kernels.rows(name, da.dtype, da.size // channels, channels, delta, *more, da, plan.geometry, len(delta), channels)
    return da
