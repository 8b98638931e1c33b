"""Whatever writes a file keeps what stands in its place: links, modes, owners, and all that is no regular file."""

import hashlib
import io
import os
import socket
import stat
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.data import files
from nnlite.training import checkpoint


def save_model(path):
    nn.Sequential(nn.Dense(2), input_shape=(3,)).save(path)


def save_table(path):
    nn.History({"loss": [1.0]}).to_csv(path)


def save_download(path):
    """Without a network; its own error, a DownloadError, tells what went wrong with each url."""

    def urlopen(url, timeout):
        response = io.BytesIO(b"right")
        response.headers = Message()
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.urlopen", urlopen)
        try:
            files.fetch(Path(path), ["https://a"], hashlib.md5(b"right").hexdigest(), allowed=True)
        except nn.DownloadError as error:
            raise nn.FileError(str(error)) from error


def save_log(path):
    trainer = nn.Trainer(nn.Sequential(nn.Dense(2), input_shape=(3,)), nn.CrossEntropy(), nn.SGD(), [], [nn.CSVLog(path)])
    trainer.fit((np.ones((4, 3), "float32"), np.zeros(4, int)), epochs=2, progress=False)


WRITERS = [save_model, save_table, save_download, save_log]
writers = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@writers
def test_links_are_followed(tmp_path, write):
    (tmp_path / "far").mkdir()
    for start, content in (("there", b"old"), ("dangling", None)):
        target, link, second = (tmp_path / place for place in (f"far/{start}.png", f"{start}.png", f"{start}2.png"))
        if content:
            target.write_bytes(content)
        link.symlink_to(Path("far") / target.name)
        second.symlink_to(link.name)
        write(second)
        assert link.is_symlink() and second.is_symlink() and not target.is_symlink()
        assert target.read_bytes() not in (b"", b"old")
    assert len(names(tmp_path)) == 5 and len(names(tmp_path / "far")) == 2, "no temporary file is left"


@given(mode=st.integers(0, 0o177).map(lambda bits: bits | 0o600), umask=st.sampled_from([0, 0o022, 0o077, 0o027]))
def test_a_file_keeps_its_mode_and_a_new_one_gets_that_of_open(tmp_path_factory, mode, umask):
    folder, before = tmp_path_factory.mktemp("modes"), os.umask(umask)
    try:
        for write in (save_model, save_table, save_download, save_log):
            old, new = folder / f"old {write.__name__}", folder / f"new {write.__name__}"
            old.write_bytes(b"old")
            old.chmod(mode)
            write(old)
            write(new)
            assert mode_of(old) == mode and mode_of(new) == 0o666 & ~umask
    finally:
        os.umask(before)


@writers
def test_owner_and_group_are_kept_where_that_is_permitted(tmp_path, write):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(path, 4321, 1234)
    before = path.stat()
    write(path)
    after = path.stat()
    assert after.st_ino != before.st_ino and (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


SPECIAL = {"a FIFO": os.mkfifo, "a folder": os.mkdir, "a socket": make_socket}


@writers
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, write, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    SPECIAL[kind]("a.png")
    Path("link.png").symlink_to("a.png")
    before = os.lstat("a.png")
    for name in ("a.png", "link.png"):
        with pytest.raises(nn.FileError, match=rf"{name} is {kind}"):
            write(name)
    after = os.lstat("a.png")
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert names(tmp_path) == ["a.png", "link.png"]


@writers
def test_a_device_is_refused(tmp_path, write, monkeypatch):
    """A pretended one: as root, code that is wrong would replace the real /dev/null for the whole machine."""
    path, real = tmp_path / "null.png", os.stat
    path.write_bytes(b"old")
    device = os.stat_result([stat.S_IFCHR | 0o666, *real(path)[1:]])
    monkeypatch.setattr(os, "stat", lambda p, **options: device if os.fspath(p) == str(path) else real(p, **options))
    with pytest.raises(nn.FileError, match=r"null\.png is a device"):
        write(path)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["null.png"]


@pytest.mark.parametrize("write", [save_model, save_table])
def test_a_missing_folder_is_reported_under_the_users_path(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link.png").symlink_to("no/such/a.png")
    Path("file").write_bytes(b"")
    missing = "there is no folder .*/no/such"
    for name, words in (("no/such/a.png", missing), ("link.png", missing), ("file/a.png", "Not a directory")):
        with pytest.raises(nn.FileError, match=rf"^{name} cannot be written: {words}"):
            write(name)
    assert names(tmp_path) == ["file", "link.png"]


def test_a_write_protected_file_is_refused_as_open_refuses_it(tmp_path, monkeypatch):
    """Such as those that git-annex links to. The superuser may write to all, so the answer of the system is pretended."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda p, mode: False)
    with pytest.raises(nn.FileError, match=r"a\.safetensors is write-protected"):
        save_model(path)
    assert path.read_bytes() == b"old"


@writers
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod", "open"])
def test_where_the_system_refuses_the_old_file_is_left(tmp_path, write, call, monkeypatch):
    path, real = tmp_path / "a.png", getattr(os, call)
    path.write_bytes(b"old")

    def full(first, *rest, **options):
        if call == "open" and not rest[0] & os.O_CREAT:
            return real(first, *rest, **options)
        raise OSError(28, "No space left on device", str(first))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(nn.FileError, match=r"a\.png cannot be written: No space left on device") as raised:
        write(path)
    assert isinstance(raised.value, OSError) and path.read_bytes() == b"old" and names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("units", [20, 300])  # less than a buffer, and more
def test_a_disk_that_is_really_full(tmp_path, units):
    """Or a file that is longer than is allowed: a buffer that cannot be emptied is closed nevertheless."""
    resource = pytest.importorskip("resource", reason="limits are set on POSIX systems only")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(nn.FileError, match=r"m\.safetensors cannot be written: File too large"):
            nn.Sequential(nn.Dense(units), input_shape=(30,)).save(tmp_path / "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["m" * 255, "ü" * 127])
def test_names_as_long_as_names_can_be(tmp_path, name):
    save_model(tmp_path / name)
    assert names(tmp_path) == [name]


def test_messages_shorten_long_paths(tmp_path):
    with pytest.raises(nn.FileError, match="cannot be written") as raised:
        save_model(tmp_path / "/".join(["long" * 20] * 40) / "m.safetensors")
    assert len(str(raised.value)) <= 600


def test_checkpoints_follow_links_and_keep_modes(tmp_path):
    run, best = tmp_path / "run", tmp_path / "elsewhere.safetensors"
    run.mkdir()
    best.write_bytes(b"old")
    best.chmod(0o600)
    (run / "best.safetensors").symlink_to(best)
    trainer = nn.Trainer(nn.Sequential(nn.Dense(2), input_shape=(3,)), nn.CrossEntropy(), nn.SGD(0.1))
    trainer.fit((np.ones((4, 3), "float32"), np.zeros(4, int)), checkpoint=run, progress=False)
    assert (run / "best.safetensors").is_symlink() and mode_of(best) == 0o600
    assert np.array_equal(nn.load(best).params, trainer.model.params)


@pytest.mark.parametrize("name", ["step-000000001.safetensors", "best.safetensors"])
def test_what_a_killed_process_left_half_written_is_removed(tmp_path, name, monkeypatch):
    made = []

    def killed(temporary, target):
        made.append(Path(temporary))
        raise OSError

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(nn.FileError):
        save_model(tmp_path / name)
    made[0].write_bytes(b"half")
    assert checkpoint.Folder(tmp_path, keep=1).load() is None and names(tmp_path) == []
