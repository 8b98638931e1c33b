"""Atomic writing of files: a temporary file beside the target replaces it when it is complete.

Logs are appended to instead: `append`. The same paths are refused by both.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO

from nnlite.errors import FileError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}  # the others are devices
_NAME = 50  # characters of a name that its temporary file has, too: the whole may be as long as names can be
_SHOWN = 200  # characters of a path in a message


def write_whole(path: str | PathLike[str], data: bytes) -> None:
    """Write a file, as `replacing` does."""
    with replacing(path) as file, _reported(Path(path)):
        file.write(data)


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` when the block ends; after an error, the old file is unchanged.

    As with `open(path, "wb")`, links are followed, and an existing file keeps its mode, and its owner and group where that is
    permitted. Raises FileError, naming `path`, before anything is written for all but a regular file, for one that is
    write-protected and for a missing folder, and later if the system refuses.
    """
    path, target = Path(path), Path(os.path.realpath(path))
    with _reported(path):
        before = _status(path)
        temporary, handle = _open_beside(target, 0o666 if before is None else 0o600)  # minus the umask, as for every new file
    file = os.fdopen(handle, "wb")
    try:
        yield file
        with _reported(path):
            file.flush()
            os.fsync(handle)
            file.close()
            if before is not None:
                _keep_owner_and_mode(before, temporary)
            os.replace(temporary, target)
            _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):  # flushing its buffer may fail
            file.close()
        temporary.unlink(missing_ok=True)
        raise


def append(path: str | PathLike[str], data: bytes) -> None:
    """Append to a file. Raises FileError as `replacing` does."""
    path = Path(path)
    with _reported(path):
        _status(path)
        with path.open("ab") as file:
            file.write(data)


def check_writable(path: str | PathLike[str]) -> None:
    """Raise FileError, as `replacing` does, if a file cannot be written; nothing is changed."""
    path = Path(path)
    with _reported(path):
        _status(path)
        temporary, handle = _open_beside(Path(os.path.realpath(path)), 0o600)
        os.close(handle)
        temporary.unlink()


def _open_beside(target: Path, mode: int) -> tuple[Path, int]:
    """A new file in the same folder, and its handle."""
    temporary = target.with_name(f".{target.name[:_NAME]}.{secrets.token_hex(8)}")
    return temporary, os.open(temporary, _NEW, mode)


def _status(path: Path) -> os.stat_result | None:
    """The status of an existing file, None if there is none; raises FileError unless it may be replaced."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise FileError(f"{shown(path)} is {kind}: only a regular file can be written, or one that is not there yet")
    if not os.access(path, os.W_OK):
        raise FileError(f"{shown(path)} is write-protected")
    return status


def _keep_owner_and_mode(before: os.stat_result, path: Path) -> None:
    if hasattr(os, "chown"):
        for user, group in ((-1, before.st_gid), (before.st_uid, -1)):
            with suppress(OSError):  # only the superuser may change the owner
                os.chown(path, user, group)
    os.chmod(path, stat.S_IMODE(before.st_mode))


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the new name survives a power cut; not every system can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Raise system errors as FileError with the user's path, not that of the temporary file."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        folder = Path(os.path.realpath(path)).parent
        problem = error.strerror or error if folder.exists() else f"there is no folder {shown(folder)}"
        raise FileError(f"{shown(path)} cannot be written: {problem}") from error


def shown(path: str | PathLike[str]) -> str:
    """A path for a message; of a long one only the end."""
    text = os.fspath(path)
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
