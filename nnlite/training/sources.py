"""Where batches come from: what `fit`, `evaluate` and `predict` take, and how it is iterated."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import numpy as np

from nnlite.arguments import shortened
from nnlite.backend import by_position, host_array, is_array
from nnlite.errors import DataError, ShapeError
from nnlite.training.ahead import read_ahead

Batch = tuple[Any, Any, Any]
Part = Callable[[int], slice] | None


def as_source(data: Any) -> Any:
    """Arrays as a Dataset; data sets and iterables of batches as they are."""
    if isinstance(data, tuple):
        from nnlite.data import Dataset

        x, t, w = _parts(data, "data")
        return Dataset(x, t, weights=w)
    if is_array(data):
        raise DataError("inputs and targets are given as one tuple: (x, t)")
    is_sequence = hasattr(data, "__getitem__") and hasattr(data, "__len__")  # of batches by number, as Keras's `Sequence`
    if not (is_dataset(data) or isinstance(data, Iterable) or is_sequence):
        raise DataError(f"data must be (x, t), a nn.data.Dataset or an iterable of batches, not {type(data).__name__}")
    return data


def apart(source: Any, validation: Any, seed: int) -> tuple[Any, Any, Any]:
    """The training data, the validation data or None, and the places of the former in `source`, None for all.

    validation: separate data, or the share of the source's samples to draw and set aside.
    """
    is_share = isinstance(validation, float | np.floating)
    if not is_share:
        return source, None if validation is None else as_source(validation), None
    from nnlite.data import Dataset

    if not isinstance(source, Dataset):
        raise DataError(
            f"validation={shortened(validation)} sets samples of arrays or of a nn.data.Dataset aside, the training data are a "
            f"{type(source).__name__}: give data for validation, such as validation=(x, t)"
        )
    places = np.arange(len(source))
    with said_of("validation"):
        kept, drawn = (part.images for part in Dataset(places, places).split(validation, seed=seed))
    return source[kept], source[drawn], kept


@contextmanager
def said_of(what: str) -> Iterator[None]:
    """Name the data in errors."""
    try:
        yield
    except (ShapeError, DataError) as error:
        raise type(error)(f"{what}: {error}") from error


def is_dataset(data: Any) -> bool:
    """Whether it is a `nn.data.Dataset`, or anything that yields seeded batches as it does."""
    return callable(getattr(data, "batches", None))


def gives_once(source: Any) -> bool:
    """Whether it certainly cannot restart: a generator, `map`, `zip`. A Python iterator may restart in its `__iter__`."""
    begin = getattr(type(source), "__iter__", None)
    return isinstance(source, Iterator) and (begin is Iterator.__iter__ or not isinstance(begin, FunctionType))


def on_device(source: Any, backend: Any) -> Any:
    """The data set in the device's memory, if it fits; else unchanged."""
    fits = backend.has_own_memory and hasattr(source, "on") and backend.has_room(source.nbytes)
    return source.on(backend) if fits else source


def batches(
    source: Any, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = False, start: int = 0, part: Part = None
) -> Iterator[Batch]:
    """Batches (x, t, w), w None where there are no weights, from batch `start` on. The loss decides what t may be.

    part: returns the samples, of a batch of n, whose x is wanted; a source that does not `reads_parts` gives all.
    """
    if is_dataset(source):
        parts = {} if part is None or not getattr(source, "reads_parts", False) else {"part": part}
        given = source.batches(batch_size, epoch=epoch, seed=seed, shuffle=shuffle, start=start, **parts)
    else:
        given = itertools.islice(items(source), start, None)
    return ((_array(x), t, w) for x, t, w in (_parts(batch, "a batch") for batch in given))


def inputs(data: Any, batch_size: int, axes: int) -> Iterator[Any]:
    """Batches of the inputs x alone, from all that `as_source` takes, and from x itself. axes: of one sample.

    A list is x where it is nested as deep as an array of samples has axes, and an iterable of batches where it is deeper.
    """
    if is_dataset(data):
        return (x for x, _, _ in batches(data, batch_size))
    if isinstance(data, tuple):
        return _slices(_parts(data, "data")[0], batch_size)
    if is_array(data) or (isinstance(data, list) and _depth(data) <= axes + 1):
        return _slices(data, batch_size)
    return (_inputs_of(batch, axes) for batch in items(as_source(data)))


def _slices(x: Any, batch_size: int) -> Iterator[Any]:
    from nnlite.data import as_stored

    x = as_stored(by_position(x, "x"))
    if not x.shape:
        raise DataError("x must be an array of samples, not a single number")
    return (x[first : first + batch_size] for first in range(0, len(x), batch_size))


