"""CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32 x 32 pixels, ten classes; python batches or the binary version."""

import io
import pickle
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import flag
from nnlite.data.dataset import Dataset, Datasets
from nnlite.data.files import data_folder, extract, fetch, read, read_checked
from nnlite.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URLS = ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",)
ARCHIVE, ARCHIVE_MD5 = "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
FOLDER, BINARY_FOLDER = "cifar-10-batches-py", "cifar-10-batches-bin"
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_PIXELS = 3 * 32 * 32  # three planes: red, green, blue

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def cifar10(root: str | PathLike[str] | None = None, download: bool = True) -> Datasets:
    """CIFAR-10: `.train` and `.test`, each with `.images` (N, 32, 32, 3) uint8 and `.labels` (N,) int64.

    root: the folder that holds `cifar-10-batches-py/` (its md5s are checked), or `cifar-10-batches-bin/`, or the archive
    `cifar-10-python.tar.gz`; default `NNLITE_DATA`, else a cache folder. download: download it (170 MB) if it is not found.
    Raises DataError for a damaged file, DownloadError if it can neither be found nor downloaded.
    """
    flag("download", download)
    base = data_folder(root)
    folder, binary = base / FOLDER, base / BINARY_FOLDER
    if binary.is_dir() and not folder.is_dir():
        return _datasets([parse_cifar_binary(read(path), str(path)) for path in _paths(binary, ".bin")])
    if not folder.is_dir():
        _unpack(base, download)
    return _datasets([parse_python_batch(read_checked(path, BATCHES[path.name]), str(path)) for path in _paths(folder)])


def parse_cifar_binary(data: bytes, name: str = "CIFAR-10 binary batch") -> Part:
    """Images (N, 32, 32, 3) and labels (N,) of the binary version: N records of one label and 3,072 pixels.

    Raises DataError, naming `name`, for a broken record and for labels beyond 9.
    """
    if not data or len(data) % (1 + _PIXELS):
        raise DataError(f"{name}: {len(data):,} bytes are not a whole number of records of {1 + _PIXELS} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _part(records[:, 1:], records[:, 0].astype(np.int64), name)


def parse_python_batch(data: bytes, name: str = "CIFAR-10 python batch") -> Part:
    """Images (N, 32, 32, 3) and labels (N,) of a python batch; raises DataError, naming `name`, for anything else.

    Check the md5 first: no code in `data` is run, but a few bytes can make any unpickler use up all memory.
    """
    try:
        batch: Any = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        _version, shape, dtype, fortran, raw = batch[b"data"].state
        if dtype.arguments[0] != b"u1" or fortran:
            raise ValueError("the pixels are not bytes in C order")
        pixels, labels = np.frombuffer(raw, np.uint8).reshape(shape), np.asarray(batch[b"labels"], np.int64)
    except Exception as error:  # pickle raises many types
        raise DataError(f"{name} is not a CIFAR-10 batch: {type(error).__name__}: {error}") from None
    return _part(pixels, labels, name)


class _StandIn:
    """Replaces an array and its dtype: stores the arguments that the pickle passes, and calls nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments: Any = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """A second safeguard after the md5: knows only the three names in a batch, and replaces each by a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return _StandIn
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch")


def _part(pixels: NDArray[np.uint8], labels: NDArray[np.int64], name: str) -> Part:
    if labels.ndim != 1 or not len(labels) or pixels.shape != (len(labels), _PIXELS):
        raise DataError(f"{name}: expected pixels (N, {_PIXELS}) and labels (N,), found {pixels.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"{name}: labels must be in 0 ... 9, found {labels.min()} ... {labels.max()}")
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels  # (N, C, H, W) -> (N, H, W, C)


def _paths(folder: Path, suffix: str = "") -> list[Path]:
    """The five training batches and the test batch."""
    paths = [folder / f"{name}{suffix}" for name in BATCHES]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(f"{folder} lacks {', '.join(missing)}: put it there, or delete the folder to have it fetched again")
    return paths


def _unpack(base: Path, download: bool) -> None:
    """Make the folder of python batches from the archive, which is deleted again if it had to be downloaded."""
    archive = base / ARCHIVE
    downloaded = not archive.is_file()
    if downloaded:
        fetch(archive, URLS, ARCHIVE_MD5, download, looked_for=[base / FOLDER, base / BINARY_FOLDER])
    try:
        read_checked(archive, ARCHIVE_MD5)
        extract(archive, base / FOLDER, list(BATCHES))
    except DataError:
        if not (base / FOLDER).is_dir():  # unless another process was faster
            raise
    if downloaded:
        archive.unlink(missing_ok=True)


def _datasets(parts: list[Part]) -> Datasets:
    *train, test = parts
    images, labels = (np.concatenate(column) for column in zip(*train, strict=True))
    return Datasets("cifar10", Dataset(images, labels, CLASSES), Dataset(*test, CLASSES), CLASSES)
