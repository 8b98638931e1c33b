"""Matrix products in pieces that OpenBLAS has kernels for: on processors with AVX-512 it multiplies matrices of up to 100^3
multiplications without packing them first, at 110 GFLOP/s where larger ones reach 60 to 100 (measured on a Zen 4 server). A
stack of pieces is one NumPy call. How a product is cut depends on its shape, so the bits do not depend on threads.

A product a W' with the transpose of weights, few rows by many columns, gains most: packing W takes longer than multiplying.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from nnlite.backend.cpu.blas import single_threaded_blas
from nnlite.backend.sums import add_up
from nnlite.backend.window import Array

Scratch = Callable[[str, tuple[int, ...], Any], Array]

LARGEST = 10**6  # multiplications in a piece
DEEPEST = 600  # terms of a sum: these kernels add them in one go, and lose more digits than those that sum block by block
WORTH = 4  # a piece this many times smaller is not worth the call
THINNEST, THICK = 8, 64  # rows of a piece
ALIGNED = 16  # columns of a piece, unless it has all: the float32 values of a vector register
FEW, SUMMED = 1 << 14, 1 << 7  # values of a sum over rows that is added piece by piece, and rows of a piece
NARROW = 1 << 10  # values of a sum for which half as many rows are as fast, and lose fewer digits
UNCUT, MOST = (
    1 << 12,
    1 << 23,
)  # rows of a sum of more values, which BLAS adds in its own way, and values of all pieces together
FLATTEST = 1200  # values of a piece of a product with a transpose
FLAT_DEEPEST = 1 << 12  # terms of its sums: up to here they are as accurate as those of the whole product
FLAT_WORTH = 1 << 16  # multiplications of such a piece that are worth the call

# For vectors: OpenBLAS's sgemv for AVX-512 also computes with unused values on the stack, and "invalid" says nothing.
quiet_matmul = np.errstate(invalid="ignore")(np.matmul)


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a b, for matrices (m, k) and (k, n) or stacks of them."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    if m == 1 or n == 1:
        return quiet_matmul(a, b, out=out)
    size = _size_of_pieces(a, b, m, k, n) if m * n > FLATTEST or m * k * n > LARGEST else None
    if size is None:
        return np.matmul(a, b, out=out)
    rows, columns = size
    out = np.empty((*a.shape[:-1], n), a.dtype) if out is None else out
    a, target = (x.reshape(*x.shape[:-2], m // rows, rows, x.shape[-1]) for x in (a, out))
    if columns == n:
        np.matmul(a, b[..., None, :, :], out=target)
    else:
        b = b.reshape(*b.shape[:-1], n // columns, columns).swapaxes(-3, -2)[..., None, :, :, :]
        target = target.reshape(*target.shape[:-1], n // columns, columns).swapaxes(-3, -2)
        np.matmul(a[..., None, :, :], b, out=target)
    return out


def matmul_rows(a: Array, b: Array, out: Array | None, scratch: Scratch) -> Array:
    """a' b for a (rows, m) and b (rows, n), or stacks of them: a sum over many rows, piece by piece, in halves."""
    (rows, m), n = a.shape[-2:], b.shape[-1]
    if rows <= SUMMED or (m * n > FEW and rows <= UNCUT):
        return matmul(a.swapaxes(-2, -1), b, out)
    if m * n <= FEW and (rows < 2 * SUMMED or a.size * n <= MOST * SUMMED):
        return _add_pieces(a, b, out, scratch)
    half = rows // 2 // SUMMED * SUMMED
    halves = slice(half), slice(half, None)
    first, second = (matmul_rows(a[..., part, :], b[..., part, :], None, scratch) for part in halves)
    return np.add(first, second, out=out)


def _add_pieces(a: Array, b: Array, out: Array | None, scratch: Scratch) -> Array:
    (rows, m), n = a.shape[-2:], b.shape[-1]
    most = min(SUMMED if m * n > NARROW else SUMMED // 2, LARGEST // (m * n))
    size = largest_divisor(rows, most)
    size = size if size * WORTH >= most else most
    cut = rows // size * size
    left, right = (x[..., :cut, :].reshape(*x.shape[:-2], cut // size, size, x.shape[-1]) for x in (a, b))
    parts = scratch("sums", (*left.shape[:-2], m, n), a.dtype)
    (np.matmul if m > 1 < n else quiet_matmul)(left.swapaxes(-2, -1), right, out=parts)
    total = add_up(parts.swapaxes(0, -3), out)
    if cut < rows:
        total += matmul(a[..., cut:, :].swapaxes(-2, -1), b[..., cut:, :])
    return total


def _size_of_pieces(a: Array, b: Array, m: int, k: int, n: int) -> tuple[int, int] | None:
    """Rows and columns; None: the product as a whole."""
    if not single_threaded_blas.has_small_kernels:
        return None
    if a.strides[-2] > a.strides[-1] and b.strides[-2] < b.strides[-1]:
        return flat_piece(m, k, n)
    return piece(m, k, n, a.strides[-2] < a.strides[-1]) if m * k * n > LARGEST and k <= DEEPEST else None


@cache
def flat_piece(m: int, k: int, n: int) -> tuple[int, int] | None:
    """The pieces of a product a b', where b' is the transpose of a contiguous matrix: the squarest of the largest.

    Their kernel adds 16 sums side by side, which loses fewer digits than block by block, except in very deep sums.
    """
    if k > FLAT_DEEPEST:
        return None
    most = min(FLATTEST, LARGEST // k)
    sizes = []
    for columns in divisors(n):
        rows = largest_divisor(m, most // columns)
        if rows > 1 and (columns == n or columns % ALIGNED == 0) and rows * columns * k > FLAT_WORTH:
            sizes.append((rows * columns, -abs(rows - columns), rows, columns))
    return max(sizes)[2:] if sizes else None


@cache
def piece(m: int, k: int, n: int, across: bool) -> tuple[int, int] | None:
    """The pieces of a product: all columns if possible, and as large as allowed.

    across: whether their rows are columns of the contiguous matrix: then only thick pieces of all columns are worth it.
    """
    sizes = []
    for columns in divisors(n):
        rows = largest_divisor(m, LARGEST // (k * columns))
        fits = rows >= (THICK if across else THINNEST) and (columns == n or (columns % ALIGNED == 0 and not across))
        if fits and rows * columns * k * WORTH >= LARGEST:
            sizes.append((columns == n, rows * columns, -abs(rows - columns), rows, columns))
    return max(sizes)[3:] if sizes else None


def divisors(n: int) -> list[int]:
    """All numbers that divide n."""
    return [d for d in range(1, n + 1) if n % d == 0]


@cache
def largest_divisor(n: int, most: int) -> int:
    """The largest number up to `most` that divides n; 0 if `most` is 0."""
    return next((d for d in range(min(n, most), 0, -1) if n % d == 0), 0)
