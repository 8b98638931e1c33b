"""Data sets: images and labels, iterated in seeded batches; what is computed from the labels alone."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import class_names, flag, is_whole, shortened, whole
from nnlite.backend import Backend, backend_of, host_array
from nnlite.data.augment import Augmentation, Pictures, in_turn
from nnlite.data.stored import Stored, as_stored
from nnlite.errors import DataError

Array = NDArray[Any]
Batch = tuple[Array, ...]
Part = Callable[[int], slice] | None
_SHOWN = 5  # classes in a message
_SEEDS = 1 << 64  # larger than any seed in practice


class Dataset:
    """Samples and their targets.

    images: (N, ...) real numbers
    labels: (N, ...) integer labels or real targets   classes: the names of the labels
    weights: (N,) of the samples, not negative     All may be arrays, lists or data frames; stored as NumPy arrays.
    Images, and labels of more axes than one, may be samples in files, which are read when a batch is made: memory-mapped
    arrays, `ImageFiles`, the arrays of `npz_shards`.
    Raises DataError for lengths that differ, no samples, values that are not real numbers, masked or sparse arrays, labels
    without a class.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        classes: Sequence[str] | None = None,
        *,
        weights: Any = None,
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        self.images: Any = _samples(images, "images")
        self.labels: Any = _samples(labels, "labels")
        self.weights = None if weights is None else np.asarray(_samples(weights, "weights"))
        self.classes = None if classes is None else tuple(class_names("classes", classes))
        self.augmentations = tuple(augmentations)
        for augmentation in self.augmentations:
            if isinstance(augmentation, type) or not callable(augmentation):
                raise ValueError(f"augmentations must be such as nn.data.RandomFlip(), not {shortened(augmentation)}")
        self._check()

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Dataset({len(self)} samples {self.images.shape[1:]} {self.images.dtype}, labels {self.labels.dtype})"

    def __getitem__(self, rows: "slice | NDArray[np.integer[Any]] | NDArray[np.bool_]") -> "Dataset":
        """The samples of a slice, or of an array of places or of booleans."""
        if not isinstance(rows, slice | np.ndarray):
            raise TypeError(f"a data set is indexed by a slice or an array, not by {type(rows).__name__}")
        images, labels = (a.part(rows) if isinstance(a, Stored) else a[rows] for a in (self.images, self.labels))
        weights = None if self.weights is None else self.weights[rows]
        return Dataset(images, labels, self.classes, weights=weights, augmentations=self.augmentations)

    @property
    def in_files(self) -> bool:
        """Whether samples are read when a batch is made; training then reads ahead."""
        return isinstance(self.images, Stored) or isinstance(self.labels, Stored)

    @property
    def nbytes(self) -> int:
        """Bytes of images, labels and weights; of those in files, the bytes they take once read."""
        return sum(int(array.nbytes) for array in (self.images, self.labels, self.weights) if array is not None)

    def on(self, backend: Backend) -> "Dataset":
        """The same samples in the memory of a device: batches are gathered and augmented there. Those in files stay there."""
        if self.in_files:
            return self
        twin = copy.copy(self)
        twin.images, twin.labels = backend.asarray(self.images), backend.asarray(self.labels)
        twin.weights = None if self.weights is None else backend.asarray(self.weights)
        return twin

    def digest(self) -> str:
        """The sha256, in hexadecimal, of all values; of those in files, of what determines them."""
        import hashlib

        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.weights):
            if isinstance(array, Stored):
                array.add_to(digest)
            elif array is not None:
                array = np.ascontiguousarray(array)
                digest.update(f"{array.dtype.str} {array.shape}".encode())
                digest.update(array.data.cast("B"))
        return digest.hexdigest()

    def subset(self, n: int | None) -> "Dataset":
        """The first n samples; all of them for None."""
        return self if n is None else self[: whole("n", n, 1)]

    def split(self, n: int | float, *, seed: int = 0, stratify: bool = False) -> tuple["Dataset", "Dataset"]:
        """Two parts, for training and for validation: all but n samples, and n drawn at random.

        n: a number, or a share: ceil(n N) samples for 0 < n < 1.   stratify: every class has its share of both parts, to
        within one sample. As scikit-learn's `train_test_split(test_size=n)`, but each part keeps the order of the samples.
        Raises DataError where a part would be empty, and with stratify for labels that are not integers (N,), a class with a
        single sample, parts with fewer samples than classes.
        """
        held_out = _count(n, len(self))
        rng = np.random.default_rng([whole("seed", seed), 0, 1])  # [seed, epoch] orders the batches
        by_class = flag("stratify, which takes the labels of this data set,", stratify)
        drawn = _stratified(self.labels, held_out, rng) if by_class else rng.permutation(len(self))[:held_out]
        is_held_out = np.zeros(len(self), bool)
        is_held_out[drawn] = True
        return self[~is_held_out], self[is_held_out]

    def augmented(self, *augmentations: Augmentation) -> "Dataset":
        """The same samples; shuffled batches, those of training, are augmented by each in turn, with independent draws."""
        augmentations = self.augmentations + augmentations
        return Dataset(self.images, self.labels, self.classes, weights=self.weights, augmentations=augmentations)

    reads_parts = True

    def batches(
        self, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = True, start: int = 0, part: Part = None
    ) -> Iterator[Batch]:
        """Batches (x, t), or (x, t, w) with weights, from batch `start` on. The short last batch is kept.

        shuffle: every sample once, in an order that depends only on (seed, epoch), augmented; otherwise in order and unchanged.
        part: returns the samples, of a batch of n, whose images are wanted: x has only these, t and w have all.
        """
        batch_size, start = int(whole("batch_size", batch_size, 1)), int(whole("start", start))
        epoch, seed = int(whole("epoch", epoch)), int(whole("seed", seed))
        flag("shuffle", shuffle)
        firsts = range(start * batch_size, len(self), batch_size)
        if not shuffle:
            batches = (range(first, min(first + batch_size, len(self))) for first in firsts)
            return (self._in_order(rows, _of(part, len(rows))) for rows in batches)
        order = self._order(epoch, seed)
        return (self.batch(order[first : first + batch_size], epoch, seed, part) for first in firsts)

    def rows(self, batch: int, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = True) -> Array:
        """The places in the data set of the samples of batch number `batch`, as `batches` gives it."""
        order = self._order(epoch, seed) if shuffle else np.arange(len(self))
        return order[batch * batch_size : (batch + 1) * batch_size]

    def _order(self, epoch: int, seed: int) -> Array:
        rng = np.random.default_rng([seed, epoch])
        return self.images.order(rng) if isinstance(self.images, Stored) else rng.permutation(len(self))

    def _in_order(self, rows: range, mine: slice) -> Batch:
        """mine: the samples among them whose images are wanted."""
        own = rows[mine]
        return (self.images[own.start : own.stop], *self._targets(slice(rows.start, rows.stop)))

    def batch(self, index: Array, epoch: int = 0, seed: int = 0, part: Part = None) -> Batch:
        """The samples of these places, augmented, as (x, t), or (x, t, w) with weights."""
        own = index[_of(part, len(index))]
        again = (sum(type(a) is type(b) for b in self.augmentations[:i]) for i, a in enumerate(self.augmentations))
        seeds = (seed + times * _SEEDS for times in again)  # two of a kind draw from different seeds
        is_read = isinstance(self.images, Stored)
        pictures = Pictures(self.images[own]) if is_read else Pictures(self.images, own)
        x = in_turn(zip(self.augmentations if len(own) else (), seeds, strict=False), pictures, own, epoch)
        return (x, *self._targets(index))

    def _targets(self, rows: Any) -> Batch:
        if not isinstance(rows, slice):
            rows = backend_of(self.labels).asarray(rows)
        return tuple(array[rows] for array in (self.labels, self.weights) if array is not None)

    def _check(self) -> None:
        lengths = [len(a) for a in (self.images, self.labels, self.weights) if a is not None]
        if len(set(lengths)) > 1:
            raise DataError(f"images, labels and weights must have one length, got {', '.join(map(str, lengths))}")
        if not len(self):
            raise DataError("the data set is empty")
        if self.weights is not None and (self.weights.ndim != 1 or not (self.weights >= 0).all()):
            raise DataError(f"weights must be (N,) and not negative, got {self.weights.shape}, least {self.weights.min()}")
        if self.classes is None or isinstance(self.labels, Stored):
            return
        labels = self.labels if self.weights is None else self.labels[self.weights > 0]  # samples of weight 0 are ignored
        if labels.dtype.kind in "iu" and len(labels):
            least, largest = labels.min(), labels.max()
            if least < 0 or largest >= len(self.classes):
                raise DataError(f"labels must be in 0 ... {len(self.classes) - 1}, found {least} ... {largest}")


