"""Data sets: real ones read right, damaged ones refused before anything is unpickled, batches and augmentation seeded."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.data import cifar, files, idx
from nnlite.data.augment import draws
from nnlite.data.cifar import parse_binary, parse_python_batch
from nnlite.data.idx import parse_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 9, 3), np.uint8)
LABELS = np.arange(20) % 10


def test_real_cifar10(data_folder):
    data = nn.data.cifar10(root=data_folder)
    assert data.train.images.shape == (50_000, 32, 32, 3) and data.test.images.shape == (10_000, 32, 32, 3)
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int64
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert [data.classes[i] for i in data.test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    means = data.train.images.reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(means, [125.3, 122.95, 113.87], atol=0.05)  # the published channel means: layout is right


def test_real_mnist(data_folder):
    data = nn.data.mnist(root=data_folder)
    assert data.train.images.shape == (60_000, 28, 28, 1) and len(data.test) == 10_000
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.train.images.mean() == pytest.approx(33.318, abs=0.01)


def test_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NNLITE_DATA", str(tmp_path))
    assert nn.data.cache_folder() == tmp_path
    monkeypatch.delenv("NNLITE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert nn.data.cache_folder() == tmp_path / "nnlite"


def batch_file(n=3):
    pixels = np.arange(n * 3072, dtype=np.uint8).reshape(n, 3072)
    return pixels, pickle.dumps({b"data": pixels, b"labels": list(range(n))}, protocol=2)


def cifar_folder(root, monkeypatch):
    """A tiny CIFAR-10 with md5s of its own."""
    (root / cifar.FOLDER).mkdir()
    _, data = batch_file()
    for name in cifar.BATCHES:
        (root / cifar.FOLDER / name).write_bytes(data)
    monkeypatch.setattr(cifar, "BATCHES", dict.fromkeys(cifar.BATCHES, hashlib.md5(data).hexdigest()))


def test_python_batches_are_read(tmp_path, monkeypatch):
    cifar_folder(tmp_path, monkeypatch)
    data = nn.data.cifar10(root=tmp_path, download=False)
    pixels, _ = batch_file()
    assert len(data.train) == 15 and len(data.test) == 3
    np.testing.assert_array_equal(data.test.images[1, 2, 5], pixels[1].reshape(3, 32, 32)[:, 2, 5])


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_unknown_bytes_never_reach_pickle(tmp_path, monkeypatch):
    cifar_folder(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / cifar.FOLDER / "data_batch_2").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(nn.DataError, match=r"data_batch_2.*expected md5 [0-9a-f]{32}, found [0-9a-f]{32}"):
        nn.data.cifar10(root=tmp_path)
    with pytest.raises(nn.DataError, match="system has no place"):  # the second belt
        parse_python_batch(pickle.dumps(Bomb()), "bomb")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_damaged_python_batches(tmp_path, monkeypatch, damage):
    cifar_folder(tmp_path, monkeypatch)
    path = tmp_path / cifar.FOLDER / "test_batch"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-7], "flipped": data[:50] + b"!" + data[51:], "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(nn.DataError, match="test_batch"):
        nn.data.cifar10(root=tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", pickle.dumps({b"data": 3}), pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]})],
)
def test_python_batches_of_other_content(content):
    with pytest.raises(nn.DataError, match="strange"):
        parse_python_batch(content, "strange")


def test_binary_version(tmp_path):
    record = bytes([7]) + bytes(range(256)) * 12
    images, labels = parse_binary(record * 2, "x")
    assert labels.tolist() == [7, 7] and images[0, 0, 1].tolist() == [1, 1, 1] and images[0, 8, 0, 0] == 0
    (tmp_path / cifar.BINARY_FOLDER).mkdir()
    for name in cifar.BATCHES:
        (tmp_path / cifar.BINARY_FOLDER / f"{name}.bin").write_bytes(record)
    assert len(nn.data.cifar10(root=tmp_path).train) == 5
    (tmp_path / cifar.BINARY_FOLDER / "test_batch.bin").unlink()
    with pytest.raises(nn.DataError, match=r"lacks test_batch\.bin"):
        nn.data.cifar10(root=tmp_path)
    for bad in (b"", record[:-1], record + b"1", bytes([10]) + record[1:]):
        with pytest.raises(nn.DataError, match="the name"):
            parse_binary(bad, "the name")


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_idx():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx_bytes(array), "x"), array)
    good = idx_bytes(array)
    lying = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31) + b"abc"
    for bad in (b"", good[:3], good[:9], good[:-1], good + b"0", b"\x00\x00\x0d" + good[3:], lying, bytes([0, 0, 8, 0, 1])):
        with pytest.raises(nn.DataError, match="the name"):
            parse_idx(bad, "the name")


def mnist_folder(root, monkeypatch, name="mnist"):
    (root / name).mkdir()
    arrays = [np.zeros((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)] * 2
    md5s = []
    for file, array in zip(idx.FILES, arrays, strict=True):
        data = gzip.compress(idx_bytes(array))
        (root / name / f"{file}.gz").write_bytes(data)
        md5s.append(hashlib.md5(data).hexdigest())
    monkeypatch.setattr(idx, "MNIST_MD5", tuple(md5s))
    monkeypatch.setattr(idx, "FASHION_MD5", tuple(md5s))


def test_mnist_files(tmp_path, monkeypatch):
    mnist_folder(tmp_path, monkeypatch)
    mnist_folder(tmp_path, monkeypatch, "fashion-mnist")
    assert nn.data.mnist(root=tmp_path).train.images.shape == (4, 28, 28, 1)
    assert nn.data.fashion_mnist(root=tmp_path).classes[9] == "ankle boot"
    packed = tmp_path / "mnist" / f"{idx.FILES[0]}.gz"
    plain = gzip.decompress(packed.read_bytes())
    packed.unlink()
    (tmp_path / "mnist" / idx.FILES[0]).write_bytes(plain)
    assert len(nn.data.mnist(root=tmp_path).train) == 4
    (tmp_path / "mnist" / f"{idx.FILES[1]}.gz").write_bytes(b"damaged")
    with pytest.raises(nn.DataError, match=r"labels-idx1-ubyte\.gz.*expected md5"):
        nn.data.mnist(root=tmp_path)


def test_gunzip_is_bounded():
    data = gzip.compress(b"0" * 1000)
    assert files.gunzip(data, "x", 1000) == b"0" * 1000
    for bad, words in ((data[:-9], "damaged"), (b"no gzip", "damaged"), (data, "more than")):
        with pytest.raises(nn.DataError, match=words):
            files.gunzip(bad, "x", 999 if bad is data else 10_000)


def test_an_unreachable_download_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    for load, url in ((nn.data.cifar10, "cs.toronto.edu"), (nn.data.mnist, "train-images"), (nn.data.fashion_mnist, "fashion")):
        with pytest.raises(nn.DownloadError, match="no route to host") as caught:
            load(root=tmp_path)
        for words in (url, str(tmp_path), "NNLITE_DATA"):
            assert words in str(caught.value)
        with pytest.raises(nn.DownloadError, match="NNLITE_DATA"):
            load(root=tmp_path, download=False)


class Response(io.BytesIO):
    headers = {}  # noqa: RUF012


def test_download_and_unpack(tmp_path, monkeypatch, capsys):
    _, data = batch_file()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in [*(f"{cifar.FOLDER}/{b}" for b in cifar.BATCHES), "../escaped", "/tmp/escaped"]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    packed = archive.getvalue()
    monkeypatch.setattr(cifar, "BATCHES", dict.fromkeys(cifar.BATCHES, hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(packed))
    root = tmp_path / "deep" / "root"
    with pytest.raises(nn.DownloadError, match="expected md5"):  # other bytes than the original's
        nn.data.cifar10(root=root)
    assert list(root.iterdir()) == []
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(packed).hexdigest())
    assert len(nn.data.cifar10(root=root).train) == 15
    assert sorted(p.name for p in root.iterdir()) == [cifar.FOLDER]
    assert sorted(p.name for p in (root / cifar.FOLDER).iterdir()) == sorted(cifar.BATCHES)
    assert not (tmp_path / "deep" / "escaped").exists()


def test_shapes():
    data = nn.data.shapes(300, seed=1)
    assert data.train.images.shape == (300, 32, 32, 3) and len(data.test) == 60 and len(data.classes) == 10
    assert set(data.train.labels) == set(range(10))
    again, other = nn.data.shapes(300, seed=1), nn.data.shapes(300, seed=2)
    assert np.array_equal(data.train.images, again.train.images)
    assert not np.array_equal(data.train.images, other.train.images)
    with pytest.raises(nn.DataError):
        nn.data.shapes(0)


@given(n=st.integers(1, 50), size=st.integers(1, 60), epoch=st.integers(0, 3), seed=st.integers(0, 3))
def test_batches_hold_every_sample_once(n, size, epoch, seed):
    data = nn.data.Dataset(np.arange(n), np.arange(n) * 2)
    batches = list(data.batches(size, epoch=epoch, seed=seed))
    assert [len(x) for x, _ in batches] == [size] * (n // size) + ([n % size] if n % size else [])
    order = np.concatenate([x for x, _ in batches])
    assert sorted(order) == list(range(n))
    assert all(np.array_equal(2 * x, t) for x, t in batches)
    again = np.concatenate([x for x, _ in data.batches(size, epoch=epoch, seed=seed)])
    assert np.array_equal(order, again)
    rest = [x for x, _ in data.batches(size, epoch=epoch, seed=seed, start=1)]
    assert all(np.array_equal(a, b) for a, (b, _) in zip(rest, batches[1:], strict=True))
    in_order = np.concatenate([x for x, _ in data.batches(size, shuffle=False)])
    assert in_order.tolist() == list(range(n))


def test_order_depends_on_seed_and_epoch():
    data = nn.data.Dataset(np.arange(50), np.arange(50))
    orders = [next(data.batches(50, epoch=e, seed=s))[0].tolist() for e in (0, 1) for s in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_dataset_parts():
    data = nn.data.Dataset(IMAGES, LABELS, weights=np.ones(20))
    assert len(data.subset(5)) == 5 and data.subset(None) is data and len(data.subset(99)) == 20
    x, t, w = next(data.batches(4))
    assert x.shape == (4, 8, 9, 3) and t.shape == w.shape == (4,)
    train, held_out = data.split(6, seed=1)
    assert len(train) == 14 and len(held_out) == 6
    for bad in (0, 20):
        with pytest.raises(nn.DataError):
            data.split(bad)
    with pytest.raises(ValueError):
        next(data.batches(0))


def test_bad_arrays():
    for images, labels in ((IMAGES, LABELS[:3]), (IMAGES[:0], LABELS[:0]), (IMAGES.astype(object), LABELS), (3, LABELS)):
        with pytest.raises(nn.DataError):
            nn.data.Dataset(images, labels)


@pytest.mark.parametrize(
    "augment",
    [nn.data.RandomFlip(), nn.data.RandomCrop(2), nn.data.RandomCrop(3, "reflect"), nn.data.Cutout(4)],
    ids=["flip", "crop", "reflect", "cutout"],
)
@given(seed=st.integers(0, 5), epoch=st.integers(0, 5), data=st.data())
def test_a_draw_depends_on_seed_epoch_and_place_alone(augment, seed, epoch, data):
    index = np.arange(20)
    before = IMAGES.copy()
    whole = augment(IMAGES, index, epoch, seed)
    picked = np.array(data.draw(st.permutations(range(20)))[: data.draw(st.integers(1, 20))])
    assert np.array_equal(augment(IMAGES[picked], picked, epoch, seed), whole[picked])
    assert np.array_equal(before, IMAGES) and whole.dtype == np.uint8 and whole.shape == IMAGES.shape
    assert not np.array_equal(whole, augment(IMAGES, index, epoch + 1, seed))
    assert not np.array_equal(whole, augment(IMAGES, index, epoch, seed + 1))


def test_what_augmentation_does():
    many = np.repeat(IMAGES[:1], 2000, axis=0)
    index = np.arange(2000)
    flipped = nn.data.RandomFlip()(many, index, 0, 0)
    share = (flipped == many).all(axis=(1, 2, 3)).mean()
    assert 0.45 < share < 0.55
    assert all(np.array_equal(f, many[0]) or np.array_equal(f, many[0, :, ::-1]) for f in flipped[:20])
    padded = np.pad(many[0], ((2, 2), (2, 2), (0, 0)))
    crops = {padded[i : i + 8, j : j + 9].tobytes() for i in range(5) for j in range(5)}
    assert {c.tobytes() for c in nn.data.RandomCrop(2)(many, index, 0, 0)} == crops
    holes = (nn.data.Cutout(3)(np.ones_like(many), index, 0, 0) == 0).sum(axis=(1, 2, 3))
    assert holes.max() == 27 and holes.min() > 0
    bits = draws(index, 0, 0, 1)
    assert len(np.unique(bits)) == 2000


def test_augmentation_is_for_training_only():
    data = nn.data.Dataset(IMAGES, LABELS).augmented(nn.data.RandomCrop(2))
    assert np.array_equal(next(data.batches(20, shuffle=False))[0], IMAGES)
    assert not np.array_equal(np.sort(next(data.batches(20))[0], axis=0), np.sort(IMAGES, axis=0))
    for bad in (lambda: nn.data.RandomCrop(0), lambda: nn.data.RandomCrop(2, "wrap"), lambda: nn.data.Cutout(0)):
        with pytest.raises(ValueError):
            bad()
