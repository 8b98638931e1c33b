"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): idx files, plain or gzipped."""

import math
import struct
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import flag
from nnlite.data.dataset import Dataset, Datasets
from nnlite.data.files import data_folder, fetch, gunzip, read, read_checked
from nnlite.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LARGEST = 16 + 60_000 * 28 * 28  # bytes of the largest file, unpacked
MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_URLS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_DIMENSIONS = 8  # at most; the files have 1 and 3


def mnist(root: str | PathLike[str] | None = None, download: bool = True) -> Datasets:
    """MNIST: `.train` and `.test`, each with `.images` (N, 28, 28, 1) uint8 and `.labels` (N,) int64.

    root: the folder that holds `mnist/` with the four files, gzipped (their md5s are checked) or plain; default
    `NNLITE_DATA`, else a cache folder. download: download missing files (12 MB).
    Raises DataError for a damaged file, DownloadError if one can neither be found nor downloaded.
    """
    return _datasets(data_folder(root) / "mnist", MNIST_URLS, MNIST_MD5, tuple("0123456789"), download)


def fashion_mnist(root: str | PathLike[str] | None = None, download: bool = True) -> Datasets:
    """Fashion-MNIST (31 MB), as `mnist`, in the folder `fashion-mnist/`."""
    return _datasets(data_folder(root) / "fashion-mnist", FASHION_URLS, FASHION_MD5, FASHION_CLASSES, download)


def parse_idx(data: bytes, name: str = "idx file") -> NDArray[np.uint8]:
    """The array in an idx file of bytes: 0, 0, 8, the number of dimensions, each as 4 bytes, the values.

    Raises DataError, naming `name`, unless header and length agree. Source: yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= _DIMENSIONS:
        raise DataError(f"{name} is not an idx file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{name}: the header is truncated")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if 0 in shape or math.prod(shape) != len(data) - start:
        raise DataError(f"{name}: the header says {shape}, and {len(data) - start:,} bytes follow")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # a view of bytes would be read-only


def _datasets(folder: Path, urls: tuple[str, ...], md5s: tuple[str, ...], classes: tuple[str, ...], download: bool) -> Datasets:
    flag("download", download)
    arrays = [_array(folder, name, urls, md5, download) for name, md5 in zip(FILES, md5s, strict=True)]
    train, test = (_dataset(folder, images, labels, classes) for images, labels in (arrays[:2], arrays[2:]))
    return Datasets(folder.name, train, test, classes)


def _array(folder: Path, name: str, urls: tuple[str, ...], md5: str, download: bool) -> NDArray[np.uint8]:
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file() and not packed.is_file():
        return parse_idx(read(plain), str(plain))
    if not packed.is_file():
        fetch(packed, [url + packed.name for url in urls], md5, download, looked_for=[plain])
    return parse_idx(gunzip(read_checked(packed, md5), str(packed), LARGEST), str(packed))


def _dataset(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8], classes: tuple[str, ...]) -> Dataset:
    if labels.ndim != 1 or images.shape != (len(labels), 28, 28) or labels.max() > 9:
        found = f"{images.shape} and {labels.shape}, the largest label {labels.max()}"
        raise DataError(f"{folder}: expected images (N, 28, 28) and labels (N,) of 0 ... 9, found {found}")
    return Dataset(images[..., None], labels.astype(np.int64), classes)
