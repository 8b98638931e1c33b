"""Finds the compiled kernels or compiles them.

A wheel has libraries of its own, one for each dtype and kind of processor. Elsewhere there is one for each C file and dtype, in
the user's cache folder.
"""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

from nnlite.errors import DeviceError

FOLDER = Path(__file__).parent
PREBUILT = FOLDER / "prebuilt"  # in a wheel: see checks/dist.py
FLAGS = "-std=gnu11 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden -shared -fPIC"
SOURCES = sorted(path.stem for path in FOLDER.glob("*.c"))
OF_BYTES = {"augment"}  # whose kernels copy values of any dtype: they are those for "uint8"
_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"
PROCESSORS = {  # those that wheels have libraries for, the best first: (machine, what a processor says that it has)
    "x86-64-v4": ("x86_64", f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl"),
    "x86-64-v3": ("x86_64", _V3),
    "aarch64": ("aarch64", ""),
}
DTYPES = {"float32": (), "float64": ("-DDOUBLE",), "uint8": ()}
_TYPES = {"double": ctypes.c_double, "float": ctypes.c_float}  # of all others ctypes converts a void* fastest
_MOST_LINES = 20  # of a compiler's message


def load(dtype: str) -> dict[str, Any]:
    """All functions for arrays of this dtype by name, compiled first where no library is found.

    Raises DeviceError with the compiler's message, or saying what is missing.
    """
    functions: dict[str, Any] = {}
    for source, path in _libraries(dtype).items():
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeviceError(
                f"the kernels do not load, python -m nnlite.kernels --clear deletes those that were compiled here: {error}"
            ) from None
        for name, kinds in signatures(source, dtype).items():
            function = getattr(library, name)
            function.argtypes, function.restype = kinds, None
            functions[name] = function
    return functions


def files(dtype: str) -> list[str]:
    """The C files with kernels for this dtype."""
    return [source for source in SOURCES if (source in OF_BYTES) == (dtype == "uint8")]


def signatures(source: str, dtype: str) -> dict[str, list[Any]]:
    """The ctypes of the parameters of each kernel in a file."""
    text = _includes(source)
    if prefix := re.search(r"^#define NAME\(function\) (\w+)##function", text, re.MULTILINE):
        text = re.sub(r"NAME\((\w+)\)", rf"{prefix[1]}\1", text)
    real = ctypes.c_float if dtype == "float32" else ctypes.c_double
    found: dict[str, list[Any]] = {}
    for name, parameters in re.findall(r"^KERNEL (\w+)\(([^)]*)\)", text, re.MULTILINE):
        kinds = [" ".join(re.sub(r"\w+$", "", p.strip()).split()) for p in parameters.split(",")]
        found[name] = [real if kind == "REAL" else _TYPES.get(kind, ctypes.c_void_p) for kind in kinds]
    return found


@cache
def _includes(source: str) -> str:
    """The text of a C file with that of the headers that it includes, each once."""
    seen = dict[str, str]()

    def read(name: str) -> None:
        if name not in seen:
            seen[name] = (FOLDER / name).read_text()
            for header in re.findall(r'^#include "(.*)"', seen[name], re.MULTILINE):
                read(header)

    read(f"{source}.c")
    return "\n".join(seen.values())


def _libraries(dtype: str) -> dict[str, Path]:
    """The library of each C file: a wheel's, else one of the cache, compiled where there is none."""
    if library := prebuilt(dtype):
        return dict.fromkeys(files(dtype), library)
    compiler = find_compiler()
    folder = cache_folder()
    paths = {source: folder / f"{source}-{dtype}-{_key(source, dtype, compiler)}.so" for source in files(dtype)}
    missing = [source for source, path in paths.items() if not _is_trusted(path)]
    if missing:
        _compile(missing, paths, dtype, compiler)
    return paths


def prebuilt(dtype: str) -> Path | None:
    """The library that a wheel has for this processor, if it has one.

    It must be of the C files and flags that are here; where there are flags for another build, none is used.
    """
    if _own_flags():
        return None
    machine, features = platform.machine(), set(processor().split())
    names = [name for name, (of, needed) in PROCESSORS.items() if of == machine and features.issuperset(needed.split())]
    paths = (PREBUILT / name / prebuilt_name(dtype) for name in names)
    return next((path for path in paths if path.exists()), None)


def prebuilt_name(dtype: str) -> str:
    """The file of a library with all kernels for this dtype, of these C files and flags."""
    return f"{dtype}-{_digest(*map(_includes, files(dtype)), FLAGS, dtype)}.so"


def _own_flags() -> list[str]:
    """The flags of `NNLITE_CFLAGS`, which come behind ours: "-march=x86-64-v3 -DVB=16", or "-mcpu=..." of Clang."""
    return shlex.split(os.environ.get("NNLITE_CFLAGS", ""))


def find_compiler() -> list[str]:
    """The command of the C compiler: `CC`, else cc, gcc or clang. Raises DeviceError where there is none.

    Where the kernels have never run, on systems other than Linux, only `CC` is taken.
    """
    given = shlex.split(os.environ.get("CC", ""))
    if given:
        return given
    if sys.platform != "linux":
        raise DeviceError("the C kernels are tried on Linux only: set CC to a compiler to use them here")
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    raise DeviceError("no C compiler was found: install gcc or clang, or set CC")


@cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"the C compiler {shlex.join(compiler)} does not run: {error}") from None


