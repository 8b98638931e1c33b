"""Downloads, without a network: what is tried, what is written, what is said; the cache folder."""

import gzip
import hashlib
import http.client
import io
import os
import tarfile
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from test_data_files import cifar_pickle, idx_bytes

from nnlite import DataError, DownloadError, data
from nnlite.data import cifar, files, idx


def archive(members: dict[str, bytes], compression: str = "gz", links: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return file.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Web:
    """Stands in for urlopen: answers with bytes, or raises; remembers what was asked."""

    def __init__(self, pages: dict[str, bytes | Exception]) -> None:
        self.pages, self.asked = pages, []

    def __call__(self, url: str, timeout: float):
        self.asked.append(url)
        page = self.pages.get(url, OSError("network is unreachable"))
        if isinstance(page, Exception):
            raise page
        response = io.BytesIO(page)
        response.headers = Message()
        response.headers["Content-Length"] = str(len(page))
        return response


@pytest.fixture
def web(monkeypatch):
    def install(pages: dict[str, bytes | Exception]) -> Web:
        stand_in = Web(pages)
        monkeypatch.setattr("urllib.request.urlopen", stand_in)
        return stand_in

    return install


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_cifar10_says_what_was_tried_and_what_to_do(tmp_path, web, monkeypatch):
    monkeypatch.setenv("NNLITE_DATA", str(tmp_path / "here"))
    asked = web({}).asked
    with pytest.raises(DownloadError) as raised:
        data.cifar10()
    message = str(raised.value)
    assert asked == list(cifar.URLS)
    for part in (
        "here/cifar-10-batches-py",
        "cifar-10-batches-bin",
        *cifar.URLS,
        "network is unreachable",
        "NNLITE_DATA",
        "root=",
    ):
        assert part in message
    assert f"Put cifar-10-python.tar.gz into {tmp_path / 'here'}" in message


@pytest.mark.parametrize(("load", "urls"), [(data.mnist, idx.MNIST_URLS), (data.fashion_mnist, idx.FASHION_URLS)])
def test_mnist_tries_every_url(tmp_path, web, load, urls):
    stand_in = web({urls[0] + "train-images-idx3-ubyte.gz": http.client.IncompleteRead(b"")})
    with pytest.raises(DownloadError, match="IncompleteRead") as raised:
        load(tmp_path)
    assert stand_in.asked == [url + "train-images-idx3-ubyte.gz" for url in urls]
    assert all(url in str(raised.value) for url in stand_in.asked)


def test_no_download_unless_allowed(tmp_path, web):
    stand_in = web({})
    for load in (data.cifar10, data.mnist, data.fashion_mnist):
        with pytest.raises(DownloadError, match=r"not tried, download=False: http.*\nPut .* or set NNLITE_DATA"):
            load(tmp_path, download=False)
    assert not stand_in.asked and not names(tmp_path)


def test_mnist_is_fetched_once(tmp_path, web, monkeypatch):
    files = {}
    for name in idx.FILES:
        array = np.ones((4, 28, 28), np.uint8) if "images" in name else np.arange(4, dtype=np.uint8)
        files[name] = gzip.compress(idx_bytes(array))
    monkeypatch.setattr(idx, "MNIST_MD5", tuple(md5(content) for content in files.values()))
    good, bad = idx.MNIST_URLS[1], idx.MNIST_URLS[0]
    stand_in = web({f"{good}{name}.gz": content for name, content in files.items()} | {f"{bad}{idx.FILES[1]}.gz": b"<html>"})
    assert data.mnist(tmp_path).train.labels.tolist() == [0, 1, 2, 3]
    assert len(stand_in.asked) == 8 and names(tmp_path) == sorted(["mnist", *(f"mnist/{name}.gz" for name in idx.FILES)])
    data.mnist(tmp_path)
    (tmp_path / "mnist" / f"{idx.FILES[2]}.gz").unlink()
    data.mnist(tmp_path)
    assert len(stand_in.asked) == 10


def test_a_download_with_another_md5_is_thrown_away(tmp_path, web):
    web({"https://a/f": b"wrong"})
    with pytest.raises(DownloadError, match=f"expected md5 {md5(b'right')}, found {md5(b'wrong')}"):
        files.fetch(tmp_path / "f", ["https://a/f"], md5(b"right"), allowed=True)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path, web):
    (tmp_path / "file").write_bytes(b"")
    web({"https://a/f": b"right"})
    with pytest.raises(DownloadError, match=r"tried https://a/f: .*file"):
        files.fetch(tmp_path / "file" / "f", ["https://a/f"], md5(b"right"), allowed=True)


