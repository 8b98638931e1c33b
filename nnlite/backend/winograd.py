"""3 x 3 convolutions of stride 1 with fewer multiplications: Winograd's F(m x m, 3 x 3).

Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks, equations 8 to 12; the transforms are made
by the Toom-Cook construction. A tile d of (m + 2)^2 input pixels gives a tile y of m^2 output pixels: with p = (m + 2)^2,

    v = B' d B      for each channel      V: (p, tiles, C)       M_k = V_k U_k,  k = 1 ... p: products (tiles, C) (C, F)
    u = G w G'      for each filter       U: (p, C, F)           y = A' m A,  for each filter

All tiles are transformed at once: X (m + 2, m + 2, tiles C) holds in plane (i, j) pixel (i, j) of every tile, so that B' from
the left is a product over the first axis and B from the right one over the second. Everything is linear, so the gradients
are the exact adjoints, at the same saving: with D = A delta A' for each filter, one transform for both,

    dU_k = D_k' V_k,  dw = G' du G          dX = B (D_k U_k') B',  overlapping tiles added

The bias is added to M, and its gradient taken from D, at the one point whose output is constant over the tile. With t x t
pooling behind it, the rows of A' come pool tap by pool tap, Y as (t, m / t, t, m / t, tiles F), and only the maxima of the
t^2 taps are put back into an image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.backend.conv import ConvPlan
from nnlite.backend.pool import max_of_taps, spread_to_taps
from nnlite.backend.products import quiet_matmul
from nnlite.backend.window import Array, Pair, Window

if TYPE_CHECKING:
    from nnlite.backend.base import Backend
    from nnlite.backend.memory import Memory

TILES = (2, 3, 4)  # larger tiles save more products and lose more digits
POINTS = (0, 1, -1, 2, -2)
CONSTANT = 1  # of the points, 1 is the one whose powers are all the same
WIDEST_PADDING = 2  # with more, a tile might lie outside the image

# Values between the planes of all arrays that are transformed: planes a multiple of 4 KiB apart fall on the same lines of the
# cache, and the transforms take up to twice as long.
PAD = 16

# What a product, a transform, and a moved value cost, in multiplications of a product: measured on 2 cores of a Zen 4 server.
TRANSFORM, MOVE, COL2IM = 1.8, 20, 25


@cache
def transforms(m: int) -> tuple[Array, Array, Array]:
    """A' (m, m + 2), B' (m + 2, m + 2), G (m + 2, 3): evaluation at m + 1 points and at infinity, in float64."""
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
    return A, B, G


class BothSides:
    """y = T x T' for the matrix x of every place: x (k, k, places), y (l, l, places), T (l, k); `half` is T x.

    The views that NumPy needs are made once: making them would take Python as long as a product, and other threads wait.
    """

    def __init__(self, xp: Any, T: Array, x: Array, half: Array, y: Array) -> None:
        self.multiply = quiet_matmul if x.shape[2] == 1 else xp.matmul  # a single place makes it a product with a vector
        self.T, self.half, self.y = T, half, y
        self.x_by_row, self.half_by_row = x.transpose(1, 0, 2), half.transpose(1, 0, 2)

    def __call__(self, y: Array | None = None) -> None:
        self.multiply(self.T, self.x_by_row, out=self.half_by_row)
        self.multiply(self.T, self.half, out=self.y if y is None else y)


class OverlapAdd:
    """Tiles (m + 2, ..., tiles, inner) overlap along an axis of the image: added, they are `blocks` (m, ..., blocks, inner).

    Pixel i of tile t is pixel m t + i - pad of the image: m of the m + 2 lie in block t, the others in its neighbours. Where
    there are as many blocks as tiles, they are a part of the tiles' own memory.
    """

    def __init__(
        self, xp: Any, tiles: Array, m: int, pad: int, count: int, scratch: Callable[[tuple[int, ...]], Array]
    ) -> None:
        self.add, known, own = xp.add, tiles.shape[3], tiles[pad : pad + m]
        self.blocks = own if count == known else scratch((*own.shape[:3], count, own.shape[4]))
        self.begun = [] if count == known else [(self.blocks[:, :, :, :known], own[:, :, :, :count])]
        self.empty = self.blocks[:, :, :, known:]
        above, below = min(known - 1, count), min(known, count - 1)  # tiles that reach into the block before, or behind
        self.added = [
            (self.blocks[m - pad :, :, :, :above], tiles[:pad, :, :, 1 : above + 1]),
            (self.blocks[: 2 - pad, :, :, 1 : below + 1], tiles[pad + m :, :, :, :below]),
        ]
        self.added = [(block, part) for block, part in self.added if block.size]

    def __call__(self) -> None:
        for block, part in self.begun:
            block[...] = part
            self.empty[...] = 0
        for block, part in self.added:
            self.add(block, part, out=block)


class WinogradPlan(ConvPlan):
    """A convolution by tiles of m x m outputs; `q` x `q` after pooling."""

    def __init__(self, backend: Backend, window: Window, filters: int, bias: bool, m: int, pool: Pair) -> None:
        super().__init__(backend, window, filters, 1, bias, pool)
        self.m, self.k, self.p, self.q = m, m + 2, (m + 2) ** 2, m // pool[0]
        self.rows, self.columns = (-(-size // m) for size in window.out_size)
        self.tiles = self.rows * self.columns
        self.covered = (self.rows * m + 2, self.columns * m + 2)  # of the padded image, by all tiles
        self.exact = window.out_size == (self.rows * m, self.columns * m)  # no tile goes beyond the image
        self.blocks = tuple(-(-size // m) for size in window.in_shape[:2])  # of m x m pixels, of the image
        self.constant = CONSTANT * self.k + CONSTANT
        self.weights = self.p * self.channels * filters
        self.temporaries = self.p * self.tiles * max(2 * self.channels, self.channels + filters)
        self._transforms: dict[Any, tuple[Array, ...]] = {}

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """U (p, C, F), its matrices transposed (p, F, C), because products like them better so, and b."""
        W = W.transpose(1, 2, 3, 0)
        return self._filter_points(W, "filters", memory), self._filter_points(W.swapaxes(2, 3), "transposed", memory), b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        n, (U, _, b), v = len(a), filters, self._views(len(a), a.dtype)
        memory.forget("D")
        self.backend.multiply(self._input_points(a, memory), U, v.products)
        if b is not None:
            v.constant += b
        v.outputs()
        if self.taps > 1:
            max_of_taps(self.backend.xp, v.taps, memory, v.maxima)
        z = self._out((n, *self.out_shape), a.dtype, out)
        whole = z if self.exact else v.whole
        self.backend.copy_runs(self._by_tile(whole), v.maxima)
        if not self.exact:
            z[...] = whole[:, : z.shape[1], : z.shape[2]]
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        """dw = G' du G."""
        v, V, D = self._views(len(a), delta.dtype), memory.kept("V"), memory.kept("D")
        V = self._input_points(a, memory) if V is None else V
        D = self._delta_points(delta, memory) if D is None else D
        self.backend.multiply(D.transpose(0, 2, 1), V, v.dU)
        v.filter_gradient()
        dW[...] = v.dw
        if db is not None:
            db[...] = self.backend.column_sums(D[self.constant])

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        """Between the two sides of B the tiles are added along the image's height, behind both along its width."""
        (n, *_), (_, U, _), v, xp = delta.shape, filters, self._views(len(delta), delta.dtype), self.backend.xp
        D = memory.kept("D")
        D = self._delta_points(delta, memory) if D is None else D
        self.backend.multiply(D, U, v.dV)
        xp.matmul(v.B, v.dV_by_row, out=v.left_by_row)
        v.add_rows()
        xp.matmul(v.B, v.left, out=v.right)
        v.add_columns()
        da = self._out((n, *self.window.in_shape), delta.dtype, out)
        (h, w, c), m = self.window.in_shape, self.m
        whole = v.image if v.image is not None else da
        by_pixel = whole.reshape(n, self.blocks[0], m, self.blocks[1], m, c).transpose(4, 2, 0, 1, 3, 5)
        self.backend.copy_runs(by_pixel, v.dX)
        if whole is not da:
            da[...] = whole[:, :h, :w]
        return da

    def _of(self, dtype: Any) -> tuple[Array, ...]:
        """The transforms, in the dtype of the data; the rows of A' pool tap by pool tap."""
        if dtype not in self._transforms:
            A, B, G = transforms(self.m)
            A = A.reshape(self.q, -1, self.k).transpose(1, 0, 2).reshape(A.shape)
            self._transforms[dtype] = tuple(self.backend.asarray(x, dtype) for x in (A, B, G))
        return self._transforms[dtype]

    def _filter_points(self, W: Array, name: str, memory: Memory) -> Array:
        """u = G w G' of filters (3, 3, ...) as (p, ...)."""
        size = self.channels * self.filters
        taps = self._scratch("filter taps", (3, 3), size, W.dtype)
        taps.reshape(W.shape)[...] = W
        u = _planes(memory.persist(name, (self.p, size + PAD), W.dtype), self.k)
        half = self._scratch("half", (self.k, 3), size, W.dtype)
        BothSides(self.backend.xp, self._of(W.dtype)[2], taps, half, u)()
        return u.reshape(self.p, *W.shape[2:])

    def _views(self, n: int, dtype: Any) -> Any:
        """The scratch arrays of a shard of n images, seen in all the ways that are needed."""
        return self.backend.views((self, n, dtype), lambda: self._make_views(n, dtype))

    def _make_views(self, n: int, dtype: Any) -> Any:
        v, xp, k, m, q, c, f = SimpleNamespace(), self.backend.xp, self.k, self.m, self.q, self.channels, self.filters
        A, B, G = self._of(dtype)
        inputs, outputs, grid, t = n * self.tiles * c, n * self.tiles * f, (n, self.rows, self.columns), m // q

        def planes(name: str, rows: int, columns: int, size: int) -> Array:
            return self._scratch(name, (rows, columns), size, dtype)

        planes("half", k, k, max(inputs, outputs, f * c))  # the largest first, so that none is replaced
        X, V = (planes(name, k, k, inputs) for name in ("X", "V"))
        M, D = (planes(name, k, k, outputs) for name in ("M", "D"))
        v.by_pixel, v.V = X.reshape(k, k, *grid, c), V.reshape(self.p, -1, c)
        v.products, v.D = (x.reshape(self.p, -1, f) for x in (M, D))
        v.input_points = BothSides(xp, B, X, planes("half", k, k, inputs), V)
        v.constant = v.products[self.constant]
        Y = planes("Y", m, m, outputs)
        v.outputs = BothSides(xp, A, M, planes("half", m, k, outputs), Y)
        by_tap = Y.reshape(t, q, t, q, *grid, f)
        v.taps = [by_tap[i, :, j] for i in range(t) for j in range(t)]
        v.maxima = v.taps[0] if self.taps == 1 else self.backend.scratch("maxima", v.taps[0].shape, dtype)
        v.whole = self.backend.scratch("whole", (n, self.rows * q, self.columns * q, f), dtype)
        v.delta_points = BothSides(xp, A.T, Y, planes("half", k, m, outputs), D)
        v.dU, dw = planes("dU", k, k, f * c), planes("filter taps", 3, 3, f * c)
        v.filter_gradient = BothSides(xp, G.T, v.dU, planes("half", 3, k, f * c), dw)
        v.dU, v.dw = v.dU.reshape(self.p, f, c), dw.reshape(3, 3, f, c).transpose(2, 0, 1, 3)
        self._add_input_gradient(v, n, dtype)
        return v

    def _add_input_gradient(self, v: Any, n: int, dtype: Any) -> None:
        k, m, c, (blocks, beside), ((top, _), (left, _)) = self.k, self.m, self.channels, self.blocks, self.window.padding
        xp, scratch, v.B = self.backend.xp, self.backend.scratch, self._of(dtype)[1].T
        dV, rows = (self._scratch(name, (k, k), n * self.tiles * c, dtype) for name in ("V", "X"))
        v.dV, v.dV_by_row, v.left_by_row = dV.reshape(self.p, -1, c), dV.transpose(1, 0, 2), rows.transpose(1, 0, 2)
        rows = rows.reshape(k, k, n, self.rows, -1)
        v.add_rows = OverlapAdd(xp, rows, m, top, blocks, lambda shape: scratch("rows", shape, dtype))
        v.left = v.add_rows.blocks.reshape(m, k, -1)
        v.right = self._scratch("right", (m, k), v.left.shape[2], dtype)
        columns = v.right.reshape(m, k, n * blocks, self.columns, c).transpose(1, 0, 2, 3, 4)
        v.add_columns = OverlapAdd(xp, columns, m, left, beside, lambda shape: scratch("columns", shape, dtype))
        v.dX = v.add_columns.blocks.reshape(m, m, n, blocks, beside, c)
        size = blocks * m, beside * m
        v.image = None if size == self.window.in_shape[:2] else scratch("image", (n, *size, c), dtype)

    def _input_points(self, a: Array, memory: Memory) -> Array:
        """V, (p, tiles, C)."""
        v, m = self._views(len(a), a.dtype), self.m
        image = self._cover(a)
        s, tiles = image.strides, v.by_pixel.shape
        source = self.backend.strided(image, tiles, (s[1], s[2], s[0], m * s[1], m * s[2], s[3]))
        self.backend.copy_runs(v.by_pixel, source)
        kept = memory.keep_if_swept("V", (self.p, v.V[0].size + PAD), a.dtype)
        if kept is None:
            v.input_points()
            return v.V
        V = _planes(kept, self.k)
        v.input_points(V)
        return memory.keep("V", V.reshape(v.V.shape))

    def _cover(self, a: Array) -> Array:
        """The image, padded as the convolution and the last tiles want it."""
        if not self.window.is_padded and a.shape[1] >= self.covered[0] and a.shape[2] >= self.covered[1]:
            return a
        (top, _), (left, _) = self.window.padding
        shape, (h, w), xp = (*self.covered, self.channels), a.shape[1:3], self.backend.xp
        # Kept by thread, so that the zeros around the image are written but once.
        key = ("covered", shape, top, left, h, w, a.dtype)
        image = self.backend.constant_rows(key, len(a), lambda n: xp.zeros((n, *shape), a.dtype))
        image[:, top : top + h, left : left + w] = a[:, : self.covered[0] - top, : self.covered[1] - left]
        return image

    def _delta_points(self, delta: Array, memory: Memory) -> Array:
        """D, (p, tiles, F); kept for whichever gradient comes second."""
        v, whole = self._views(len(delta), delta.dtype), delta
        if not self.exact:
            (h, w, _), whole = self.out_shape, v.whole
            whole[:, h:], whole[:, :h, w:] = 0, 0
            whole[:, :h, :w] = delta
        if self.taps == 1:
            self.backend.copy_runs(v.maxima, self._by_tile(whole))
        else:
            spread_to_taps(self.backend.xp, self._by_tile(whole), memory, v.taps)
        v.delta_points()
        return memory.keep("D", v.D)

    def _scratch(self, name: str, planes: Pair, size: int, dtype: Any) -> Array:
        return _planes(self.backend.scratch(name, (planes[0] * planes[1], size + PAD), dtype), planes[0])

    def _by_tile(self, z: Array) -> Array:
        """(N, rows q, columns q, F) seen as (q, q, N, rows, columns, F)."""
        return z.reshape(len(z), self.rows, self.q, self.columns, self.q, -1).transpose(2, 4, 0, 1, 3, 5)


