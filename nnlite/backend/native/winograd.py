"""3 x 3 and 4 x 4 convolutions of stride 1 by the C kernels of Winograd's F(m x m, r x r)."""

from functools import cache
from typing import Any

import numpy as np

from nnlite.backend.conv import ConvPlan
from nnlite.backend.cpu.winograd import conv_algorithm, is_possible
from nnlite.backend.memory import Memory
from nnlite.backend.native.operations import NativeOperations, address, kernels, padded
from nnlite.backend.native.rectified import Columns, source
from nnlite.backend.window import Array, Window

TILES = {3: (2, 3, 4, 5, 6, 7), 4: (3,)}  # m, by r
_LANES = 16  # values between planes
# Measured on a Zen 4 server, in multiplications of a product:
_TRANSFORM = 1.4  # a term of a transformed value
_FILTER, _FAR_FILTER = 1, 4  # one of a transformed filter, with its gradient's; where not all filters fit L2
_NEAR = 1 << 18  # values that do
_FEWEST = 16  # images that transformed filters serve, where no more are known of
_DIGITS = 1.08  # what a tile must save for each pixel that it is wider: it loses digits


def best_tile(window: Window, filters: int) -> int | None:
    """The m that makes this convolution cheapest, or None for products without tiles; or as `nn.set_conv_algorithm` says."""
    if conv_algorithm.name == "direct" or not is_possible(window):
        return None
    m, best = cheapest_tile(window, filters)
    in_place = 9 * window.in_shape[2] * padded(filters) * window.out_size[0] * window.out_size[1]
    return m if best < in_place or conv_algorithm.name == "winograd" else None


