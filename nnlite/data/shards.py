"""Shards: a data set in many `.npz` files, of which a few are in memory."""

import copy
import glob
import math
import os
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nnlite.arguments import shortened, whole
from nnlite.atomic import shown
from nnlite.data.dataset import Dataset
from nnlite.data.stored import Stored
from nnlite.errors import DataError

Array = NDArray[Any]
_LONGEST = 150  # characters of a reason in a message


def npz_shards(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    x: str = "x",
    t: str = "t",
    weights: str | None = None,
    classes: Sequence[str] | None = None,
    window: int = 4,
) -> Dataset:
    """The samples of many files of `np.savez` or `np.savez_compressed`, one file after another, read when a batch is made.

    paths: a pattern, such as "train-*.npz", whose files are taken in alphabetical order, or a list of files.
    x, t, weights: the names of the arrays (n, ...) in each file; n may differ.   classes: the names of the labels
    window: how many files are in memory at most. Shuffled, the files come in another order each epoch, and the samples of
    `window` successive ones are mixed. Files that were written class by class need a larger window, or mixing in advance.
    Targets of one number a sample and weights are read at once, the others with the batches.
    Raises DataError, naming the file: for one that is damaged or missing, lacks an array, or has arrays of another length,
    shape or dtype; later for one that has changed since. Also where no file fits the pattern.
    """
    files, window = _files(paths), int(whole("window", window, 1))
    images = Shards(files, x, window)
    others = [None if name is None else Shards(files, name, window) for name in (t, weights)]
    for other in others:
        for path, n, m in zip(files, images.lengths, images.lengths if other is None else other.lengths, strict=True):
            if n != m:
                raise DataError(f"the shard {shown(path)} has {n} samples, but {m} targets or weights")
    return Dataset(images, others[0], classes, weights=others[1])


class Shards(Stored):
    """One array (N, ...) in the files of `npz_shards`."""

    def __init__(self, paths: Sequence[Path], name: str, window: int) -> None:
        self.paths, self.name, self.window = paths, name, window
        found = [_read(path, name, _header) for path in paths]
        (_, *self.row), self.dtype, _ = found[0]
        for path, (shape, dtype, _) in zip(paths, found, strict=True):
            if ([*shape[1:]], dtype) != (self.row, self.dtype):
                raise DataError(
                    f"{name} of the shard {shown(path)} is {dtype} (n, {_sizes(shape[1:])}), "
                    f"of {shown(paths[0])} {self.dtype} (n, {_sizes(self.row)})"
                )
        self.lengths, self.checksums = [shape[0] for shape, _, _ in found], [checksum for _, _, checksum in found]
        self.ends = np.cumsum(self.lengths)
        self.places = np.arange(self.ends[-1])
        self.kept = dict[int, Array]()  # by number, the last used one last; replaced, not changed: threads may share it

    def __repr__(self) -> str:
        return f"Shards({len(self.paths)} files, {self.name} {self.shape} {self.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"kept": {}}

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)"""
        return (len(self.places), *self.row)

    def __getitem__(self, rows: Any) -> Array:
        places = self.places[rows]
        values = np.empty((places.size, *self.row), self.dtype)
        numbers = np.searchsorted(self.ends, places.ravel(), side="right")
        for number in sorted(set(numbers.tolist()), key=lambda number: number not in self.kept):
            mine = numbers == number
            values[mine] = self._shard(number)[places.ravel()[mine] - self.ends[number]]  # from its end: negative
        return values.reshape(*places.shape, *self.row)

    def part(self, rows: Any) -> "Shards":
        """The samples of a slice, or of an array of places or of booleans, not read yet."""
        twin = copy.copy(self)
        twin.places, twin.kept = self.places[rows], {}
        return twin

    def add_to(self, digest: Any) -> None:
        """Add to a hash the checksums in the files, and the order of the samples."""
        digest.update(f"{self.shape} {self.dtype.str} {self.window} {self.lengths} {self.checksums}".encode())
        digest.update(self.places.data.cast("B"))

    def order(self, rng: np.random.Generator) -> Array:
        """The places of all samples: files shuffled, and the samples of each `window` of them."""
        window_of = rng.permutation(len(self.paths)) // self.window
        shuffled = rng.permutation(len(self))
        windows = window_of[np.searchsorted(self.ends, self.places[shuffled], side="right")]
        return shuffled[np.argsort(windows, kind="stable")]

    def _shard(self, number: int) -> Array:
        kept = dict(self.kept)
        found = kept.pop(number, None)
        if found is None:
            kept = dict([*kept.items()][max(0, len(kept) - self.window + 1) :])
            self.kept = kept  # makes room first
            found = _read(self.paths[number], self.name, lambda file, info: self._values(file, info, number))
        self.kept = kept | {number: found}
        return found

    def _values(self, file: Any, info: Any, number: int) -> Array:
        if self.checksums[number] != info.CRC:
            raise DataError("it has changed since it was opened")
        values: Array = npy.read_array(file, allow_pickle=False)  # at its end the checksum is compared
        return values


def _files(paths: Any) -> list[Path]:
    if isinstance(paths, str | PathLike):
        pattern = os.path.expanduser(paths)
        files = [Path(path) for path in sorted(glob.glob(os.fspath(pattern)))]
        if not files:
            raise DataError(f"no file fits {shortened(os.fspath(paths))}")
        return files
    files = [Path(path).expanduser() for path in paths]
    if not files:
        raise DataError("there are no shards")
    return files


def _read(path: Path, name: str, use: Callable[[Any, Any], Any]) -> Any:
    """`use(file, info)` of an array in a file; DataError, with the path, if that is damaged or missing."""
    try:
        with ZipFile(path) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            if name not in names:
                raise DataError(f"it has no array {name}, but {shortened(names)}")
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as file:
                return use(file, info)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make zipfile raise many types
        reason = getattr(error, "strerror", None) or str(error)[:_LONGEST] or type(error).__name__
        raise DataError(f"the shard {shown(path)} cannot be read: {reason}") from error


def _header(file: Any, info: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and checksum of an array. What it declares is compared with the bytes that there are."""
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "biuf" or not shape or not shape[0]:
        raise DataError(f"it must hold samples of real numbers, not {dtype} {shape}")
    if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
        raise DataError(f"{info.file_size:,} bytes are no {dtype} {shape}")
    return shape, dtype, info.CRC


def _sizes(row: Sequence[int]) -> str:
    return ", ".join(map(str, row)) or "no more axes"
