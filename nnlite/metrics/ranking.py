"""How well outputs rank positive samples before negative ones. The figures are exact, so outputs and labels are stored.

Until `reset` a metric holds the outputs in their own precision, a label of 8 bytes (with `multilabel` one byte an output) and a
weight of 8 bytes for each sample: 20 MB for a million samples and one float32 output. A checkpoint in mid-epoch stores as much.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.errors import DataError
from nnlite.losses import softmax
from nnlite.metrics.base import OfLabels


class _OfRanks(OfLabels):
    """A figure of one score a sample; of several classes or labels the mean over them, each against the rest."""

    greater_is_better = True

    def __init__(self, *, multilabel: bool = False, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index, multilabel)

    def reset(self) -> None:
        self.kept: list[list[NDArray[Any]]] = [[], [], []]  # outputs, labels, weights

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        for kept, rows in zip(self.kept, self.read(z, t, sample_weight), strict=True):
            kept.append(rows.copy())  # the next batch may overwrite the outputs

    def state(self) -> dict[str, Any]:
        self._join()
        return super().state()

    def result(self) -> float:
        if not sum(map(len, self.kept[0])):
            raise DataError(f"{self.name}: no sample was counted")
        self._join()
        (z,), (t,), (weight,) = self.kept
        scores, positive = (z.astype(np.float64), t) if self.multilabel else one_against_rest(z, t)
        if np.isnan(scores).any():
            return math.nan
        return float(np.mean([self.figure(*by_score(*column, weight)) for column in zip(scores.T, positive.T, strict=True)]))

    def _join(self) -> None:
        self.kept = [[np.concatenate(parts)] if parts else [] for parts in self.kept]

    @staticmethod
    def figure(hits: NDArray[np.float64], misses: NDArray[np.float64]) -> float:
        """The figure, from the weights of positive and of negative samples of each score, the highest first."""
        raise TypeError("no figure")


class ROCAUC(_OfRanks):
    """The area under the ROC curve: how often a positive sample has a higher score than a negative one, ties counting half.

    Two classes: of class 1. More: by softmax(z), the mean over the classes, each against the rest, as scikit-learn's
    roc_auc_score(multi_class="ovr"). NaN where all samples, or none, are of a class.
    multilabel, ignore_index: as of `Accuracy`. Outputs and labels of all samples are kept: see the top of this file.
    """

    name = "roc_auc"

    @staticmethod
    def figure(hits: NDArray[np.float64], misses: NDArray[np.float64]) -> float:
        pairs = hits.sum() * misses.sum()
        return float(((np.cumsum(hits) - hits / 2) * misses).sum() / pairs) if pairs else math.nan


class AveragePrecision(_OfRanks):
    """sum over the scores, from the highest, of precision x increase of recall; as scikit-learn's average_precision_score.

    Two classes: of class 1. More: by softmax(z), the mean over the classes. 0 for a class without samples.
    multilabel, ignore_index: as of `Accuracy`. Outputs and labels of all samples are kept: see the top of this file.
    """

    name = "average_precision"

    @staticmethod
    def figure(hits: NDArray[np.float64], misses: NDArray[np.float64]) -> float:
        precision = np.cumsum(hits) / np.cumsum(hits + misses)
        return float((hits * precision).sum() / hits.sum()) if hits.any() else 0.0


def one_against_rest(z: NDArray[Any], t: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What ranks the samples, and which of them are positive: a column for each class, one for two classes.

    z: (M, C) or (M, 1) logits   t: (M,) labels
    """
    z = z.astype(np.float64)
    if z.shape[1] > 2:
        return softmax(z), t[:, None] == np.arange(z.shape[1])
    return z if z.shape[1] == 1 else z[:, 1:] - z[:, :1], t[:, None] == 1


def by_score(
    score: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights of positive and of negative samples of each score, the highest first."""
    _, place = np.unique(-score, return_inverse=True)
    hits, misses = (np.bincount(place, weight * mask).astype(np.float64) for mask in (positive, ~positive))
    return hits, misses
