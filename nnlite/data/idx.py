"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): idx files, plain or gzipped."""

from __future__ import annotations

import math
import struct
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.data.dataset import Dataset, Datasets
from nnlite.data.files import cache_folder, download, gunzip, read_checked
from nnlite.errors import DataError, DownloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray


FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LIMIT = 16 + 60_000 * 28 * 28  # bytes of the largest file, unpacked
MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def mnist(root: str | PathLike[str] | None = None, download: bool = True) -> Datasets:
    """MNIST: `.train` and `.test`, each with `.images` (N, 28, 28, 1) uint8 and `.labels` (N,) int64.

    root: the folder that holds `mnist/`; default `NNLITE_DATA`, else a cache folder. download: fetch what is not found.
    Raises DataError for a damaged file, DownloadError where one can neither be found nor fetched.
    """
    return _load("mnist", root, download, MNIST_URL, MNIST_MD5, tuple("0123456789"))


def fashion_mnist(root: str | PathLike[str] | None = None, download: bool = True) -> Datasets:
    """Fashion-MNIST, as `mnist`, in the folder `fashion-mnist/`."""
    return _load("fashion-mnist", root, download, FASHION_URL, FASHION_MD5, FASHION_CLASSES)


def parse_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """The array in an idx file of bytes; raises DataError unless header and length agree."""
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{name}: not an idx file of bytes")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    found = len(data) - 4 - 4 * len(shape)
    if not shape or math.prod(shape) != found:
        raise DataError(f"{name}: the header says {shape}, {found} bytes follow")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _load(name: str, root: Any, may_download: bool, url: str, md5s: tuple[str, ...], classes: tuple[str, ...]) -> Datasets:
    folder = (Path(root) if root is not None else cache_folder()) / name
    arrays = [
        parse_idx(_read(folder, file, md5, url, may_download), str(folder / file))
        for file, md5 in zip(FILES, md5s, strict=True)
    ]
    return Datasets(name, _pair(arrays[0], arrays[1], folder), _pair(arrays[2], arrays[3], folder), classes)


def _read(folder: Path, file: str, md5: str, url: str, may_download: bool) -> bytes:
    packed = folder / f"{file}.gz"
    if (folder / file).is_file() and not packed.is_file():
        return (folder / file).read_bytes()
    if not packed.is_file():
        if not may_download:
            raise DownloadError(f"{packed} is missing; set NNLITE_DATA or root= to the folder that holds {folder.name}/")
        download([url + packed.name], packed, md5)
    return gunzip(read_checked(packed, md5), str(packed), LIMIT)


def _pair(images: NDArray[np.uint8], labels: NDArray[np.uint8], folder: Path) -> Dataset:
    if images.ndim != 3 or labels.ndim != 1 or (labels.size and labels.max() > 9):
        raise DataError(f"{folder}: expected images (N, H, W) and labels 0 ... 9, found {images.shape} and {labels.shape}")
    return Dataset(images[..., None], labels.astype(np.int64))
