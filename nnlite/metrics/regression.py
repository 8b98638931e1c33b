"""How far real outputs are from their targets. Outputs, along the last axis, are measured separately and averaged."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.errors import DataError
from nnlite.metrics.base import Metric, by_position


class _OfErrors(Metric):
    """errors: the weighted sum over all samples, for each output; weight: the sum of their weights. All in float64."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.weight: float = 0.0
        self.errors: Any = 0.0

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        z, t, weight = by_position(z, t, sample_weight)
        if z.shape != t.shape:
            raise DataError(f"the targets have {t.shape[1]} values a sample for {z.shape[1]} outputs")
        self.count(z.astype(np.float64), t.astype(np.float64), weight)

    def count(self, z: NDArray[np.float64], t: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        """Add matrix rows: z and t (M, K), weight (M,)."""
        self.errors = self.errors + _weighted(weight, self.error(z - t))
        self.weight += float(weight.sum())

    def result(self) -> float:
        if not self.weight:
            raise DataError(f"{self.name}: no sample was counted")
        return float(np.mean(self.figure(self.errors / self.weight)))

    @staticmethod
    def error(d: NDArray[np.float64]) -> NDArray[np.float64]:
        """The error to average, a function of d = z - t."""
        return d * d

    def figure(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The figure of each output, from its mean error: here that error."""
        return mean


class MAE(_OfErrors):
    """mean of |z - t|     z, t: (N, ...), or t (N, ...) for z (N, ..., 1).  As scikit-learn's mean_absolute_error."""

    name, greater_is_better = "mae", False

    @staticmethod
    def error(d: NDArray[np.float64]) -> NDArray[np.float64]:
        return abs(d)


class RMSE(_OfErrors):
    """sqrt(mean of (z - t)^2)     z, t: as of `MAE`.  As scikit-learn's root_mean_squared_error."""

    name, greater_is_better = "rmse", False

    def figure(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(mean)


class R2(_OfErrors):
    """1 - mean of (z - t)^2 / mean of (t - m)^2,  m = mean of t     z, t: as of `MAE`.  As scikit-learn's r2_score.

    The share of the variance of the targets that the outputs explain: 1 at best, 0 for z = m. Where all targets are equal,
    it is 1 for outputs without error, else 0. Of a single sample it does not exist: NaN.
    The variance is combined from those of the batches: Chan, Golub and LeVeque 1983.
    """

    name, greater_is_better = "r2", True

    def reset(self) -> None:
        super().reset()
        self.samples, self.mean, self.squares = 0, np.zeros(1), np.zeros(1)  # squares: weighted sum of (t - mean)^2

    def count(self, z: NDArray[np.float64], t: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        before, n = self.weight, float(weight.sum())
        super().count(z, t, weight)
        if not n:
            return
        mean = t[0] + _weighted(weight, t - t[0]) / n  # about the first row: exact for constant targets
        self.squares = self.squares + _weighted(weight, (t - mean) ** 2) + (mean - self.mean) ** 2 * (before * n / self.weight)
        self.mean = self.mean + (mean - self.mean) * (n / self.weight)
        self.samples += len(t)

    def figure(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.samples < 2:
            return np.array(math.nan)
        variance = self.squares / self.weight
        ratio = np.divide(mean, variance, out=np.array(mean > 0, np.float64), where=variance > 0)
        return 1 - ratio


def _weighted(weight: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted sum of rows; not BLAS's, whose last digits depend on the processor."""
    return np.asarray((weight[:, None] * rows).sum(axis=0))
