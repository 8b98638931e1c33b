"""Computed from the labels alone: weights that balance classes, and stratified samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import whole
from nnlite.errors import DataError

Array = NDArray[Any]
_SHOWN = 5  # classes in a message


def balanced_class_weight(labels: Any, classes: int | None = None) -> NDArray[np.float64]:
    """v_c = n / (C n_c): with these weights all classes count equally, and the mean weight of a sample is 1.

    labels: n integers 0 ... C - 1, n_c of them c   classes: C; default: the largest label + 1   v: (C,)
    For `nn.CrossEntropy(class_weight=...)`. As scikit-learn's `compute_class_weight("balanced", ...)`.
    Raises DataError for labels that are not such integers, and for a class without a sample: no weight would balance it.
    """
    labels = _integers(labels)
    n, largest = len(labels), int(labels.max())
    count = largest + 1 if classes is None else int(whole("classes", classes, 1))
    if labels.min() < 0 or largest >= count:
        raise DataError(f"labels must be in 0 ... {count - 1}, found {labels.min()} ... {largest}")
    missing = np.setdiff1d(np.arange(min(count, n + 1)), labels)  # of n + 1 classes one has no sample
    if len(missing):
        raise DataError(f"no weight balances a class without a sample: none of the {n} labels is {_listed(missing)}")
    return n / (count * np.bincount(labels))


def stratified(labels: Array, n: int, rng: np.random.Generator) -> Array:
    """n places, drawn at random, of which each class has its share: n n_c / N, rounded up for those with the largest rest.

    Raises DataError for labels that are not integers (N,), for a class with a single sample, for fewer places than classes.
    """
    labels = _integers(labels)
    classes, labels = np.unique(labels, return_inverse=True)
    counts, samples = np.bincount(labels), len(labels)
    if counts.min() < 2:
        raise DataError(f"a class needs 2 samples to be in both parts, class {_listed(classes[counts < 2])} has one")
    if min(n, samples - n) < len(classes):
        raise DataError(f"parts of {samples - n} and {n} samples cannot both have each of {len(classes)} classes")
    share, rest = np.divmod(counts * n, samples)
    order = rng.permutation(len(classes))  # breaks ties at random
    largest = order[np.argsort(-rest[order], kind="stable")]
    share[largest[: n - share.sum()]] += 1
    drawn = rng.permutation(samples)
    drawn = drawn[np.argsort(labels[drawn], kind="stable")]  # class by class
    place_in_class = np.arange(samples) - np.repeat(np.cumsum(counts) - counts, counts)
    return drawn[place_in_class < np.repeat(share, counts)]


def _integers(labels: Any) -> Array:
    """(n,) of (n,) or (n, 1)"""
    array: Array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "biu":
        raise DataError(f"the labels must be integers (N,), one a sample, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _listed(classes: Array) -> str:
    return ", ".join(map(str, classes[:_SHOWN])) + ", ..." * (len(classes) > _SHOWN)
