"""Where data sets are stored, and checks of their bytes."""

import os
import sys
from pathlib import Path

from nnlite.errors import DataError


def cache_folder() -> Path:
    """`NNLITE_DATA` if it is set, else nnlite's part of the platform's cache folder."""
    if given := os.environ.get("NNLITE_DATA"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nnlite"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nnlite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnlite"


def data_folder(root: "str | os.PathLike[str] | None") -> Path:
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
