"""Metrics of classes: the true label or labels of a sample, and the predicted ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import flag, whole
from nnlite.errors import DataError
from nnlite.metrics.base import Metric, by_position


class OfLabels(Metric):
    """z: (N, C) logits, or (N,), (N, 1) of two classes     t: (N,) or (N, 1) labels, or (N, C) probabilities

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
