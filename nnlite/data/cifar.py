"""CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32 x 32 pixels, ten classes; python batches or the binary version."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.data.dataset import Dataset, Datasets
from nnlite.data.files import cache_folder, download, extract, read_checked
from nnlite.errors import DataError, DownloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URLS = ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",)
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER, BINARY_FOLDER = "cifar-10-batches-py", "cifar-10-batches-bin"
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_RECORD = 1 + 3072


def cifar10(root: str | PathLike[str] | None = None, download: bool = True) -> Datasets:
    """CIFAR-10: `.train` and `.test`, each with `.images` (N, 32, 32, 3) uint8 and `.labels` (N,) int64.

    root: the folder that holds `cifar-10-batches-py/` or `cifar-10-batches-bin/`; default `NNLITE_DATA`, else a cache folder.
    download: fetch it (170 MB) where neither is found. Raises DataError for a damaged file, DownloadError where it can
    neither be found nor fetched.
    """
    base = Path(root) if root is not None else cache_folder()
    if (base / BINARY_FOLDER).is_dir() and not (base / FOLDER).is_dir():
        return _datasets(_read_binary_files(base / BINARY_FOLDER))
    if not (base / FOLDER).is_dir():
        if not download:
            raise DownloadError(f"no CIFAR-10 in {base}: expected the folder {FOLDER}; set NNLITE_DATA or root=")
        _download(base)
    return _datasets([_read_python_batch(base / FOLDER / name, md5) for name, md5 in BATCHES.items()])


def parse_python_batch(data: bytes, name: str) -> Part:
    """Images and labels of a python batch. The caller has checked the md5: unpickling unknown bytes is never safe."""
    from nnlite.data.unpickle import unpickle

    try:
        batch = unpickle(data)
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
    except Exception as error:
        raise DataError(f"{name}: not a CIFAR-10 batch: {type(error).__name__}: {error}") from error
    return _images_and_labels(pixels, labels, name)


def parse_binary(data: bytes, name: str) -> Part:
    """Images and labels of the binary version: records of one label and 3,072 pixels, plane by plane."""
    if not data or len(data) % _RECORD:
        raise DataError(f"{name}: {len(data)} bytes are not a whole number of records of {_RECORD} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    return _images_and_labels(records[:, 1:], records[:, 0].astype(np.int64), name)


def _images_and_labels(pixels: NDArray[Any], labels: NDArray[np.int64], name: str) -> Part:
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072) or labels.ndim != 1 or not len(labels):
        raise DataError(f"{name}: expected (N, 3072) bytes and N labels, found {pixels.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{name}: labels must be in 0 ... 9, found {labels.min()} ... {labels.max()}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _read_python_batch(path: Path, md5: str) -> Part:
    if not path.is_file():
        raise DataError(f"{path} is missing; delete the folder {path.parent} to have it fetched again")
    return parse_python_batch(read_checked(path, md5), str(path))


def _read_binary_files(folder: Path) -> list[Part]:
    paths = [folder / f"{name}.bin" for name in BATCHES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}")
    return [parse_binary(path.read_bytes(), str(path)) for path in paths]


def _download(base: Path) -> None:
    archive = download(URLS, base / "cifar-10-python.tar.gz", ARCHIVE_MD5)
    extract(archive, {f"{FOLDER}/{name}": base / FOLDER / name for name in BATCHES})
    archive.unlink()


def _datasets(parts: list[Part]) -> Datasets:
    *train, test = parts
    images, labels = (np.concatenate(column) for column in zip(*train, strict=True))
    return Datasets("cifar10", Dataset(images, labels), Dataset(*test), CLASSES)