def _inputs_of(batch: Any, axes: int) -> Any:
    is_labelled = isinstance(batch, tuple) or (isinstance(batch, list) and _depth(batch) > axes + 1)
    return _array(_parts(batch, "a batch")[0] if is_labelled else batch)


class Epochs:
    """The batches of `fit`, epoch by epoch: each a pass over the source, or `steps` batches of passes without end.

    first: the epoch in which an iterable's passes began.
    placed: whether a resumed source continues from its own position.
    places: the places of its samples in the data set that it was taken from, None for all.
    part: returns the samples, of a batch of n, that this one of several processes trains on; None for all.
    """

    def __init__(
        self, source: Any, steps: int | None, first: int, placed: bool, places: Any, part: Part = None, **order: Any
    ) -> None:
        self.source, self.steps, self.first, self.placed, self.places, self.order = source, steps, first, placed, places, order
        self.part = part
        self.endless: Iterator[Batch] | None = None
        self.reading = ExitStack()  # a thread that reads ahead

    def close(self) -> None:
        """End the thread that reads ahead, if there is one."""
        self.reading.close()

    def epoch(self, number: int, start: int) -> Iterator[Batch]:
        """The batches of epoch `number` from batch `start` on."""
        done = self.done(number, start)
        if self.steps is None:
            self.close()  # that of the epoch before
            return self._read(batches(self.source, epoch=number, start=done, part=self.part, **self.order))
        if self.endless is None:
            self.endless = self._read(_endless(self.source, done, self.placed, part=self.part, **self.order))
        return itertools.islice(self.endless, self.steps - start)

    def _read(self, given: Iterator[Batch]) -> Iterator[Batch]:
        return self.reading.enter_context(read_ahead(self.source, given))

    def done(self, number: int, start: int) -> int:
        """The batches before batch `start` of epoch `number` that the source repeats, to be skipped."""
        if self.placed:
            return 0
        if self.steps is None:
            return start
        return (number - (0 if is_dataset(self.source) else self.first)) * self.steps + start

    def rows(self, number: int, batch: int) -> Any:
        """The places in the data set of the samples of a batch of epoch `number`; None if the source does not provide them."""
        if not callable(getattr(self.source, "rows", None)):
            return None
        if self.steps is not None:
            number, batch = divmod(number * self.steps + batch, _batches_in(self.source, self.order["batch_size"]))
        rows = self.source.rows(batch, epoch=number, **self.order)
        return rows if self.places is None else self.places[rows]

    def total(self) -> tuple[int | None, str]:
        """The length of an epoch, None if unknown, and its unit."""
        if self.steps is not None:
            return self.steps, "step"
        return len(self.source) if is_dataset(self.source) else None, "sample"


def _endless(source: Any, start: int, placed: bool, batch_size: int, **order: Any) -> Iterator[Batch]:
    """Pass after pass, from batch `start` on. An iterable is read up to there; a data set skips ahead."""
    if not is_dataset(source):
        return itertools.islice(_passes(source, 0, 0, placed, batch_size), start, None)
    return _passes(source, *divmod(start, _batches_in(source, batch_size)), False, batch_size, **order)


def _batches_in(source: Any, batch_size: int) -> int:
    return max(1, -(-len(source) // batch_size))


def _passes(source: Any, epoch: int, start: int, placed: bool, batch_size: int, **order: Any) -> Iterator[Batch]:
    total, before = 0, -1 if placed else 0  # a resumed source may be at its end
    while True:
        for batch in batches(source, batch_size, epoch=epoch, start=start, **order):
            total += 1
            yield batch
        if total == before:
            raise DataError(
                f"the training data gave no batch{f' after the first {total}' if total else ''}: an iterable must give its "
                "batches anew, an iterator as many as epochs x steps_per_epoch"
            )
        epoch, start, before = epoch + 1, 0, total


def items(source: Any) -> Iterator[Any]:
    """The items of an iterable, or of a sequence by number."""
    return iter(source) if isinstance(source, Iterable) else (source[i] for i in range(len(source)))


def _parts(given: Any, what: str) -> Batch:
    """x, t and w of (x, t) or (x, t, w), w None if missing."""
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        found = f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, tuple | list) else "")
        raise DataError(f"{what} must be (x, t) or (x, t, weights), got {found}")
    x, t, w = itertools.islice(itertools.chain(given, [None]), 3)
    return x, t, w


def _array(x: Any) -> Any:
    """The array on the device where it is, or on the host."""
    return x if hasattr(x, "__cuda_array_interface__") else host_array(x)


def _depth(x: Any) -> int:
    """The number of axes of an array, or of nested lists and tuples, by their first items."""
    if isinstance(x, list | tuple):
        return 1 + (_depth(x[0]) if x else 0)
    return len(np.shape(x)) if is_array(x) else 0
