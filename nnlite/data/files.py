"""Where data sets lie, how they are fetched, and that their bytes are the right ones."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from nnlite.errors import DataError, DownloadError

_CHUNK = 1 << 16


def cache_folder() -> Path:
    """`NNLITE_DATA` where it is set, else nnlite's part of the platform's cache folder."""
    if given := os.environ.get("NNLITE_DATA"):
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "nnlite"


def read_checked(path: Path, md5: str) -> bytes:
    """The bytes of a file whose md5 must be the expected one, else DataError."""
    import hashlib

    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{path} is damaged or not the original: expected md5 {md5}, found {found} ({len(data)} bytes); "
            "delete it to have it fetched again"
        )
    return data


def gunzip(data: bytes, name: str, limit: int) -> bytes:
    """Unpack, at most `limit` bytes; DataError for damaged data and for more."""
    import gzip
    import io
    import zlib

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip data: {error}") from error
    if len(unpacked) > limit:
        raise DataError(f"{name}: unpacks to more than the {limit} bytes that it should have")
    return unpacked


def download(urls: Sequence[str], target: Path, md5: str) -> Path:
    """Fetch `target` from the first url that gives the right bytes, with a progress bar."""
    problems = []
    for url in urls:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return _fetch(url, target, md5)
        except (OSError, DataError) as error:
            problems.append(f"{url}: {error}")
    raise DownloadError(
        f"could not download {target.name}. Tried:\n  " + "\n  ".join(problems) + f"\n"
        f"Put the file into {target.parent} yourself, or set NNLITE_DATA (or root=) to the folder that holds the data."
    )


def extract(archive: Path, members: dict[str, Path]) -> None:
    """Write just these members of a tar file to these paths; whatever else it holds is ignored."""
    import tarfile
    import zlib

    try:
        with tarfile.open(archive) as tar:
            for name, path in members.items():
                source = tar.extractfile(name)
                if source is None:
                    raise DataError(f"{archive}: {name} is no file")
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(source, path, total=None)
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: damaged archive: {error}") from error


def _fetch(url: str, target: Path, md5: str) -> Path:
    from urllib.request import urlopen

    with urlopen(url, timeout=30) as response:
        length = response.headers.get("Content-Length")
        temporary = _write(response, target.with_name(target.name + ".part"), total=int(length) if length else None)
    try:
        read_checked(temporary, md5)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _write(source: IO[bytes], path: Path, total: int | None) -> Path:
    import tempfile

    from tqdm.auto import tqdm

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file, tqdm(total=total, desc=path.name, unit="B", unit_scale=True) as bar:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
