"""Metrics of the predicted class, or of several predicted labels, computed from counts."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import choice, listing, whole
from nnlite.backend import backend_of
from nnlite.errors import DataError
from nnlite.metrics.base import OfLabels

Average = Literal["auto", "binary", "macro", "micro"] | None


class _Share(OfLabels):
    """The weighted share of samples for which `hits` is true."""

    greater_is_better = True

    def reset(self) -> None:
        self.counted_hits = self.counted_weight = 0.0

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        z, t, weight = self.read(z, t, sample_weight)
        misses, hits = np.bincount(self.hits(z, t), weight, 2).tolist()  # one after another
        self.counted_hits += hits
        self.counted_weight += misses + hits

    def hits(self, z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples are hits."""
        raise TypeError(f"{type(self).__name__} has no hits")

    def result(self) -> float:
        if not self.counted_weight:
            raise DataError(f"{self.name}: no sample was counted")
        return float(self.counted_hits) / self.counted_weight


class Accuracy(_Share):
    """The share of samples whose largest output (the first of equal ones) is at the label.

    multilabel: samples have several labels, t (N, L) zeros and ones; a hit is a sample whose labels are all right, as in
    scikit-learn's accuracy_score; default False.
    ignore_index: samples, or positions of outputs (N, ..., C), with this label are left out; default None.
    Raises ValueError for both together.
    """

    name = "accuracy"

    def __init__(self, *, multilabel: bool = False, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index, multilabel)

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        backend = backend_of(z)
        of_all = sample_weight is None and self.ignore_index is None and not self.multilabel
        if not backend.waits_for_reads or not of_all or z.shape[-1] == 1 or np.shape(t) != z.shape[:-1]:
            super().update(z, t, sample_weight)
            return
        # Counted where the outputs are, without waiting for the device.
        t = backend.asarray(t)
        self.counted_hits = self.counted_hits + (z.argmax(axis=-1) == t).sum(dtype="float64")
        self.counted_weight += t.size

    def hits(self, z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.bool_]:
        right = self.decide(z) == t
        return np.asarray(right.all(axis=1) if self.multilabel else right)


class TopK(_Share):
    """The share of samples whose label is among the k largest outputs. Of equal outputs the lower class comes first.

    ignore_index: as of `Accuracy`. Raises ValueError for k < 1; `update` raises DataError for outputs of fewer than k classes.
    """

    def __init__(self, k: int = 5, *, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)
        self.k, self.name = whole("k", k, 1), f"top{k}_accuracy"

    def columns(self, out_shape: tuple[int, ...]) -> list[str]:
        if out_shape[-1:] < (max(2, self.k),):
            raise DataError(f"{self.name} needs outputs (N, C) of at least {self.k} classes, got (N, {listing(out_shape)})")
        return [self.name]

    def hits(self, z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.bool_]:
        self.columns(z.shape[1:])
        best = np.argsort(-z, axis=1, kind="stable")[:, : self.k]
        return np.asarray((best == t[:, None]).any(axis=1))


class ConfusionMatrix(OfLabels):
    """matrix[i, j] = number of samples of class i (or their weight) that were predicted as class j.

    n_classes: default: as many as the outputs have columns.  ignore_index: as of `Accuracy`.
    multilabel: of several labels a sample, matrix[l] (2, 2) for each label l, as scikit-learn's multilabel_confusion_matrix.
    """

    name = "confusion_matrix"

    def __init__(self, n_classes: int | None = None, *, multilabel: bool = False, ignore_index: int | None = None) -> None:
        self.n_classes = None if n_classes is None else whole("n_classes", n_classes, 1)
        super().__init__(ignore_index, multilabel)

    def columns(self, out_shape: tuple[int, ...]) -> list[str]:
        return []

    def reset(self) -> None:
        self.counted = self._zeros(self.n_classes or 0)

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        z, t, weight = self.read(z, t, sample_weight)
        self._make_room(z.shape[1] if self.multilabel else max(2, z.shape[1], self.n_classes or 0))
        if self.multilabel:
            np.add.at(self.counted, (np.arange(z.shape[1]), t.astype(int), self.decide(z).astype(int)), weight[:, None])
            return
        if self.n_classes and t.max(initial=0) >= self.n_classes:
            raise DataError(f"labels must be in 0 ... {self.n_classes - 1}, found {t.max()}")
        np.add.at(self.counted, (t, self.decide(z)), weight)

    def result(self) -> NDArray[np.float64]:
        if not self.counted.any():
            raise DataError(f"{self.name}: no sample was counted")
        return self.counted.copy()

    def _zeros(self, classes: int) -> NDArray[np.float64]:
        return np.zeros((classes, 2, 2) if self.multilabel else (classes, classes))

    def _make_room(self, classes: int) -> None:
        if classes > len(self.counted):
            before, self.counted = self.counted, self._zeros(classes)
            self.counted[tuple(map(slice, before.shape))] = before


