"""Samples that stay in files: read when a batch is made, so that a data set may be larger than the memory."""

import copy
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.atomic import shown
from nnlite.errors import DataError

Array = NDArray[Any]
_CHUNK = 1 << 24  # bytes that are read together
_APART = 64  # samples that are read together where others lie between them: the system may map megabytes around each


class Stored:
    """Samples (N, ...) in files, indexed as arrays are. A subclass has `shape`, `dtype`, `part(rows)`, `add_to(digest)`."""

    in_files = True  # a thread reads batches ahead
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)"""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self.dtype, copy=False)

    @property
    def ndim(self) -> int:
        """The number of axes, that of the samples included."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all samples would take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, rows: Any) -> "Stored":
        """The samples of a slice, or of an array of places or of booleans, not read yet."""
        raise NotImplementedError

    def add_to(self, digest: Any) -> None:
        """Add to a hash what determines the values."""
        raise NotImplementedError

    def order(self, rng: np.random.Generator) -> Array:
        """The places of all samples, shuffled."""
        return rng.permutation(len(self))


class MappedArray(Stored):
    """The samples of a memory-mapped array, such as `np.load("x.npy", mmap_mode="r")`; a batch is a copy of its rows.

    The pages that a batch was read from are given back to the system, so memory does not grow with the file.
    Raises DataError where the file has become shorter than the array.
    """

    def __init__(self, array: Array) -> None:
        self.array, self.places, self.dtype = np.asarray(array), np.arange(len(array)), array.dtype

    def __repr__(self) -> str:
        return f"MappedArray({self.shape} {self.dtype})"

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)"""
        return (len(self.places), *self.array.shape[1:])

    def __getitem__(self, rows: Any) -> Array:
        file, memory = _map_of(self.array)  # None after pickling, which copies the values
        if file is not None and memory.size() < file.offset + file.nbytes:  # reading on would end the process
            name = "the mapped file" if file.filename is None else shown(file.filename)
            raise DataError(f"{name} has {memory.size():,} bytes, the array in it ends at {file.offset + file.nbytes:,}")
        # The changed pages of a map of mode "c" have no other copy.
        gives_back = file is not None and file.mode != "c" and hasattr(mmap, "MADV_DONTNEED")
        places = np.asarray(self.places[rows])
        flat, row = places.ravel(), self.array.shape[1:]
        values = np.empty((len(flat), *row), self.dtype)
        is_dense = len(flat) and np.ptp(flat) < 2 * len(flat)
        step = max(_APART, _CHUNK // max(1, values[:1].nbytes)) if is_dense else _APART
        for first in range(0, len(flat), step):
            piece = slice(first, first + step)
            values[piece] = self.array[flat[piece]]
            if gives_back:
                memory.madvise(mmap.MADV_DONTNEED)
        return values.reshape(*places.shape, *row)

    def part(self, rows: Any) -> "MappedArray":
        """The samples of a slice, or of an array of places or of booleans, not read yet."""
        twin = copy.copy(self)
        twin.places = self.places[rows]
        return twin

    def add_to(self, digest: Any) -> None:
        """Add the values to a hash, as those of an array in memory are."""
        digest.update(f"{self.dtype.str} {self.shape}".encode())
        step = max(1, _CHUNK * len(self) // max(1, self.nbytes))
        for first in range(0, len(self), step):
            digest.update(np.ascontiguousarray(self[first : first + step]).data.cast("B"))


def as_stored(values: Any) -> Any:
    """A memory-mapped array as samples in a file; anything else as it is."""
    is_mapped = isinstance(values, np.ndarray) and values.ndim and _map_of(values)[1] is not None
    return MappedArray(values) if is_mapped else values


def _map_of(array: Any) -> tuple[Any, Any]:
    """The np.memmap that an array is a view of, and its memory; both None for other arrays."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            return array, array.base
        array = array.base
    return None, None
