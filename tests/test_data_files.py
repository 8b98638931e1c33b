"""CIFAR-10, MNIST and Fashion-MNIST: the real files where there are any, and everything that can be wrong with a file."""

import contextlib
import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite import DataError, DownloadError, data
from nnlite.data import cifar, idx
from nnlite.data.files import gunzip


def cifar_binary(n: int = 4, labels: int = 10) -> bytes:
    """Every pixel of red, green, blue is 1, 2, 3."""
    return b"".join(bytes([i % labels]) + b"\x01" * 1024 + b"\x02" * 1024 + b"\x03" * 1024 for i in range(n))


def cifar_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes of the original batches, which NumPy 1 wrote under Python 2."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    byte = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", n) for n in pixels.shape) + b"\x86"
    content = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    numbers = b"".join(b"J" + struct.pack("<i", label) for label in labels)
    return b"\x80\x02}(U\x06labels](" + numbers + b"eU\x04data" + array + b"(K\x01" + shape + byte + b"\x89" + content + b"tbu."


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, n: int = 3) -> None:
    folder.mkdir(parents=True)
    for name in idx.FILES:
        array = np.full((n, 28, 28), 7, np.uint8) if "images" in name else np.arange(n, dtype=np.uint8)
        (folder / name).write_bytes(idx_bytes(array))


