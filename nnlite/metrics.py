"""Metrics, streamed over batches: `update` with outputs and targets, then `result`. They agree with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nnlite.arguments import as_call, choice, whole
from nnlite.backend import backend_of, host_array
from nnlite.errors import DataError
from nnlite.state import attributes

if TYPE_CHECKING:
    from numpy.typing import NDArray


Average = Literal["macro", "micro"] | None


class Metric:
    """The base of all metrics. A subclass has a `name`, the key in the history, and writes `reset`, `update`, `result`.

    `greater_is_better`: True or False, for those that compare epochs, such as `EarlyStopping`; None where a result is neither.
    What it counts are attributes: numbers, text, arrays, and lists, tuples and dicts by text of them, so that checkpoints can
    keep them. One with other attributes, such as an open file, writes `state` and `load_state`, too.
    """

    name: str
    greater_is_better: bool | None = None

    __repr__ = as_call

    def reset(self) -> None:
        """Begin anew."""

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        """Take in a batch.     z: (N, C) outputs, or (N,), (N, 1) logits of two classes

        t: (N,) or (N, 1) labels, or (N, C) probabilities: the most probable class is the label. nnlite's own metrics raise
        DataError for rows that do not add up to 1, such as several labels a sample.
        """

    def result(self) -> Any:
        """The value over all batches since `reset`. Raises DataError where there was none."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: its attributes. Raises StateError for one that none can keep."""
        return attributes(self)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        vars(self).update(state)


