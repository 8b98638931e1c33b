"""3 x 3 convolutions of stride 1 with fewer multiplications: Winograd's F(m x m, 3 x 3).

Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks, equations 8 to 12; the transforms follow
the Toom-Cook construction. A tile d of (m + 2)^2 input pixels gives a tile y of m^2 output pixels: with p = (m + 2)^2,

    v = B d B'      for each channel      V: (p, tiles N, C)     M_k = V_k U_k,  k = 1 ... p: products (tiles N, C) (C, F)
    u = G w G'      for each filter       U: (p, C, F)           y = A m A',  for each filter

Images are stored pixel by pixel, (H, W, N C), so m + 2 neighbouring pixels of a row are a contiguous matrix (m + 2, N C),
which B multiplies; no tile is ever copied. Then the same along the columns. At the border of the image tiles have fewer
pixels, and B as many columns: nothing is padded. Everything is linear, so the gradients are the exact adjoints, at the same
saving: with D = A' delta A for each filter, one transform for both,

    dU_k = D_k' V_k,  dw = G' du G          da = B' (D_k U_k') B,  overlapping tiles added

The bias is added to M, and its gradient taken from D, at the one point whose output is constant over the tile. (The paper's
A' and B' are A and B here: the factors on the left.)
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from nnlite.arguments import choice
from nnlite.backend.conv import ConvPlan
from nnlite.backend.cpu.products import quiet_matmul
from nnlite.backend.cpu.tiles import AddTiles, Axis, FromTiles, ToTiles
from nnlite.backend.memory import Memory
from nnlite.backend.operations import Operations
from nnlite.backend.pool import max_of_taps, spread_to_taps
from nnlite.backend.window import Array, Pair, Window

TILES = (2, 3, 4)  # larger tiles save more products and lose more digits
POINTS = (0, 1, -1, 2, -2)
CONSTANT = 1  # of the points, only the powers of 1 are all equal
WIDEST_PADDING = 2  # with more, a tile might be outside the image

# Values between the planes of all arrays that are transformed: planes a multiple of 4 KiB apart compete for the same
# cache lines, and the transforms take up to twice as long.
PAD = 16

# The costs of a product, a transform, and a moved value, in multiplications of a product: measured on a Zen 4 server; the
# choices are also right on an Intel Xeon (`benchmarks/results/convolutions.md`).
TRANSFORM, MOVE, COL2IM = 1.8, 20, 25


@cache
def transforms(m: int, dtype: Any = np.float64) -> tuple[Array, Array, Array]:
    """A (m, m + 2), B (m + 2, m + 2), G (m + 2, 3): evaluation at m + 1 points and at infinity, rounded from float64."""
    points, n = POINTS[: m + 1], m + 2
    A, G, B = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for i, x in enumerate(points):
        others = [y for y in points if y != x]
        scale = np.prod([x - y for y in others])
        A[:, i] = [float(x) ** k for k in range(m)]
        G[i] = [float(x) ** k / scale for k in range(3)]
        B[i, : n - 1] = np.poly(others)[::-1]
    A[-1, -1] = G[-1, -1] = 1
    B[-1] = np.poly(points)[::-1]
    return A.astype(dtype), B.astype(dtype), G.astype(dtype)


class BothSides:
    """y = T x T' for the matrix x of every filter: x (k, k, filters), y (l, l, filters), T (l, k); `half` is T x."""

    def __init__(self, xp: Any, T: Array, x: Array, half: Array, y: Array) -> None:
        self.multiply = quiet_matmul if x.shape[2] == 1 else xp.matmul  # a single filter makes it a product with a vector
        self.T, self.half, self.y = T, half, y
        self.x_by_row, self.half_by_row = x.transpose(1, 0, 2), half.transpose(1, 0, 2)

    def __call__(self) -> None:
        self.multiply(self.T, self.x_by_row, out=self.half_by_row)
        self.multiply(self.T, self.half, out=self.y)


