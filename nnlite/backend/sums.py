"""Accurate sums over many rows: a few rows one after another, then pairwise, in float64.

NumPy adds row after row, and BLAS nearly so: with 10^6 equal float32 values that loses 1%. If n terms of one sign are
added one after another, the relative error is below n 6e-8.
"""

import math

import numpy as np

from nnlite.backend.window import Array

TERMS = 32  # added one after another in float32
ROWS, REGISTER = 4 * TERMS, 16  # rows that BLAS adds four at a time, in as many columns as a register holds
PARTS = 16  # partial sums added one after another: each halving is a call


def add_up(parts: Array, out: Array | None = None) -> Array:
    """The sum over the first axis, pairwise; overwrites `parts`."""
    while len(parts) > PARTS:
        half = len(parts) // 2
        parts[:half] += parts[-half:]
        parts = parts[: len(parts) - half]
    return np.add.reduce(parts, axis=0, out=out)


def column_sums(a: Array, ones: Array) -> Array:
    """The sums of the columns of `a` (M, C), as a product, several times faster than a reduction. ones: at least ROWS.

    Uses `dot`: matmul holds the global lock while it multiplies a vector.
    """
    if len(a) <= TERMS:
        return np.dot(ones[: len(a)], a).astype(np.float64)
    full = ROWS * REGISTER // math.gcd(REGISTER, a.shape[1])  # rows that make ROWS long rows of full registers
    rows, least = (ROWS, full) if len(a) >= full else (TERMS, TERMS)
    cut = len(a) // least * least
    parts = np.dot(ones[:rows], a[:cut].reshape(rows, -1)).reshape(cut // rows, -1)
    total = add_up(parts.astype(np.float64))
    return total + column_sums(a[cut:], ones) if cut < len(a) else total


def pixel_products(a: Array, b: Array) -> Array:
    """The sums over the first two axes of `a b`, value by value; both (H, W, C)."""
    height, width, _ = a.shape
    if width > TERMS:
        half = width // 2
        return pixel_products(a[:, :half], b[:, :half]) + pixel_products(a[:, half:], b[:, half:])
    rows = TERMS // width
    if height <= rows:
        return np.einsum("hwc,hwc->c", a, b).astype(np.float64)
    cut = height // rows * rows
    left, right = (x[:cut].reshape(-1, rows, *x.shape[1:]) for x in (a, b))
    total = add_up(np.einsum("bhwc,bhwc->bc", left, right).astype(np.float64))
    return total + pixel_products(a[cut:], b[cut:]) if cut < height else total


def squared_norm(v: Array) -> float:
    """The sum of the squares of a vector, piece by piece in one call; BLAS adds 32 values of a piece at a time, or more."""
    size = 32 * TERMS
    if len(v) < size:
        return float(np.dot(v, v))
    cut = len(v) // size * size
    pieces, rest = v[:cut].reshape(-1, 1, size), v[cut:]
    return float(np.matmul(pieces, pieces.swapaxes(1, 2)).sum(dtype=np.float64)) + float(np.dot(rest, rest))