class _Share(Metric):
    """The weighted share of samples for which `hits` says true."""

    greater_is_better = True

    def __init__(self, *, ignore_index: int | None = None) -> None:
        self.ignore_index = _checked_index(ignore_index)
        self.reset()

    def reset(self) -> None:
        self.counted_hits = self.counted_weight = 0.0

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        z, t, weight = _that_count(z, t, sample_weight, self.ignore_index)
        hits = self.hits(z, t)
        self.counted_hits += float(hits @ weight)
        self.counted_weight += float(weight.sum())

    def hits(self, z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples count."""
        raise TypeError(f"{type(self).__name__} has no hits")

    def result(self) -> float:
        if not self.counted_weight:
            raise DataError(f"{self.name}: no sample was counted")
        return float(self.counted_hits) / self.counted_weight


class Accuracy(_Share):
    """The share of samples whose largest output (the first of equal ones) is at the label.

    ignore_index: samples with this label are left out; default None.
    """

    name = "accuracy"

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        backend = backend_of(z)
        of_all = sample_weight is None and self.ignore_index is None
        if backend.device == "cpu" or z.ndim != 2 or t.ndim != 1 or not of_all:
            super().update(z, t, sample_weight)
            return
        # Counted where the outputs are, so that nobody waits for the device.
        self.counted_hits = self.counted_hits + (z.argmax(axis=1) == backend.asarray(t)).sum(dtype="float64")
        self.counted_weight += len(z)

    def hits(self, z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(_decide(z) == t)


class TopK(_Share):
    """The share of samples whose label is among the k largest outputs. Of equal outputs the lower class comes first.

    ignore_index: as of `Accuracy`. Raises ValueError for k < 1; `update` raises DataError for outputs of fewer than k classes.
    """

    def __init__(self, k: int = 5, *, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index=ignore_index)
        self.k, self.name = whole("k", k, 1), f"top{k}_accuracy"

    def hits(self, z: NDArray[Any], t: NDArray[Any]) -> NDArray[np.bool_]:
        classes = z.shape[1] if z.ndim > 1 else 0
        if classes < self.k:
            raise DataError(f"{self.name} needs outputs (N, C) of at least {self.k} classes, got {z.shape}")
        best = np.argsort(-z, axis=1, kind="stable")[:, : self.k]
        return np.asarray((best == t[:, None]).any(axis=1))


class ConfusionMatrix(Metric):
    """matrix[i, j] = number of samples of class i (or their weight) that were taken for class j.

    n_classes: default: as many as the outputs have columns.  ignore_index: as of `Accuracy`.
    """

    name = "confusion_matrix"

    def __init__(self, n_classes: int | None = None, *, ignore_index: int | None = None) -> None:
        self.n_classes = None if n_classes is None else whole("n_classes", n_classes, 1)
        self.ignore_index = _checked_index(ignore_index)
        self.reset()

    def reset(self) -> None:
        self.counted = np.zeros((self.n_classes or 0, self.n_classes or 0))

    def update(self, z: Any, t: Any, sample_weight: Any = None) -> None:
        z, t, weight = _that_count(z, t, sample_weight, self.ignore_index)
        predicted, classes = _decide(z), max(2, z.shape[1] if z.ndim > 1 else 2, self.n_classes or 0)
        if self.n_classes and t.max(initial=0) >= self.n_classes:
            raise DataError(f"labels must be in 0 ... {self.n_classes - 1}, found {t.max()}")
        if classes > len(self.counted):
            self.counted = np.pad(self.counted, (0, classes - len(self.counted)))
        np.add.at(self.counted, (t, predicted), weight)

    def result(self) -> NDArray[np.float64]:
        if not self.counted.any():
            raise DataError(f"{self.name}: no sample was counted")
        return self.counted.copy()


class _PerClass(ConfusionMatrix):
    """A figure of each class, from the confusion matrix; `average` makes one of them."""

    def __init__(self, average: Average = "macro", *, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index=ignore_index)
        self.average = choice("average", average, "macro", "micro", None)

    @property
    def greater_is_better(self) -> bool | None:  # type: ignore[override]
        """Of one number; the figures of all classes are none."""
        return True if self.average else None

    def result(self) -> Any:
        matrix = super().result()
        hits, predicted, true = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
        if self.average == "micro":
            return float(self.figure(hits.sum(), predicted.sum(), true.sum()))
        figures = self.figure(hits, predicted, true)
        seen = (predicted > 0) | (true > 0)  # scikit-learn averages over the classes that occur
        return float(figures[seen].mean()) if self.average == "macro" else figures

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        """The figure, from the numbers of hits, of predictions and of samples of a class."""
        raise TypeError("no figure")


class Precision(_PerClass):
    """hits / predictions of a class; 0 where it was never predicted. average: "macro", "micro", or None for each class."""

    name = "precision"

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(hits, predicted)


class Recall(_PerClass):
    """hits / samples of a class; 0 where it never occurred. average: "macro", "micro", or None for each class."""

    name = "recall"

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(hits, true)


class F1(_PerClass):
    """2 hits / (predictions + samples) of a class, the harmonic mean of precision and recall. average: as there."""

    name = "f1"

    @staticmethod
    def figure(hits: Any, predicted: Any, true: Any) -> Any:
        return _ratio(2 * hits, predicted + true)


def classification_report(matrix: NDArray[Any], classes: Sequence[str]) -> str:
    """A table of precision, recall, F1 and number of samples of each class, from a confusion matrix.

    The means are those of the classes that occur, among the samples or the predictions.
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


def _decide(z: NDArray[Any]) -> NDArray[Any]:
    """The class of each sample."""
    return np.asarray((z > 0).astype(np.int64) if z.ndim == 1 else z.argmax(axis=1))


def _checked_index(ignore_index: int | None) -> int | None:
    return None if ignore_index is None else whole("ignore_index", ignore_index, None)


def _that_count(
    z: Any, t: Any, sample_weight: Any, ignore_index: int | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Outputs, labels and weights of the samples whose weight is not zero and whose label is not to be ignored."""
    z, t = _to_host(z), _to_host(t)
    if len(z) != len(t):
        raise DataError(f"{len(z)} outputs, but {len(t)} targets")
    weight = np.ones(len(t)) if sample_weight is None else _to_host(sample_weight).astype(np.float64)
    if weight.shape != (len(t),):
        raise DataError(f"sample_weight must have shape {(len(t),)}, not {weight.shape}")
    if sample_weight is not None or ignore_index is not None:
        there = weight != 0
        if ignore_index is not None and t.size == len(t):
            there &= t.reshape(-1) != ignore_index
        z, t, weight = z[there], t[there], weight[there]
    return *_outputs_and_labels(z, t), weight


def _outputs_and_labels(z: NDArray[Any], t: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    z = z.reshape(len(z)) if z.shape[1:] == (1,) else z
    if t.ndim == 2:
        t = t.reshape(len(t)) if t.shape[1] == 1 else _most_probable(t)
    if t.dtype.kind not in "iub" and not (t == t.astype(np.int64)).all():
        raise DataError(f"labels must be integers, not {t.dtype}")
    t = t.astype(np.int64)
    classes = z.shape[1] if z.ndim > 1 else 2
    if len(t) and (t.min() < 0 or t.max() >= classes):
        raise DataError(f"labels must be in 0 ... {classes - 1}, found {t.min() if t.min() < 0 else t.max()}")
    return z, t


def _most_probable(t: NDArray[Any]) -> NDArray[Any]:
    sums = t.sum(axis=1, dtype=np.float64)
    if not (t >= 0).all() or not (abs(sums - 1) < 0.01).all():
        raise DataError(
            f"targets {t.shape} must be probabilities of the classes, each row of them not negative and adding up to 1: "
            "several labels a sample need a metric of their own, such as the share of outputs on the right side of 0"
        )
    return np.asarray(t.argmax(axis=1))


def _to_host(array: Any) -> NDArray[Any]:
    host: NDArray[Any] = host_array(backend_of(array).to_host(array))
    return host
