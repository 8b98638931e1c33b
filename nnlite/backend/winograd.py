"""3 x 3 convolutions of stride 1 with fewer multiplications: Winograd's F(m x m, 3 x 3).

Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks, equations 8 to 12; the transforms are made
by the Toom-Cook construction. A tile of (m + 2)^2 input pixels gives m^2 output pixels; with p = (m + 2)^2,

    V = B' X    X: (p, tiles C)    input tiles, transformed       M_k = V_k U_k,  k = 1 ... p: p products (tiles, C) (C, F)
    U = G W     W: (9, C F)        filters, transformed           Y = A' M        Y: (m^2, tiles F)  output tiles

where A, B, G are Kronecker squares of the one-dimensional transforms, so each transform is one matrix product. Everything is
linear, so the gradients are the exact adjoints, at the same saving: with D = A delta, one transform for both,

    dU_k = D_k' V_k,  dW = G' dU          dX = B (D_k U_k'),  overlapping tiles added back

The bias is added to M, and its gradient taken from D, at the one point whose output is constant over the tile. With t x t
pooling behind it, Y comes as (t^2, (m / t)^2 tiles F), pool tap by pool tap, and only the maxima are put back into an image.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.backend.conv import ConvPlan
from nnlite.backend.pool import max_of_taps, spread_to_taps
from nnlite.backend.window import Array, Pair, Window

if TYPE_CHECKING:
    from nnlite.backend.base import Backend
    from nnlite.backend.memory import Memory

TILES = (2, 3, 4)  # larger tiles save more products and lose more digits
POINTS = (0, 1, -1, 2, -2)
CONSTANT = 1  # of the points, 1 is the one whose powers are all the same

# Values between the rows of all arrays that are transformed: rows a multiple of 4 KiB apart fall on the same lines of the
# cache, and the transforms take up to twice as long.
PAD = 16

# What a product, a transform, and a moved value cost, in multiplications of a product: measured on 2 cores of a Zen 4 server.
TRANSFORM, MOVE, COL2IM = 1.3, 20, 40


@cache
def transforms(m: int) -> tuple[Array, Array, Array]:
    """A' (m^2, p), B' (p, p), G (p, 9): evaluation at m + 1 points and at infinity, in float64."""
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
    return np.kron(A, A), np.kron(B, B), np.kron(G, G)


class WinogradPlan(ConvPlan):
    """A convolution by tiles of m x m outputs; `q` x `q` after pooling."""

    def __init__(self, backend: Backend, window: Window, filters: int, bias: bool, m: int, pool: Pair = (1, 1)) -> None:
        super().__init__(backend, window, filters, 1, bias, pool)
        self.m, self.p, self.q = m, (m + 2) ** 2, m // pool[0]
        self.rows, self.columns = (-(-size // m) for size in window.out_size)
        self.tiles = self.rows * self.columns
        self.covered = (self.rows * m + 2, self.columns * m + 2)  # of the padded image, by all tiles
        self.exact = window.out_size == (self.rows * m, self.columns * m)  # no tile goes beyond the image
        self.constant = CONSTANT * (m + 2) + CONSTANT
        self.weights = self.p * self.channels * filters
        self.temporaries = self.p * self.tiles * max(2 * self.channels, self.channels + filters)
        self._transforms: dict[Any, tuple[Array, ...]] = {}

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        """U = G W, (p, C, F), and b."""
        _, _, G = self._of(W.dtype)
        taps = self._scratch("filter taps", 9, self.channels * self.filters, W.dtype)
        taps.reshape(3, 3, self.channels, self.filters)[...] = W.transpose(1, 2, 3, 0)
        U = _trim(memory.persist("filters", (self.p, taps.shape[1] + PAD), W.dtype))
        self.backend.xp.matmul(G, taps, out=U)
        return U.reshape(self.p, self.channels, self.filters), b

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        xp, n, (U, b), v = self.backend.xp, len(a), filters, self._views(len(a), a.dtype)
        memory.forget("D")
        xp.matmul(self._input_tiles(a, memory), U, out=v.products)
        if b is not None:
            v.products[self.constant] += b
        xp.matmul(self._of(a.dtype)[0], v.M, out=v.Y)
        if self.taps > 1:
            max_of_taps(xp, v.taps, memory, v.maxima)
        z = self._out((n, *self.out_shape), a.dtype, out)
        whole = z if self.exact else v.whole
        self._by_tile(whole)[...] = v.maxima
        if not self.exact:
            z[...] = whole[:, : z.shape[1], : z.shape[2]]
        return z

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        """dW = G' dU."""
        xp, (_, _, G), v = self.backend.xp, self._of(delta.dtype), self._views(len(a), delta.dtype)
        V, D = memory.kept("V"), memory.kept("D")
        V = self._input_tiles(a, memory) if V is None else V
        D = self._delta_tiles(delta, memory) if D is None else D
        xp.matmul(D.transpose(0, 2, 1), V, out=v.dU.reshape(self.p, self.filters, self.channels))
        taps = self._scratch("filter taps", 9, v.dU.shape[1], delta.dtype)
        xp.matmul(G.T, v.dU, out=taps)
        dW[...] = taps.reshape(3, 3, self.filters, self.channels).transpose(2, 0, 1, 3)
        if db is not None:
            db[...] = self.backend.column_sums(D[self.constant])

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        xp, n, (U, _), v = self.backend.xp, len(delta), filters, self._views(len(delta), delta.dtype)
        D = memory.kept("D")
        D = self._delta_tiles(delta, memory) if D is None else D
        xp.matmul(D, U.transpose(0, 2, 1), out=v.dV.reshape(self.p, -1, self.channels))
        xp.matmul(self._of(delta.dtype)[1].T, v.dV, out=v.dX)
        da = self._out((n, *self.window.in_shape), delta.dtype, out)
        reached = self._add_tiles(v)[self.window.interior]
        _, h, w, _ = reached.shape
        da[:, h:], da[:, :h, w:] = 0, 0  # pixels that only left-out outputs meet
        da[:, :h, :w] = reached
        return da

    def _of(self, dtype: Any) -> tuple[Array, ...]:
        """The transforms, in the dtype of the data; the rows of A' pool tap by pool tap."""
        if dtype not in self._transforms:
            A, B, G = transforms(self.m)
            t = self.m // self.q
            A = A.reshape(self.q, t, self.q, t, self.p).transpose(1, 3, 0, 2, 4).reshape(A.shape)
            self._transforms[dtype] = tuple(self.backend.asarray(x, dtype) for x in (A, B, G))
        return self._transforms[dtype]

    def _views(self, n: int, dtype: Any) -> Any:
        """The scratch arrays of a shard of n images, seen in all the ways that are needed."""
        return self.backend.views((self, n, dtype), lambda: self._make_views(n, dtype))

    def _make_views(self, n: int, dtype: Any) -> Any:
        v, m, c, f = SimpleNamespace(), self.m, self.channels, self.filters
        inputs, outputs, grid = n * self.tiles * c, n * self.tiles * f, (n, self.rows, self.columns)
        v.X, v.V, v.M = (
            self._scratch(name, self.p, size, dtype) for name, size in (("X", inputs), ("V", inputs), ("M", outputs))
        )
        v.by_pixel = v.X.reshape(m + 2, m + 2, *grid, c)
        v.products = v.M.reshape(self.p, -1, f)
        v.Y, v.D = self._scratch("Y", m**2, outputs, dtype), self._scratch("D", self.p, outputs, dtype)
        v.taps = v.Y.reshape(self.taps, self.q, self.q, *grid, f)
        v.maxima = v.taps[0] if self.taps == 1 else self.backend.scratch("maxima", v.taps.shape[1:], dtype)
        v.whole = self.backend.scratch("whole", (n, self.rows * self.q, self.columns * self.q, f), dtype)
        v.dU = self._scratch("dU", self.p, f * c, dtype)
        v.dV, v.dX = self._scratch("dV", self.p, inputs, dtype), self._scratch("dX", self.p, inputs, dtype)
        return v

    def _input_tiles(self, a: Array, memory: Memory) -> Array:
        """V = B' X, (p, tiles, C)."""
        v, m = self._views(len(a), a.dtype), self.m
        image = self._cover(a)
        s = image.strides
        v.by_pixel[...] = self.backend.strided(image, v.by_pixel.shape, (s[1], s[2], s[0], m * s[1], m * s[2], s[3]))
        kept = memory.keep_if_swept("V", (self.p, v.X.shape[1] + PAD), a.dtype)
        V = v.V if kept is None else _trim(kept)
        self.backend.xp.matmul(self._of(a.dtype)[1], v.X, out=V)
        V = V.reshape(self.p, -1, self.channels)
        return V if kept is None else memory.keep("V", V)

    def _cover(self, a: Array) -> Array:
        """The image, padded as the convolution and the last tiles want it."""
        if not self.window.is_padded and a.shape[1] >= self.covered[0] and a.shape[2] >= self.covered[1]:
            return a
        (top, _), (left, _) = self.window.padding
        h, w = a.shape[1:3]
        image = self.backend.scratch("covered", (len(a), *self.covered, self.channels), a.dtype)
        image[:, :top], image[:, top + h :] = 0, 0
        image[:, top : top + h, :left], image[:, top : top + h, left + w :] = 0, 0
        image[:, top : top + h, left : left + w] = a[:, : self.covered[0] - top, : self.covered[1] - left]
        return image

    def _delta_tiles(self, delta: Array, memory: Memory) -> Array:
        """D = A delta, (p, tiles, F); kept for whichever gradient comes second."""
        v, whole = self._views(len(delta), delta.dtype), delta
        if not self.exact:
            (h, w, _), whole = self.out_shape, v.whole
            whole[:, h:], whole[:, :h, w:] = 0, 0
            whole[:, :h, :w] = delta
        if self.taps == 1:
            v.taps[0] = self._by_tile(whole)
        else:
            spread_to_taps(self.backend.xp, self._by_tile(whole), memory, v.taps)
        self.backend.xp.matmul(self._of(delta.dtype)[0].T, v.Y, out=v.D)
        return memory.keep("D", v.D.reshape(self.p, -1, self.filters))

    def _scratch(self, name: str, rows: int, size: int, dtype: Any) -> Array:
        return _trim(self.backend.scratch(name, (rows, size + PAD), dtype))

    def _by_tile(self, z: Array) -> Array:
        """(N, rows q, columns q, F) seen as (q, q, N, rows, columns, F)."""
        return z.reshape(len(z), self.rows, self.q, self.columns, self.q, -1).transpose(2, 4, 0, 1, 3, 5)

    def _add_tiles(self, v: Any) -> Array:
        """Tiles overlap by two pixels: each is its own block of m x m and a part of the blocks below and to the right."""
        m, (n, rows, columns, c) = self.m, v.by_pixel.shape[2:]
        tiles = v.dX.reshape(m + 2, m + 2, n, rows, columns, c).transpose(2, 3, 0, 4, 1, 5)
        blocks = self.backend.scratch("blocks", (n, rows + 1, m, columns + 1, m, c), v.dX.dtype)
        blocks[:, rows], blocks[:, :rows, :, columns] = 0, 0
        blocks[:, :rows, :, :columns] = tiles[:, :, :m, :, :m]
        blocks[:, :rows, :, 1:, :2] += tiles[:, :, :m, :, m:]
        blocks[:, 1:, :2, :columns] += tiles[:, :, m:, :, :m]
        blocks[:, 1:, :2, 1:, :2] += tiles[:, :, m:, :, m:]
        return blocks.reshape(n, (rows + 1) * m, (columns + 1) * m, c)