class WinogradPlan(ConvPlan):
    """A convolution by tiles of m x m outputs."""

    def __init__(self, backend: Operations, window: Window, filters: int, bias: bool, m: int, pool: Pair) -> None:
        super().__init__(backend, window, filters, 1, bias, pool)
        self.m, self.k, self.p = m, m + 2, (m + 2) ** 2
        axes = zip(window.padding, window.in_shape[:2], window.out_size, strict=True)
        self.rows, self.columns = (Axis(backend, m, before, size, outputs) for (before, _), size, outputs in axes)
        self.tiles = self.rows.count * self.columns.count
        self.constant = CONSTANT * self.k + CONSTANT
        self.weights = self.p * self.channels * filters
        V, M = self.p * self.tiles * self.channels, self.p * self.tiles * filters
        self.temporaries = V + max(M, self.k * self.rows.size * self.columns.count * self.channels)

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """U (p, C, F), its transposed matrices (p, F, C), because products with them are faster, and b."""
        W = W.transpose(1, 2, 3, 0)
        return self._filter_points(W, "filters", memory), self._filter_points(W.swapaxes(2, 3), "transposed", memory), b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        n, (U, _, b), v = len(a), filters, self._views(len(a), a.dtype)
        memory.forget("D")
        self.backend.matmul(self._input_points(a, memory), U, v.products)
        if b is not None:
            v.constant += b
        v.rows_out()
        z = self._out((n, *self.out_shape), a.dtype, out)
        pixels = self._pixels(z)
        v.columns_out(pixels if self.taps == 1 else v.Y)
        if self.taps > 1:
            max_of_taps(self.backend.xp, v.columns, memory, v.rows, "larger column")
            max_of_taps(self.backend.xp, v.rows, memory, pixels, "larger row")
        return self.backend.relu(z, z) if relu else z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        """dw = G' du G."""
        v, V, D = self._views(len(a), delta.dtype), memory.kept("V"), memory.kept("D")
        V = self._input_points(a, memory) if V is None else V
        D = self._delta_points(delta, memory) if D is None else D
        self.backend.matmul_rows(D, V, v.dU)
        v.filter_gradient()
        dW[...] = v.dw
        if db is not None:
            db[...] = self.backend.column_sums(D[self.constant])

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        """da = B' dv B."""
        (_, U, _), v, D = filters, self._views(len(delta), delta.dtype), memory.kept("D")
        D = self._delta_points(delta, memory) if D is None else D
        self.backend.matmul(D, U, v.V)
        v.add_rows()
        da = self._out((len(delta), *self.window.in_shape), delta.dtype, out)
        v.add_columns(self._pixels(da))
        return da

    def _filter_points(self, W: Array, name: str, memory: Memory) -> Array:
        """u = G w G' of filters (3, 3, ...) as (p, ...)."""
        size = self.channels * self.filters
        taps = self._scratch("filter taps", (3, 3), size, W.dtype)
        taps.reshape(W.shape)[...] = W
        u = _planes(memory.persist(name, (self.p, size + PAD), W.dtype), self.k)
        half = self._scratch("half filters", (self.k, 3), size, W.dtype)
        BothSides(self.backend.xp, transforms(self.m, W.dtype)[2], taps, half, u)()
        return u.reshape(self.p, *W.shape[2:])

    def _views(self, n: int, dtype: Any) -> Any:
        """The scratch arrays of a shard of n images, in all the views needed."""
        return self.backend.views((self, n, dtype), lambda: self._make_views(n, dtype))

    def _make_views(self, n: int, dtype: Any) -> Any:
        v, k, p, c, f = SimpleNamespace(), self.k, self.p, n * self.channels, n * self.filters
        (A, B, _), rows, columns = transforms(self.m, dtype), self.rows, self.columns
        height, width = self.window.out_size
        inputs, outputs = rows.size * columns.count, height * columns.count
        half = self._scratch("half", (1, k), max(inputs * c, outputs * f), dtype)[0]
        V, M, D = (self._scratch(name, (k, k), self.tiles * size, dtype) for name, size in (("V", c), ("M", f), ("D", f)))
        v.V, v.products, v.D = (x.reshape(p, -1, size // n) for x, size in ((V, c), (M, f), (D, f)))
        v.constant = v.products[self.constant]
        # Along a row of the image the tiles of a shard are (k, height, columns, n C), along a column (k, k, rows, ...).
        by_row = half[:, : inputs * c].reshape(k, rows.size, columns.count, c)
        pixels, tiles = by_row.reshape(k, rows.size, -1), V.reshape(k, k, rows.count, -1)
        v.columns_in = ToTiles(columns, columns.inputs, B, None, by_row)
        v.rows_in = ToTiles(rows, rows.inputs, B, pixels, tiles)
        rest = self._scratch("rest", (1, 2), max(k * self.tiles, inputs) * c, dtype)[0]
        v.add_rows = AddTiles(rows, B.T, tiles, pixels, rest[:, : k * self.tiles * c].reshape(2, k, rows.count, -1))
        v.add_columns = AddTiles(columns, B.T, by_row, None, rest[:, : inputs * c].reshape(2, *by_row.shape[1:]))
        by_row = half[:, : outputs * f].reshape(k, height, columns.count, f)
        pixels = by_row.reshape(k, height, -1)
        v.rows_out = FromTiles(rows, rows.outputs, A, M.reshape(k, k, rows.count, -1), pixels)
        v.columns_out = FromTiles(columns, columns.outputs, A, by_row, None)
        v.delta_columns = ToTiles(columns, columns.outputs, A.T, None, by_row)
        v.delta_rows = ToTiles(rows, rows.outputs, A.T, pixels, D.reshape(k, k, rows.count, -1))
        if self.taps > 1:
            (th, tw), (ph, pw, _) = self.pool, self.out_shape
            v.Y = self.backend.scratch("Y", (height, width, f), dtype)
            # The largest of each row of a window, then of these: fewer calls than tap by tap, and ties are resolved alike.
            by_tap = v.Y.reshape(ph, th, pw, tw, f).transpose(3, 1, 0, 2, 4)
            v.columns, v.rows = list(by_tap), self.backend.scratch("row maxima", by_tap.shape[1:], dtype)
        self._add_filter_gradient(v, dtype)
        return v

    def _add_filter_gradient(self, v: Any, dtype: Any) -> None:
        k, c, f = self.k, self.channels, self.filters
        dU, dw = self._scratch("dU", (k, k), f * c, dtype), self._scratch("filter taps", (3, 3), f * c, dtype)
        half = self._scratch("half filters", (k, 3), f * c, dtype).reshape(3, k, -1)
        v.filter_gradient = BothSides(self.backend.xp, transforms(self.m, dtype)[2].T, dU, half, dw)
        v.dU, v.dw = dU.reshape(self.p, f, c), dw.reshape(3, 3, f, c).transpose(2, 0, 1, 3)

    def _input_points(self, a: Array, memory: Memory) -> Array:
        """V, (p, tiles N, C)."""
        v = self._views(len(a), a.dtype)
        v.columns_in(self._pixels(a))
        kept = memory.keep_if_swept("V", (self.p, v.V[0].size + PAD), a.dtype)
        if kept is None:
            v.rows_in()
            return v.V
        V = _planes(kept, self.k)
        v.rows_in(y=V.reshape(self.k, self.k, self.rows.count, -1))
        return memory.keep("V", V.reshape(v.V.shape))

    def _delta_points(self, delta: Array, memory: Memory) -> Array:
        """D, (p, tiles N, F); kept for whichever gradient is computed second."""
        v, pixels = self._views(len(delta), delta.dtype), self._pixels(delta)
        if self.taps > 1:
            spread_to_taps(self.backend.xp, pixels, memory, v.rows, "larger row")
            spread_to_taps(self.backend.xp, v.rows, memory, v.columns, "larger column")
        v.delta_columns(pixels if self.taps == 1 else v.Y)
        v.delta_rows()
        return memory.keep("D", v.D)

    def _scratch(self, name: str, planes: Pair, size: int, dtype: Any) -> Array:
        return _planes(self.backend.scratch(name, (planes[0] * planes[1], size + PAD), dtype), planes[0])


def _planes(rows: Array, count: int) -> Array:
    """View (count count', size + PAD) as (count, count', size), without the padding between planes."""
    return rows.reshape(count, -1, rows.shape[1])[:, :, :-PAD]


def best_tile(window: Window, filters: int, pool: Pair) -> int | None:
    """The m that makes a training step of this convolution cheapest, or None if the direct product is cheaper."""
    if not is_possible(window):
        return None
    costs: dict[int | None, float] = {m: _winograd_cost(window, filters, m) for m in _tiles(pool)}
    costs[None] = _direct_cost(window, filters)
    return min(costs, key=lambda m: costs[m])


def is_possible(window: Window) -> bool:
    """Whether Winograd's algorithm can compute a convolution with this window."""
    geometry = (window.kernel, window.stride, window.dilation)
    return geometry == ((3, 3), (1, 1), (1, 1)) and max(max(pads) for pads in window.padding) <= WIDEST_PADDING


def _tiles(pool: Pair) -> list[int]:
    """The tile sizes that pooling of this size divides."""
    return [m for m in TILES if pool[0] == pool[1] and m % pool[0] == 0]


def _direct_cost(window: Window, filters: int) -> float:
    patches = 9 * window.in_shape[2] * window.out_size[0] * window.out_size[1]
    return patches * (3 * filters + MOVE + COL2IM)


def _winograd_cost(window: Window, filters: int, m: int) -> float:
    tiles, channels, k = -(-window.out_size[0] // m) * -(-window.out_size[1] // m), window.in_shape[2], m + 2
    products = 3 * k * k * channels * filters
    transformed = TRANSFORM * 2 * (2 * k**3 * channels + (m * k * k + m * m * k) * filters)
    moved = MOVE * 2 * (k * k * channels + m * m * filters)
    return tiles * (products + transformed + moved)


class ConvAlgorithm:
    """The choice of `nn.set_conv_algorithm`, for plans made afterwards."""

    name = "auto"

    def tile(self, window: Window, filters: int, pool: Pair) -> int | None:
        """The Winograd tile for a convolution, or None for the direct product."""
        if self.name == "direct":
            return None
        best = best_tile(window, filters, pool)
        if self.name == "winograd" and best is None and is_possible(window):
            return min(_tiles(pool), key=lambda m: _winograd_cost(window, filters, m), default=None)
        return best


conv_algorithm = ConvAlgorithm()


def set_conv_algorithm(name: str) -> None:
    """Choose how the CPU computes convolutions, in models that are built, copied or loaded from now on.

    "auto" (default): by a rule of the shape, Winograd's if that is faster: for 3 x 3 of stride 1, in C also for wider windows,
    strides and dilations that are made of such. "direct": patches, exact to rounding.
    "winograd": for every 3 x 3 of stride 1. Its float32 error is below 2e-5 of the largest output with NumPy's tiles of 4 x 4,
    5e-6 with 3 x 3 and 1e-6 with 2 x 2 (the direct product's is below 1e-6); in C below 1e-4 with tiles of 7 x 7, 5e-5 with
    6 x 6, 2e-5 with 5 x 5, 1e-5 with 4 x 4. An infinite value or NaN makes all outputs of its tiles NaN, not only those of its
    patches. Raises ValueError for another name.
    """
    conv_algorithm.name = choice("name", name, "auto", "direct", "winograd")
