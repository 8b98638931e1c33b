"""Data sets: images and labels, gone through in seeded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnlite.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nnlite.data.augment import Augmentation

    Array = NDArray[Any]


class Dataset:
    """Samples and their targets.

    images: (N, ...) real numbers   labels: (N, ...) integer labels or real targets   weights: (N,) of the samples, or None
    Raises DataError for lengths that differ, no samples, or values that are not real numbers.
    """

    def __init__(self, images: Any, labels: Any, weights: Any = None, augmentations: Sequence[Augmentation] = ()) -> None:
        self.images, self.labels = _real(images, "images"), _real(labels, "labels")
        self.weights = None if weights is None else _real(weights, "weights")
        self.augmentations = tuple(augmentations)
        lengths = {len(a) for a in (self.images, self.labels, self.weights) if a is not None}
        if len(lengths) > 1:
            raise DataError(f"images, labels and weights must have one length, got {sorted(lengths)}")
        if not len(self.images):
            raise DataError("the data set is empty")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, n: int | None) -> Dataset:
        """The first n samples; all of them for None."""
        return self if n is None else self._take(slice(0, n))

    def split(self, n: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two parts: all but n samples, and n drawn at random, for validation."""
        if not 0 < n < len(self):
            raise DataError(f"cannot set {n} of {len(self)} samples aside")
        order = np.random.default_rng(seed).permutation(len(self))
        return self._take(np.sort(order[n:])), self._take(np.sort(order[:n]))

    def augmented(self, *augmentations: Augmentation) -> Dataset:
        """The same samples; shuffled batches, those of training, are augmented."""
        return Dataset(self.images, self.labels, self.weights, augmentations)

    def batches(
        self, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = True, start: int = 0
    ) -> Iterator[tuple[Array, ...]]:
        """Batches (x, t), or (x, t, w) with weights, from batch `start` on. The short last batch is kept.

        shuffle: every sample once, in an order that follows from (seed, epoch) alone, augmented; else in order, as they are.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        order = np.random.default_rng([seed, epoch]).permutation(len(self)) if shuffle else None
        for first in range(start * batch_size, len(self), batch_size):
            rows = slice(first, first + batch_size)
            index = rows if order is None else order[rows]
            x = self.images[index]
            for augmentation in self.augmentations if order is not None else ():
                x = augmentation(x, order[rows], epoch, seed)  # type: ignore[index]
            yield (x, self.labels[index]) if self.weights is None else (x, self.labels[index], self.weights[index])

    def _take(self, index: Any) -> Dataset:
        weights = None if self.weights is None else self.weights[index]
        return Dataset(self.images[index], self.labels[index], weights, self.augmentations)


class Datasets(NamedTuple):
    """A training and a test set, with the names of the classes."""

    name: str
    train: Dataset
    test: Dataset
    classes: tuple[str, ...]


def _real(values: Any, what: str) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} must be real numbers, not {array.dtype}")
    if array.ndim == 0:
        raise DataError(f"{what} must be an array of samples, not a single number")
    return array