class _PerClass(ConfusionMatrix):
    """A figure of each class, from the confusion matrix, averaged as `average` says."""

    greater_is_better = True

    def __init__(self, average: Average = "auto", *, multilabel: bool = False, ignore_index: int | None = None) -> None:
        super().__init__(multilabel=multilabel, ignore_index=ignore_index)
        self.average = choice("average", average, "auto", "binary", "macro", "micro", None)
        if multilabel and average == "binary":
            raise ValueError('average="binary" is of two classes, multilabel of several labels: "macro" is their mean')

    def columns(self, out_shape: tuple[int, ...]) -> list[str]:
        outputs = out_shape[-1] if out_shape else 1
        if self.average == "binary" and outputs > 2:
            raise DataError(f'{self.name}: average="binary" is of two classes, not of {outputs}: "macro" is their mean')
        classes = outputs if self.multilabel else max(2, outputs)
        return [f"{self.name}_{c}" for c in range(classes)] if self.average is None else [self.name]

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        self.columns(np.shape(z)[1:])
        super().update(z, t, sample_weight)

    def result(self) -> Any:
        matrix, average = super().result(), self.average
        if self.multilabel:
            hits, predicted, true = matrix[:, 1, 1], matrix[:, :, 1].sum(axis=1), matrix[:, 1].sum(axis=1)
        else:
            hits, predicted, true = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
        if average == "micro":
            return float(self.figure(hits.sum(), predicted.sum(), true.sum()))
        figures = self.figure(hits, predicted, true)
        if average is None:
            return figures
        if average == "binary" or (average == "auto" and not self.multilabel and len(figures) == 2):
            return float(figures[1])
        seen = (
            (predicted > 0) | (true > 0) | self.multilabel
        )  # scikit-learn averages over the classes that occur, and all labels
        return float(figures[seen].mean())

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        """The figure, from the numbers of hits, of predictions and of samples of a class."""
        raise TypeError("no figure")


class Precision(_PerClass):
    """hits / predictions of a class; 0 where it was never predicted.

    average: "binary": of class 1, of two; "macro": the mean over the classes that occur; "micro": of the sums over all classes;
    None: each class, in the history as columns `precision_0`, `precision_1`, ... Default: "auto", which is "binary" for two
    classes and "macro" for more.
    multilabel: of several labels a sample, t (N, L) zeros and ones; "auto" and "macro" are the mean over all labels.
    ignore_index: as of `Accuracy`.
    As scikit-learn's precision_score(zero_division=0). Raises ValueError for other averages and for multilabel with "binary" or
    ignore_index; `update` raises DataError for more than two classes with "binary".
    """

    name = "precision"

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(hits, predicted)


class Recall(_PerClass):
    """hits / samples of a class; 0 where it never occurred. Arguments: as of `Precision`."""

    name = "recall"

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(hits, true)


class F1(_PerClass):
    """2 hits / (predictions + samples) of a class, the harmonic mean of precision and recall. Arguments: as of `Precision`."""

    name = "f1"

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(2 * hits, predicted + true)


def classification_report(matrix: NDArray[Any], classes: Sequence[str]) -> str:
    """A table of precision, recall, F1 and number of samples of each class, from a confusion matrix.

    The means are taken over the classes that occur among the samples or the predictions.
    """
    hits, predicted, true = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    figures = np.stack([kind.figure(hits, predicted, true) for kind in (Precision, Recall, F1)], axis=1)
    width = max(len(name) for name in (*classes, "macro mean"))
    lines = [f"{'':<{width}}  precision  recall      f1  samples"]
    occurring = ((predicted > 0) | (true > 0)).sum()
    rows = [*zip(classes, figures, true, strict=True), ("macro mean", figures.sum(axis=0) / max(1, occurring), true.sum())]
    lines += [f"{name:<{width}}  {p:9.3f}  {r:6.3f}  {f:6.3f}  {count:7.0f}" for name, (p, r, f), count in rows]
    return "\n".join(lines)


def _ratio(a: Any, b: Any) -> Any:
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=np.asarray(b) > 0)