def _trim(rows: Array) -> Array:
    """Rows without what keeps them apart."""
    return rows[:, :-PAD]


def best_tile(window: Window, filters: int, pool: Pair) -> int | None:
    """The m that makes a training step of this convolution cheapest, or None where the direct product does."""
    if not _possible(window):
        return None
    costs: dict[int | None, float] = {m: _winograd_cost(window, filters, m) for m in _tiles(pool)}
    costs[None] = _direct_cost(window, filters)
    return min(costs, key=lambda m: costs[m])


def _possible(window: Window) -> bool:
    return (window.kernel, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))


def _tiles(pool: Pair) -> list[int]:
    """The tiles that a pooling of this size does not cut."""
    return [m for m in TILES if pool[0] == pool[1] and m % pool[0] == 0]


def _direct_cost(window: Window, filters: int) -> float:
    patches = 9 * window.in_shape[2] * window.out_size[0] * window.out_size[1]
    return patches * (3 * filters + MOVE + COL2IM)


def _winograd_cost(window: Window, filters: int, m: int) -> float:
    tiles, channels, p = -(-window.out_size[0] // m) * -(-window.out_size[1] // m), window.in_shape[2], (m + 2) ** 2
    products = 3 * p * channels * filters
    transformed = TRANSFORM * 2 * (p * p * channels + p * m * m * filters)
    moved = MOVE * 2 * (p * channels + m * m * filters)
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
    """Choose how the CPU computes 3 x 3 convolutions of stride 1, for models built from now on.

    "auto" (default): by a rule of the shape, Winograd's where that is faster. "direct": patches, exact to rounding.
    "winograd": wherever it is possible. Its float32 error is below 2e-5 of the largest output with tiles of 4 x 4, 5e-6 with
    3 x 3 and 1e-6 with 2 x 2 (the direct product's is below 1e-6). Raises ValueError for another name.
    """
    if name not in ("auto", "direct", "winograd"):
        raise ValueError(f'the algorithm is "auto", "direct" or "winograd", not {name!r}')
    conv_algorithm.name = name
