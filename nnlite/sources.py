"""Where batches come from: what `fit`, `evaluate` and `predict` take, and how it is gone through."""

import itertools
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from nnlite.errors import DataError


def as_source(data: Any) -> Any:
    """Arrays as a Dataset; data sets and iterables of batches as they are."""
    if is_dataset(data):
        return data
    if isinstance(data, tuple):
        if len(data) not in (2, 3):
            raise DataError(f"data must be (x, t) or (x, t, weights), got a tuple of {len(data)}")
        from nnlite.data import Dataset

        return Dataset(data[0], data[1], weights=data[2] if len(data) == 3 else None)
    if hasattr(data, "ndim"):
        raise DataError("inputs and targets are given as one tuple: (x, t)")
    if not isinstance(data, Iterable):
        raise DataError(f"data must be (x, t), a nn.data.Dataset or an iterable of batches, not {type(data).__name__}")
    return data


def is_dataset(data: Any) -> bool:
    """A `nn.data.Dataset`, or whatever gives seeded batches as it does."""
    return callable(getattr(data, "batches", None))


def gives_once(source: Any) -> bool:
    """Whether it surely cannot begin anew: a generator, `map`, `zip`. An iterator in Python may do so in its `__iter__`."""
    begin = getattr(type(source), "__iter__", None)
    return isinstance(source, Iterator) and (begin is Iterator.__iter__ or not isinstance(begin, FunctionType))


def on_device(source: Any, backend: Any) -> Any:
    """A data set in the memory of the device, where that has room; else as it is."""
    fits = backend.device != "cpu" and hasattr(source, "on") and backend.has_room(source.nbytes)
    return source.on(backend) if fits else source


def batches(
    source: Any, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = False, start: int = 0
) -> Iterator[tuple[Any, Any, Any]]:
    """Batches (x, t, w), w None where there are no weights, from batch `start` on."""
    if is_dataset(source):
        given = source.batches(batch_size, epoch=epoch, seed=seed, shuffle=shuffle, start=start)
    else:
        given = itertools.islice(source, start, None)
    for batch in given:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise DataError(f"a batch must be (x, t) or (x, t, weights), got {type(batch).__name__}")
        x, t, w = itertools.islice(itertools.chain(batch, [None]), 3)
        yield x, t, w
