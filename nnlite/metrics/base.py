"""The bases of metrics, and a batch as matrix rows on the host: one for each position of each sample of nonzero weight."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import Configured, flag, whole
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


class OfLabels(Metric):
    """The base of metrics of classes.

    z: (N, C) logits, or (N,), (N, 1) of two classes     t: (N,) or (N, 1) labels, or (N, C) probabilities
    Of probabilities the most probable class is the label; each row is not negative and adds up to 1.
    multilabel: a sample has several labels: z (N, L) logits, each of a label, and t (N, L) zeros and ones; default False.
    ignore_index: samples, or positions, with this label are left out; default None, and none where there are several.
    """

    def __init__(self, ignore_index: int | None, multilabel: bool = False) -> None:
        self.ignore_index = None if ignore_index is None else whole("ignore_index", ignore_index, None)
        self.multilabel = flag("multilabel", multilabel)
        if multilabel and ignore_index is not None:
            raise ValueError("ignore_index is one label of a sample, multilabel has several: leave one of them out")
        self.reset()

    def read(self, z: Any, t: Any, sample_weight: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
        """Of the samples that count: outputs (M, C), labels (M,), or with `multilabel` (M, C) booleans, and weights (M,)."""
        z, t, weight = by_position(z, t, sample_weight)
        if self.multilabel:
            return z, _booleans(t, z.shape), weight
        if self.ignore_index is not None and t.shape[1] == 1:
            there = t[:, 0] != self.ignore_index
            z, t, weight = z[there], t[there], weight[there]
        return z, _labels(t, max(2, z.shape[1])), weight

    def decide(self, z: NDArray[Any]) -> NDArray[Any]:
        """The class of each row, or with `multilabel` whether it has the label: y > 1/2, for y = 1 / (1 + exp(-z))."""
        if self.multilabel:
            return np.asarray(z > 0)
        return np.asarray(z[:, 0] > 0).astype(np.int64) if z.shape[1] == 1 else np.asarray(z.argmax(axis=1))


def by_position(z: Any, t: Any, sample_weight: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Outputs (M, C), targets (M, 1) or (M, C), and weights (M,), of the positions of all samples whose weight is not zero."""
    z, t = to_host(z), to_host(t)
    if not (z.ndim and t.ndim):
        raise DataError(f"outputs and targets need an axis of samples, got shapes {z.shape} and {t.shape}")
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


def _booleans(t: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if t.shape != shape or not ((t == 0) | (t == 1)).all():
        raise DataError(f"several labels a sample are zeros and ones (N, {shape[1]}), one for each output")
    return np.asarray(t == 1)


def _labels(t: NDArray[Any], classes: int) -> NDArray[np.int64]:
    t = t[:, 0] if t.shape[1] == 1 else _most_probable(t)
    if t.dtype.kind not in "iub" and not (t == t.astype(np.int64)).all():
        raise DataError(f"labels must be integers, not {t.dtype}")
    t = t.astype(np.int64)
    if len(t) and (t.min() < 0 or t.max() >= classes):
        raise DataError(f"labels must be in 0 ... {classes - 1}, found {t.min() if t.min() < 0 else t.max()}")
    return t


def _most_probable(t: NDArray[Any]) -> NDArray[Any]:
    sums = t.sum(axis=1, dtype=np.float64)
    if not (t >= 0).all() or not (abs(sums - 1) < 0.01).all():
        raise DataError(
            f"targets {t.shape} must be probabilities of the classes, each row of them not negative and adding up to 1: "
            "for several labels a sample give the metric multilabel=True, where it has that"
        )
    return np.asarray(t.argmax(axis=1))