def _of(part: Part, n: int) -> slice:
    return slice(None) if part is None else part(n)


class Datasets:
    """A training and a test set. name: of the pair   classes: the names of the labels 0, 1, ..."""

    def __init__(self, name: str, train: Dataset, test: Dataset, classes: Sequence[str]) -> None:
        self.name, self.train, self.test, self.classes = name, train, test, tuple(classes)

    def __repr__(self) -> str:
        return f"Datasets({self.name!r}, train: {len(self.train)}, test: {len(self.test)}, {len(self.classes)} classes)"


def _count(n: int | float, samples: int) -> int:
    """The number of samples for a number or a share."""
    is_share = isinstance(n, float | np.floating) and 0 < n < 1
    count = math.ceil(float(n) * samples) if is_share else n  # float32 would round the product
    if not is_whole(count) or not 0 < count < samples:
        raise DataError(
            f"cannot set {shortened(n)} of {samples} samples aside: give a smaller number, or a share between 0 and 1"
        )
    return int(count)


def _samples(values: Any, what: str) -> Any:
    array = values if isinstance(values, Stored) else as_stored(host_array(values, what=what))
    if array.ndim == 0:
        raise DataError(f"{what} must be an array of samples, not a single number")
    return array[:] if array.ndim == 1 and isinstance(array, Stored) else array  # one number a sample takes little memory


# ---- from the labels alone: weights that balance classes, stratified samples


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


def _stratified(labels: Array, n: int, rng: np.random.Generator) -> Array:
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
