"""Where data sets are stored; downloading a file and unpacking an archive, checked before they are renamed; reading."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnlite.atomic import replacing
from nnlite.errors import DataError, DownloadError

_CHUNK = 1 << 16
_TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """`NNLITE_DATA` if it is set, else nnlite's part of the platform's cache folder."""
    if given := os.environ.get("NNLITE_DATA"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nnlite"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nnlite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnlite"


def data_folder(root: str | os.PathLike[str] | None) -> Path:
    """The folder `root`, or `cache_folder()` for None."""
    return cache_folder() if root is None else Path(root).expanduser()


def read(path: Path) -> bytes:
    """The bytes of a file; DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_checked(path: Path, md5: str) -> bytes:
    """The bytes of a file whose md5 must be the expected one, else DataError."""
    import hashlib

    data = read(path)
    check_md5(str(path), md5, hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data))
    return data


def check_md5(name: str, expected: str, found: str, size: int) -> None:
    """DataError, saying both, unless the md5 found is the expected one."""
    if found != expected:
        raise DataError(
            f"{name} is damaged, incomplete or not the original: expected md5 {expected}, found {found} ({size:,} bytes)"
        )


def gunzip(data: bytes, name: str, limit: int) -> bytes:
    """Unpack, never to more than `limit` bytes; DataError for damaged or truncated data and for more than that."""
    import zlib

    unpacker = zlib.decompressobj(wbits=31)  # 31: a gzip header, and its checksum at the end
    try:
        unpacked = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise DataError(f"{name}: damaged gzip data: {error}") from error
    if len(unpacked) > limit:
        raise DataError(f"{name}: unpacks to more than the {limit:,} bytes that it should have")
    if not unpacker.eof or unpacker.unused_data:
        raise DataError(f"{name}: damaged gzip data: {'bytes after its end' if unpacker.eof else 'truncated'}")
    return unpacked


def fetch(target: Path, urls: Sequence[str], md5: str, allowed: bool, looked_for: Sequence[Path] = ()) -> None:
    """Download the file `target` from the first url that gives the right bytes, with a progress bar.

    looked_for: other accepted paths, for the message of the DownloadError if no url works or none is allowed.
    """
    from http.client import HTTPException

    problems = []
    for url in urls if allowed else ():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return _fetch(url, target, md5)
        except (OSError, HTTPException, ValueError) as error:
            problems.append(f"{url}: {error}")
    tried = "".join(f"\n  tried {problem}" for problem in problems) or f"\n  not tried, download=False: {', '.join(urls)}"
    raise DownloadError(
        f"{target.name} was neither found nor downloaded."
        f"\n  looked for {', '.join(str(path) for path in (*looked_for, target))}{tried}"
        f"\nPut {target.name} into {target.parent}, or set NNLITE_DATA (or root=) to the folder that holds the data sets."
    )


def extract(archive: Path, folder: Path, names: Sequence[str]) -> None:
    """Write the files `folder.name/name` of a tar archive to `folder/name`; its other files are ignored.

    Raises DataError for a damaged archive and for one that lacks a file; `folder` is then not made.
    """
    import shutil
    import tarfile

    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process with the same id
    try:
        partial.mkdir(parents=True)
        with tarfile.open(archive, "r|*") as tar:
            _extract_members(tar, {f"{folder.name}/{name}": partial / name for name in names})
        partial.rename(folder)
    except Exception as error:  # damaged bytes make tarfile raise many types, TypeError among them
        raise DataError(f"{archive} cannot be unpacked into {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract_members(tar: Any, wanted: dict[str, Path]) -> None:
    """One pass over the archive: seeking back in a compressed stream would unpack it from the start again."""
    import shutil
    import tarfile

    for member in tar:
        if member.isreg() and member.name in wanted:
            with wanted.pop(member.name).open("wb") as file:
                shutil.copyfileobj(tar.extractfile(member), file, _CHUNK)
    if wanted:
        raise tarfile.TarError(f"it lacks {', '.join(wanted)}")


def _fetch(url: str, target: Path, md5: str) -> None:
    """Download with a progress bar, and check the md5."""
    import hashlib
    from urllib.request import urlopen

    from tqdm.auto import tqdm

    digest = hashlib.md5(usedforsecurity=False)
    options = {"desc": target.name, "unit": "B", "unit_scale": True, "disable": sys.stderr is None}  # None: in a service
    with replacing(target) as file, urlopen(url, timeout=_TIMEOUT) as response:
        length = response.headers.get("Content-Length", "")
        with tqdm(total=int(length) if length.isdigit() else None, **options) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
        check_md5("what it sent", md5, digest.hexdigest(), file.tell())
