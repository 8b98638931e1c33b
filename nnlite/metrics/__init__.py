"""Metrics, streamed over batches: `update` with outputs and targets, then `result`. They agree with scikit-learn."""

from nnlite.metrics.base import Metric
from nnlite.metrics.classification import (
    F1,
    Accuracy,
    ConfusionMatrix,
    Precision,
    Recall,
    TopK,
    classification_report,
)
from nnlite.metrics.ranking import ROCAUC, AveragePrecision
from nnlite.metrics.regression import MAE, R2, RMSE

__all__ = [
    "F1",
    "MAE",
    "R2",
    "RMSE",
    "ROCAUC",
    "Accuracy",
    "AveragePrecision",
    "ConfusionMatrix",
    "Metric",
    "Precision",
    "Recall",
    "TopK",
    "classification_report",
]
