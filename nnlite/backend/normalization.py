"""What all shards of a batch share in batch normalisation."""

from typing import Any, NamedTuple

from nnlite.backend.window import Array


class Normalization(NamedTuple):
    """y = gamma (a - mean) inv_std + beta as (a - center) scale + shift: what all shards of a batch share, made once.

    center: the mean where it is far from zero, so that nothing cancels; else None, for 0.  For deltas: slope, and their means.
    """

    mean: Array
    inv_std: Array
    gamma: Array | None
    beta: Array | None
    center: Array | None = None
    scale: Any = None
    shift: Any = None
    slope: Any = None
    means: Any = None
