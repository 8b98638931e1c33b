"""Linear algebra in float64 that is the same bits on every processor, whatever BLAS and LAPACK there are."""

import math
from itertools import combinations

import numpy as np

from nnlite.backend.cpu.blas import single_threaded_blas
from nnlite.backend.window import Array

_SLICES, _BITS, _TERMS = 3, 20, 1 << 12  # bits of two slices and of the number of terms: less than 53 together
_BLOCK = 64
_SWEEPS = 40  # Jacobi's method needs fewer than ten


def product(a: Array, b: Array) -> Array:
    """a b, with errors near 1e-16 of the largest values: products of slices, which no order of adding rounds.

    A slice has whole numbers of so few bits that sums of their products are below 2^53. Source: Ozaki et al. 2012.
    """
    total = np.zeros((len(a), b.shape[1]))
    for start in range(0, len(b), _TERMS):
        terms = slice(start, start + _TERMS)
        (left, left_unit), (right, right_unit) = _slices(a[:, terms]), _slices(b[terms])
        with single_threaded_blas:
            for order in reversed(range(_SLICES)):
                for i in range(order + 1):
                    total += left[i] @ right[order - i] * math.ldexp(left_unit * right_unit, -_BITS * order)
    return total


def _slices(a: Array) -> tuple[list[Array], float]:
    """Whole numbers s_0, s_1, ... of 20 bits and a unit: a is unit (s_0 + s_1 / 2^20 + ...)."""
    exponent, slices = math.frexp(max(a.max(initial=0), -a.min(initial=0)))[1], list[Array]()
    rest = a * math.ldexp(1.0, -exponent)
    for _ in range(_SLICES):
        rest *= 1 << _BITS
        slices.append(np.rint(rest))
        rest -= slices[-1]
    return slices, math.ldexp(1.0, exponent - _BITS)


def orthonormal(rows: Array) -> Array:
    """Rows made orthonormal, first to last: Gram and Schmidt's method, twice for each (Giraud, Langou and Rozloznik 2005)."""
    found = np.empty(rows.shape)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for _ in range(2):
            block = block - product(product(block, found[:start].T), found[:start])
        for i, row in enumerate(block, start):
            for _ in range(2):
                row = row - (found[start:i] * (found[start:i] * row).sum(axis=1, keepdims=True)).sum(axis=0)
            found[i] = row / math.sqrt((row * row).sum())
    return found


def eigenvectors(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues, the largest first, and eigenvectors as rows: Jacobi's rotations, row by row (Golub and Van Loan, 8.5)."""
    a, vectors = symmetric.copy(), np.eye(len(symmetric))
    for _ in range(_SWEEPS):
        for p, q in combinations(range(len(a)), 2):
            if a[p, q]:
                cot = float(a[q, q] - a[p, p]) / (2 * float(a[p, q]))  # of twice the angle
                tan = math.copysign(1, cot) / (abs(cot) + math.sqrt(cot * cot + 1))
                cos = 1 / math.sqrt(tan * tan + 1)
                sin = tan * cos
                for m in (a, a.T, vectors):
                    m[p], m[q] = cos * m[p] - sin * m[q], sin * m[p] + cos * m[q]
                a[p, q] = a[q, p] = 0
    order = np.argsort(-np.diag(a), kind="stable")
    return np.diag(a)[order], vectors[order]