class Bomb:
    """Unpickled by an ordinary unpickler, it makes a folder."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_real_cifar10(data_folder):
    real = data.cifar10(data_folder, download=False)
    assert (real.name, len(real.train), len(real.test), len(real.classes)) == ("cifar10", 50_000, 10_000, 10)
    assert real.train.images.shape == (50_000, 32, 32, 3) and real.train.images.dtype == np.uint8
    assert real.train.labels.dtype == np.int64
    assert np.bincount(real.train.labels).tolist() == [5000] * 10 and np.bincount(real.test.labels).tolist() == [1000] * 10
    assert [real.classes[label] for label in real.test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    np.testing.assert_allclose(real.train.images.mean(axis=(0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)


def test_real_mnist(data_folder, monkeypatch):
    monkeypatch.setenv("NNLITE_DATA", str(data_folder))
    real = data.mnist()
    assert (real.name, real.train.images.shape, real.test.images.shape) == ("mnist", (60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert real.train.labels[:5].tolist() == [5, 0, 4, 1, 9] and real.test.labels[:4].tolist() == [7, 2, 1, 0]
    assert real.train.images.dtype == np.uint8 and real.train.labels.dtype == np.int64 and real.classes[3] == "3"
    assert abs(real.train.images.mean() / 255 - 0.1307) < 1e-4


def test_binary_version_equals_the_python_version(data_folder):
    images, labels = cifar.parse_python_batch((data_folder / "cifar-10-batches-py" / "test_batch").read_bytes())
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    binary = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tobytes()
    again, labels_again = data.parse_cifar_binary(binary)
    assert np.array_equal(again, images) and np.array_equal(labels_again, labels)


def test_cifar10_binary_folder(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in cifar.BATCHES:
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(cifar_binary(2))
    found = data.cifar10(tmp_path)
    assert (len(found.train), len(found.test)) == (10, 2) and found.train.labels.tolist() == [0, 1] * 5
    assert (found.train.images == [1, 2, 3]).all() and found.train.images.flags.c_contiguous


@pytest.mark.parametrize(
    ("binary", "message"),
    [
        (b"", "x.bin: 0 bytes are not a whole number"),
        (cifar_binary()[:-1], "x.bin: 12,291 bytes are not a whole number of records of 3073"),
        (cifar_binary(12, labels=11), r"x.bin: labels must be in 0 \.\.\. 9, found 0 \.\.\. 10"),
    ],
)
def test_bad_cifar_binary(binary, message):
    with pytest.raises(DataError, match=message):
        data.parse_cifar_binary(binary, "x.bin")


def test_a_batch_with_another_md5_is_never_unpickled(tmp_path):
    folder, bomb = tmp_path / "cifar-10-batches-py", pickle.dumps({"data": Bomb(tmp_path / "bang")}, protocol=2)
    folder.mkdir()
    for name in cifar.BATCHES:
        (folder / name).write_bytes(bomb)
    found = hashlib.md5(bomb).hexdigest()
    with pytest.raises(
        DataError, match=rf"data_batch_1 is damaged.*expected md5 c99cafc1.*, found {found} \({len(bomb)} bytes\)"
    ):
        data.cifar10(tmp_path)
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py lacks test_batch"):
        data.cifar10(tmp_path)
    assert not (tmp_path / "bang").exists()


def test_the_unpickler_calls_nothing(tmp_path):
    """The second belt: were the md5 right, the pickle could still call nothing."""
    bomb = pickle.dumps({"data": Bomb(tmp_path / "bang")}, protocol=2)
    with pytest.raises(
        DataError, match=r"x is not a CIFAR-10 batch: UnpicklingError: (posix|nt).mkdir has no place in a batch"
    ):
        cifar.parse_python_batch(bomb, "x")
    assert not (tmp_path / "bang").exists()
    pickle.loads(bomb)
    assert (tmp_path / "bang").exists()


def test_python_batch():
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    images, labels = cifar.parse_python_batch(cifar_pickle(pixels, [3, 8]))
    assert images.dtype == np.uint8 and images.shape == (2, 32, 32, 3) and labels.tolist() == [3, 8]
    assert images[1, 2, 5].tolist() == [pixels[1, plane * 1024 + 2 * 32 + 5] for plane in range(3)]


# An array of 2^60 bytes, as numpy.core.multiarray._reconstruct would make it.
HUGE = (
    b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x08"
    + b"\x00" * 7
    + b"\x10\x85U\x01b\x87Rs."
)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"not a pickle",
        pickle.dumps([1], 2),
        pickle.dumps({b"data": 1}, 2),
        HUGE,
        b"\x80\x02cnumpy\ncore.os.system\n.",
    ],
)
def test_bad_python_batch(pickled):
    with pytest.raises(DataError, match="CIFAR-10 python batch is not a CIFAR-10 batch: "):
        cifar.parse_python_batch(pickled)


@pytest.mark.parametrize(("n", "labels"), [(2, [0, 1, 2]), (2, [0, 10]), (2, [0, -1]), (0, [])])
def test_python_batches_of_wrong_labels(n, labels):
    with pytest.raises(DataError, match=r"f: (expected pixels \(N, 3072\) and labels \(N,\)|labels must be in 0 ... 9), found"):
        cifar.parse_python_batch(cifar_pickle(np.zeros((n, 3072), np.uint8), labels), "f")


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_idx_round_trip(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    parsed = data.parse_idx(idx_bytes(array))
    assert np.array_equal(parsed, array) and parsed.flags.writeable


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "f is not an idx file of bytes: it begins with nothing"),
        (b"\x00\x00\x08", "begins with 00 00 08"),
        (b"\x00\x00\x0d\x01" + b"\x00\x00\x00\x01" * 2, "not an idx file of bytes: it begins with 00 00 0d 01"),
        (b"\x1f\x8b\x08\x00", "not an idx file"),
        (b"\x00\x00\x08\x00", "not an idx file"),
        (b"\x00\x00\x08\xff" + b"\x00\x00\x00\x01" * 255 + b"x", "not an idx file"),
        (b"\x00\x00\x08\x03\x00\x00", "f: the header is truncated"),
        (idx_bytes(np.zeros((2, 3), np.uint8))[:-1], r"f: the header says \(2, 3\), and 5 bytes follow"),
        (idx_bytes(np.zeros((2, 3), np.uint8)) + b"x", r"says \(2, 3\), and 7 bytes follow"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12 + b"x", r"says \(4294967295, 4294967295, 4294967295\), and 1 bytes"),
        (b"\x00\x00\x08\x03" + b"\xff" * 8 + b"\x00" * 4, "and 0 bytes follow"),
    ],
)
def test_bad_idx(raw, message):
    with pytest.raises(DataError, match=message):
        data.parse_idx(raw, "f")


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x00\x00\x08", b"\x00\x00\x08\x01\x00\x00\x00"]))
def test_parsers_of_any_bytes_give_an_array_or_data_error(raw, start):
    for parse in (data.parse_idx, data.parse_cifar_binary):
        with contextlib.suppress(DataError):
            assert parse(start + raw).dtype == np.uint8


def test_plain_idx_files(tmp_path):
    write_mnist(tmp_path / "mnist")
    write_mnist(tmp_path / "fashion-mnist", n=5)
    found, fashion = data.mnist(tmp_path), data.fashion_mnist(tmp_path)
    assert found.train.images.shape == (3, 28, 28, 1) and found.test.labels.tolist() == [0, 1, 2]
    assert (fashion.name, len(fashion.test), fashion.classes[9]) == ("fashion-mnist", 5, "ankle boot")
    found.train.images[0] = 0  # belongs to the caller


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train-labels-idx1-ubyte", np.array([1, 2, 10], np.uint8)),
        ("train-labels-idx1-ubyte", np.array([1, 2], np.uint8)),
        ("train-labels-idx1-ubyte", np.zeros((3, 1), np.uint8)),
        ("t10k-images-idx3-ubyte", np.zeros((3, 28, 27), np.uint8)),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path, name, array):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(idx_bytes(array))
    with pytest.raises(DataError, match=r"mnist: expected images \(N, 28, 28\) and labels \(N,\) of 0 ... 9, found "):
        data.mnist(tmp_path)


@pytest.mark.parametrize(
    ("load", "folder", "md5"), [(data.mnist, "mnist", "f68b3c2d"), (data.fashion_mnist, "fashion-mnist", "8d4f")]
)
def test_damaged_gz(tmp_path, load, folder, md5):
    path = tmp_path / folder / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((3, 28, 28), np.uint8)))[:-5])
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte.gz is damaged.*expected md5 {md5}.*, found [0-9a-f]{{32}} "):
        load(tmp_path)


def test_gunzip():
    packed = gzip.compress(b"abc" * 1000)
    assert gunzip(packed, "f", limit=3000) == b"abc" * 1000
    for bad in (packed[:-1], packed[:20], b"", b"abc", packed[:-8] + bytes(8), packed + b"x", packed + packed):
        with pytest.raises(DataError, match="f: damaged gzip data"):
            gunzip(bad, "f", limit=3000)
    with pytest.raises(DataError, match="f: unpacks to more than the 2,999 bytes"):
        gunzip(packed, "f", limit=2999)


def test_gunzip_takes_no_more_memory_than_its_limit():
    packed = gzip.compress(bytes(30_000_000))
    tracemalloc.start()
    with pytest.raises(DataError, match="more than"):
        gunzip(packed, "f", limit=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_importing_is_cheap():
    """What only a download or a damaged file needs is imported there."""
    code = "import sys, nnlite.data; print({'gzip', 'tarfile', 'tqdm', 'urllib.request'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_unreadable_file(tmp_path):
    write_mnist(tmp_path / "mnist")
    assert issubclass(DownloadError, DataError)
    with pytest.raises(DataError, match="cannot be read"):
        idx.read(tmp_path / "mnist")  # a folder
