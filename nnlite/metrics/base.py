"""The base of all metrics, and a batch as matrix rows on the host: one for each position of each sample of nonzero weight."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import Configured
from nnlite.backend import backend_of, host_array
from nnlite.errors import DataError
from nnlite.state import attributes


class Metric(Configured):
    """The base of all metrics. A subclass has a `name`, the key in the history, and writes `reset`, `update`, `result`.

    `greater_is_better`: True or False, for callbacks that compare epochs, such as `EarlyStopping`; None if neither holds.
    Its attributes are its state: numbers, text, arrays, and lists, tuples and dicts by text of them, so that checkpoints can
    store them. A metric with other attributes, such as an open file, writes `state` and `load_state`, too.
    """

    name: str
    greater_is_better: bool | None = None

    def columns(self, out_shape: tuple[int, ...]) -> list[str]:
        """The columns of the metric in the history, for outputs of this shape a sample.

        Here one, its name. A vector gives one for each value, `recall_0`, `recall_1`, ...; an array of more axes gives none.
        Raises DataError for outputs that it does not apply to, so that training is refused before its first step.
        """
        return [self.name]

    def reset(self) -> None:
        """Begin anew."""

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        """Add a batch.     z: (N, ...) outputs, logits where there are classes   t: targets   sample_weight: (N,) or None

        nnlite's own metrics treat each position of outputs (N, ..., C), such as a pixel, as a sample. Samples of weight 0 are
        left out. They raise DataError for targets and weights that do not fit.
        """

    def result(self) -> Any:
        """The value over all batches since `reset`, NaN if undefined. Raises DataError if no sample was counted."""

    def state(self) -> dict[str, Any]:
        """The attributes, which a checkpoint stores. Raises StateError for one that cannot be stored."""
        return attributes(self)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        vars(self).update(state)


def by_position(z: Any, t: Any, sample_weight: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Outputs (M, C), targets (M, 1) or (M, C), and weights (M,), of the positions of all samples whose weight is not zero."""
    z, t = to_host(z), to_host(t)
    if len(z) != len(t):
        raise DataError(f"{len(z)} outputs, but {len(t)} targets")
    z = z[:, None] if z.ndim == 1 else z
    positions = z.shape[:-1]
    if t.shape not in (positions, (*positions, 1), z.shape):
        raise DataError(f"the targets have shape {t.shape}, the outputs {z.shape}")
    weight = np.ones(len(z)) if sample_weight is None else to_host(sample_weight).astype(np.float64)
    if weight.shape != z.shape[:1]:
        raise DataError(f"sample_weight must have shape {z.shape[:1]}, not {weight.shape}")
    if len(positions) > 1:
        weight = np.repeat(weight, math.prod(positions[1:]))
    z, t = z.reshape(-1, z.shape[-1]), t.reshape(-1, z.shape[-1] if t.shape == z.shape else 1)
    return (z, t, weight) if sample_weight is None else (z[weight != 0], t[weight != 0], weight[weight != 0])


def to_host(array: Any) -> NDArray[Any]:
    """A NumPy array of real numbers, copied from the device if it is there."""
    host: NDArray[Any] = host_array(backend_of(array).to_host(array))
    return host
