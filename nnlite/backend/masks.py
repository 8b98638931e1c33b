"""Exact masks: 0 times infinity or NaN is NaN, but the bits of any value times 0 are those of zero."""

from functools import cache
from typing import Any

import numpy as np

from nnlite.backend.window import Array


def masked(xp: Any, values: Array, kept: Array, out: Array | None = None) -> Array:
    """`values` where the boolean `kept` is true, else 0."""
    out, bits = xp.empty_like(values) if out is None else out, _integers(values.itemsize)
    xp.multiply(values.view(bits), kept, out=out.view(bits))
    return out


def left_out(xp: Any, values: Array, taken: Array, out: Array) -> Array:
    """`values` where `taken`, which is `masked(values, kept)`, has zeros, else 0."""
    bits = _integers(values.itemsize)
    xp.bitwise_xor(values.view(bits), taken.view(bits), out=out.view(bits))
    return out


@cache
def _integers(size: int) -> np.dtype[np.signedinteger[Any]]:
    """The integer dtype of `size` bytes."""
    return np.dtype(f"i{size}")