@cache
def processor() -> str:
    """What -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return " ".join((platform.machine(), platform.processor()))
    names = "vendor_id|cpu family|model|model name|flags|Features|CPU implementer|CPU part"
    return "\n".join((platform.machine(), *re.findall(rf"^(?:{names})\s*:.*$", text.split("\n\n")[0], re.M)))


def _key(source: str, dtype: str, compiler: list[str]) -> str:
    parts = _includes(source), FLAGS, *_own_flags(), dtype, *compiler, _version(tuple(compiler)), processor()
    return _digest(*parts)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def origin() -> str:
    """Where the kernels come from, in words."""
    if library := prebuilt("float32"):
        return f"prebuilt for {library.parent.name}, in {library.parent}"
    compiler = find_compiler()
    return f"compiled by {_version(tuple(compiler)).splitlines()[0]}, in {cache_folder()}"


def clear() -> int:
    """Delete what was compiled before; returns the number of files."""
    files = list(cache_folder().glob("*.so"))
    for path in files:
        path.unlink()
    return len(files)


@cache
def cache_folder() -> Path:
    """The folder of compiled kernels: `NNLITE_CACHE`, else nnlite in the user's cache folder.

    Only a folder that this user owns and nobody else can write to is used, because its files are executed; otherwise it
    is a temporary one of this process.
    """
    given = os.environ.get("NNLITE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = (Path(given) if given else home / "nnlite") / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="nnlite-")
    _kept.append(folder)  # until the process ends
    return Path(folder.name)


_kept: list[Any] = []


def _is_own(path: Path) -> bool:
    """Whether this user owns it and nobody else can write to it."""
    status = path.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _is_trusted(path: Path) -> bool:
    return path.is_file() and _is_own(path)


def _compile(sources: list[str], paths: dict[str, Path], dtype: str, compiler: list[str]) -> None:
    """Compile these files, on all cores; each library appears whole under its name."""
    print(f"nnlite: compiling kernels for {dtype} with {shlex.join(compiler)}, once", file=sys.stderr, flush=True)
    waiting, running = list(sources), dict[str, tuple[subprocess.Popen[bytes], IO[bytes], str]]()
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                source = waiting.pop()
                handle, temporary = tempfile.mkstemp(suffix=".so", dir=paths[source].parent)
                os.close(handle)
                flags = *FLAGS.split(), *_own_flags(), *DTYPES[dtype]
                command = [*compiler, *flags, str(FOLDER / f"{source}.c"), "-o", temporary]
                messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it is read when the compiler is done)
                running[source] = subprocess.Popen(command, stdout=messages, stderr=messages), messages, temporary
            for source, (process, messages, temporary) in list(running.items()):
                if process.poll() is not None:
                    del running[source]
                    with messages:
                        _place(process.returncode, messages, temporary, paths[source])
            time.sleep(0.01)
    finally:
        for process, messages, temporary in running.values():
            process.kill()
            process.wait()
            messages.close()
            Path(temporary).unlink(missing_ok=True)


def _place(status: int, messages: IO[bytes], temporary: str, target: Path) -> None:
    """Give a library that was compiled its name. Raises DeviceError with the compiler's messages if it failed."""
    if status:
        Path(temporary).unlink(missing_ok=True)
        messages.seek(0)
        message = messages.read().decode(errors="replace").splitlines()
        lines = [line for line in message if "error" in line] or message
        raise DeviceError("the C compiler failed: " + "\n".join(lines[:_MOST_LINES]))
    os.chmod(temporary, 0o700)
    os.replace(temporary, target)