@pytest.fixture
def small_cifar(monkeypatch):
    """An archive of six small batches, whose md5s are taken for those of CIFAR-10."""
    batches = {name: cifar_pickle(np.full((2, 3072), i, np.uint8), [i, 9]) for i, name in enumerate(cifar.BATCHES)}
    members = {f"cifar-10-batches-py/{name}": batch for name, batch in batches.items()}
    packed = archive(members | {"cifar-10-batches-py/readme.html": b"", "../outside": b"!"})
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5(packed))
    monkeypatch.setattr(cifar, "BATCHES", {name: md5(batch) for name, batch in batches.items()})
    return packed


def test_cifar10_is_fetched_and_unpacked(tmp_path, web, small_cifar):
    root = tmp_path / "deep" / "root"
    stand_in = web({cifar.URLS[0]: small_cifar})
    for found in (data.cifar10(root), data.cifar10(root)):
        assert found.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and found.test.labels.tolist() == [5, 9]
        assert (found.train.images[2:4] == 1).all() and (found.test.images == 5).all()
    assert len(stand_in.asked) == 1
    inside = sorted(f"root/cifar-10-batches-py/{name}" for name in cifar.BATCHES)
    assert names(tmp_path / "deep") == ["root", "root/cifar-10-batches-py", *inside]


@pytest.mark.parametrize("moment", ["read_checked", "extract"])
def test_another_process_may_be_faster(tmp_path, web, small_cifar, monkeypatch, moment):
    web({cifar.URLS[0]: small_cifar})
    slow = getattr(cifar, moment)

    def overtaken(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(cifar, moment, slow)
            data.cifar10(tmp_path)  # which deletes the archive, too
        return slow(*arguments)

    monkeypatch.setattr(cifar, moment, overtaken)
    assert data.cifar10(tmp_path).test.labels.tolist() == [5, 9]


def test_what_a_killed_process_of_the_same_number_left(tmp_path, web, small_cifar):
    web({cifar.URLS[0]: small_cifar})
    (tmp_path / f".cifar-10-batches-py.{os.getpid()}.part").mkdir()
    assert len(data.cifar10(tmp_path).test) == 2


def test_an_archive_put_there_by_hand_is_unpacked_and_kept(tmp_path, web, small_cifar):
    stand_in = web({})
    (tmp_path / cifar.ARCHIVE).write_bytes(small_cifar)
    assert len(data.cifar10(tmp_path, download=False).test) == 2
    assert not stand_in.asked and (tmp_path / cifar.ARCHIVE).exists()


def test_a_damaged_archive_put_there_by_hand(tmp_path, small_cifar):
    (tmp_path / cifar.ARCHIVE).write_bytes(small_cifar[:-9])
    with pytest.raises(DataError, match=f"{cifar.ARCHIVE} is damaged.*expected md5 {md5(small_cifar)}"):
        data.cifar10(tmp_path)


HOSTILE = archive({"../a": b"!", "/tmp/nnlite-a": b"!", "x/../../a": b"!", "x/b": b"!"}, links={"x/a": "/etc/passwd"})


NOISE = np.random.default_rng(0).bytes(20_000)


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        (HOSTILE, "it lacks x/a"),
        (archive({"x/b": b"!"}), "it lacks x/a"),
        (archive({"x/a": NOISE}, compression="")[:9_000], ""),
        (archive({"x/a": NOISE})[:9_000], ""),
        (b"\x1f\x8b\x08\x04" + bytes(6), ""),  # a gzip header that ends too early: TypeError in tarfile
        (b"\x1f\x8b\x08\x00 not gzip", ""),
        (b"", ""),
    ],
    ids=["hostile", "lacking", "short tar", "short gz", "short header", "no gz", "empty"],
)
def test_bad_archives_write_nothing(tmp_path, packed, problem):
    path, folder = tmp_path / "f.tar.gz", tmp_path / "in" / "x"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=f"f.tar.gz cannot be unpacked into .*x: .*{problem}"):
        files.extract(path, folder, ["a"])
    assert names(tmp_path) == ["f.tar.gz", "in"] and not Path("/tmp/nnlite-a").exists()


def test_extract_takes_only_what_is_named(tmp_path):
    path = tmp_path / "f.tar.gz"
    path.write_bytes(archive({"../a": b"!", "x/b": b"!", "x/a": b"good"}))
    files.extract(path, tmp_path / "x", ["a"])
    assert names(tmp_path) == ["f.tar.gz", "x", "x/a"] and (tmp_path / "x" / "a").read_bytes() == b"good"


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"NNLITE_DATA": "/d", "XDG_CACHE_HOME": "/x"}, "/d"),
        ("linux", {"NNLITE_DATA": "~/d"}, "/home/me/d"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/nnlite"),
        ("linux", {"NNLITE_DATA": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/nnlite"),
        ("darwin", {}, "/home/me/Library/Caches/nnlite"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/nnlite"),
        ("win32", {}, "/home/me/AppData/Local/nnlite"),
    ],
)
def test_cache_folder(monkeypatch, platform, environment, expected):
    for name in ("NNLITE_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert data.cache_folder() == Path(expected)