def _planes(rows: Array, count: int) -> Array:
    """(count count', size + PAD) as (count, count', size): without what keeps the planes apart."""
    return rows.reshape(count, -1, rows.shape[1])[:, :, :-PAD]


def best_tile(window: Window, filters: int, pool: Pair) -> int | None:
    """The m that makes a training step of this convolution cheapest, or None where the direct product does."""
    if not _possible(window):
        return None
    costs: dict[int | None, float] = {m: _winograd_cost(window, filters, m) for m in _tiles(pool)}
    costs[None] = _direct_cost(window, filters)
    return min(costs, key=lambda m: costs[m])


def _possible(window: Window) -> bool:
    geometry = (window.kernel, window.stride, window.dilation)
    return geometry == ((3, 3), (1, 1), (1, 1)) and max(max(pads) for pads in window.padding) <= WIDEST_PADDING


def _tiles(pool: Pair) -> list[int]:
    """The tiles that a pooling of this size does not cut."""
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
    """What `nn.set_conv_algorithm` chose, for plans made from then on."""

    name = "auto"

    def tile(self, window: Window, filters: int, pool: Pair) -> int | None:
        """The Winograd tile for a convolution, or None for the direct product."""
        if self.name == "direct":
            return None
        best = best_tile(window, filters, pool)
        if self.name == "winograd" and best is None and _possible(window):
            return min(_tiles(pool), key=lambda m: _winograd_cost(window, filters, m), default=None)
        return best


conv_algorithm = ConvAlgorithm()


def set_conv_algorithm(name: str) -> None:
    """Choose how the CPU computes 3 x 3 convolutions of stride 1, in models that are built, copied or loaded from now on.

    "auto" (default): by a rule of the shape, Winograd's where that is faster. "direct": patches, exact to rounding.
    "winograd": wherever it is possible. Its float32 error is below 2e-5 of the largest output with tiles of 4 x 4, 5e-6 with
    3 x 3 and 1e-6 with 2 x 2 (the direct product's is below 1e-6). Raises ValueError for another name.
    """
    if name not in ("auto", "direct", "winograd"):
        raise ValueError(f'the algorithm is "auto", "direct" or "winograd", not {name!r}')
    conv_algorithm.name = name