@cache  # it is asked in every pass
def cheapest_tile(window: Window, filters: int, batch: int = 0) -> tuple[int, float]:
    """m and the cost of an image with it, in multiplications of a product. batch: samples in two shards that share filters."""
    images = max(_FEWEST, batch // 2)
    costs = {m: _cost(window, filters, m, images) for m in TILES[window.kernel[0]]}
    best = min(costs, key=lambda m: costs[m] * _DIGITS**m)
    return best, costs[best]


def _cost(window: Window, filters: int, m: int, images: int) -> float:
    side = m + window.kernel[0] - 1
    tiles, channels, outputs = -(-window.out_size[0] // m) * -(-window.out_size[1] // m), window.in_shape[2], padded(filters)
    products = tiles * (channels * outputs + _TRANSFORM * side * (padded(channels) + outputs))
    of_filter = _FILTER if side**2 * channels * outputs <= _NEAR else _FAR_FILTER
    return side**2 * (products + of_filter * side * channels * outputs / images)


class NativeTilesPlan(ConvPlan):
    """A 3 x 3 convolution whose tiles are chosen when filters are prepared: more images are worth larger ones."""

    backend: NativeOperations
    normalizes = True

    def __init__(self, backend: NativeOperations, window: Window, filters: int, bias: bool) -> None:
        super().__init__(backend, window, filters, 1, bias)
        self._plans: dict[int, NativeWinogradPlan] = {}
        few = self.of_batch(0)
        self.weights, self.temporaries = few.weights, few.temporaries

    def of_batch(self, batch: int) -> "NativeWinogradPlan":
        """The plan for a batch of so many samples; 0: not known."""
        m, _ = cheapest_tile(self.window, self.filters, batch)
        if m not in self._plans:
            self._plans[m] = NativeWinogradPlan(self.backend, self.window, self.filters, self.bias, m)
        return self._plans[m]

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """The plan, and what it prepares."""
        plan = self.of_batch(memory.batch)
        return plan, plan.prepare(W, b, memory)

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        plan, prepared = filters
        z: Array = plan.forward(a, prepared, memory, out, relu)
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        self.of_batch(0).weight_gradient(a, delta, memory, dW, db)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        plan, prepared = filters
        da: Array = plan.input_gradient(delta, prepared, memory, out)
        return da

    def gradients(
        self, a: Array, delta: Array, filters: Any, memory: Memory, dW: Array, db: Array | None, out: Array | None
    ) -> Array | None:
        """Both, with delta transformed once."""
        plan, prepared = filters
        da: Array | None = plan.gradients(a, delta, prepared, memory, dW, db, out)
        return da


class NativeWinogradPlan(ConvPlan):
    """A convolution by tiles of m x m outputs: see `native/winograd.h`."""

    backend: NativeOperations
    normalizes = True

    def __init__(self, backend: NativeOperations, window: Window, filters: int, bias: bool, m: int) -> None:
        super().__init__(backend, window, filters, 1, bias)
        (top, _), (left, _) = window.padding
        r = window.kernel[0]
        self.name, self.points = f"winograd{m}{r}", (m + r - 1) ** 2
        self.shape = (*window.in_shape, filters, top, left, *window.out_size)
        self.forward_plane, self.backward_plane = (
            self.channels * padded(filters) + _LANES,
            filters * padded(self.channels) + _LANES,
        )
        self.weights = self.points * self.channels * filters
        self.temporaries = 0
        self._scratch: int | None = None

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """U, U transposed, and b with zeros behind."""
        U = memory.persist("filters", (self.points, self.forward_plane), W.dtype)
        UT = memory.persist("transposed", (self.points, self.backward_plane), W.dtype)
        self._call("filters", W.dtype, address(W), address(U), address(UT), self.channels, self.filters)
        if b is not None:
            wide = memory.persist("bias", (padded(self.filters),), W.dtype)
            wide[...] = 0
            wide[: self.filters] = b
            b = wide
        return U, UT, b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        U, _, b = filters
        a, by = source(self.backend, a, U.dtype, self.window.in_shape)
        z = self.backend.room(out, (len(a), *self.out_shape), a.dtype)
        bias, room = 0 if b is None else address(b), address(self._room(a.dtype))
        self._call("forward", a.dtype, address(a), *by, address(U), bias, relu, address(z), room, len(a), *self.shape)
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        self.gradients(a, delta, None, memory, dW, db, None)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        delta = self.backend.given(delta, filters[1].dtype, self.out_shape)
        da = self.backend.room(out, (len(delta), *self.window.in_shape), delta.dtype)
        self._backward(delta, (0, 0, 0), delta, filters, None, da)
        return da

    def gradients(
        self, a: Array, delta: Array, filters: Any, memory: Memory, dW: Array, db: Array | None, out: Array | None
    ) -> Array | None:
        """Both gradients, with delta transformed once; without `filters` only that of the weights."""
        a, by = source(self.backend, a, dW.dtype, self.window.in_shape)
        delta = self.backend.given(delta, dW.dtype, self.out_shape)
        dU = self.backend.scratch("gradient of the points", (self.points, self.backward_plane), delta.dtype)
        dU[...] = 0
        da = None if filters is None else self.backend.room(out, (len(delta), *self.window.in_shape), delta.dtype)
        self._backward(a, by, delta, filters, dU, da)
        self._call("filter_gradient", delta.dtype, address(dU), address(dW), self.channels, self.filters)
        if db is not None:
            self.backend.sum_columns(self.backend.rows(delta), db)
        return da

    def _backward(self, a: Array, by: Columns, delta: Array, filters: Any, dU: Array | None, da: Array | None) -> None:
        places = [0 if x is None else address(x) for x in (filters and filters[1], dU, da)]
        self._call(
            "backward",
            delta.dtype,
            address(delta),
            address(a),
            *by,
            *places,
            address(self._room(delta.dtype)),
            len(delta),
            *self.shape,
        )

    def _room(self, dtype: Any) -> Array:
        if self._scratch is None:
            size = np.zeros(1, np.int64)
            self._call("scratch", dtype, *self.shape, address(size))
            self._scratch = int(size[0])
        return self.backend.scratch("winograd", (self._scratch,), dtype)

    def _call(self, name: str, dtype: Any, *arguments: Any) -> None:
        kernels(dtype)[f"{self.name}_{name}"](*arguments)
