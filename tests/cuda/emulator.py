"""The kernels of nnlite/backend/cuda, compiled by g++ against emulate.h and run on NumPy arrays."""

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np

EMULATE = Path(__file__).with_name("emulate.h")
COMPILER = shutil.which("g++")
GUARD = 256  # bytes before and behind every buffer, which no kernel may touch
PATTERN = 0xA5
_one_at_a_time = threading.Lock()  # emulate.h has one grid of threads
_folder = tempfile.TemporaryDirectory(prefix="nnlite-kernels-")


class KernelFailure(Exception):
    """A kernel did what a GPU would not forgive."""


def guarded(shape, dtype):
    """A new array, full of NaN (or of ones bit by bit), between two guard zones."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + 2 * GUARD, PATTERN, np.uint8)
    raw[GUARD : GUARD + size] = 0xFF
    return raw[GUARD : GUARD + size].view(dtype).reshape(shape)


def root(array):
    """The whole memory that an array lies in."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def check_guards(array):
    raw = root(array)
    if raw.dtype == np.uint8 and raw.ndim == 1 and raw.size >= 2 * GUARD:
        zones = np.concatenate([raw[:GUARD], raw[-GUARD:]])
        if not (zones == PATTERN).all():
            raise KernelFailure("a kernel wrote outside an array")


class Module:
    """One compiled source text."""

    def __init__(self, source, options=()):
        self.source = source
        defines = " ".join(option for option in options if option.startswith("-D"))
        self.library = ctypes.CDLL(_build(source, defines))
        self.seed = 0

    def launch(self, name, grid, block, args):
        """Run a kernel; `args`: NumPy arrays and scalars, in the order of its parameters."""
        if block[0] * block[1] * block[2] > 1024 or not all(n > 0 for n in (*grid, *block)):
            raise KernelFailure(f"{name}: no GPU runs a grid {grid} of blocks {block}")
        cells = [_cell(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(args))(*(cell.ctypes.data for cell in cells))
        run = getattr(self.library, f"run_{name}")
        run.restype = ctypes.c_char_p
        self.seed += 1
        with _one_at_a_time:
            error = run((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_ulonglong(self.seed), pointers)
        if error:
            raise KernelFailure(f"{name}: {error.decode()}")
        for arg in args:
            if isinstance(arg, np.ndarray):
                check_guards(arg)


def _cell(arg):
    """The memory that holds one argument."""
    return np.array([arg.ctypes.data], np.uint64) if isinstance(arg, np.ndarray) else np.array([arg], arg.dtype)


@cache
def _build(source, defines):
    name = hashlib.sha256((source + defines).encode()).hexdigest()[:16]
    text, library = (Path(_folder.name) / f"{name}{end}" for end in (".cpp", ".so"))
    fibers = int("__syncthreads" in source or "__shfl" in source)
    text.write_text(f'#define FIBERS {fibers}\n#include "{EMULATE}"\n{source}\n{_entries(source)}')
    command = [COMPILER, "-O1", "-std=c++17", "-w", "-shared", "-fPIC", "-ffp-contract=off"]
    command += ["-fno-gnu-unique", "-Wl,-Bsymbolic", *defines.split()]  # libraries of one name must not share statics
    done = subprocess.run([*command, str(text), "-o", str(library)], capture_output=True, text=True)
    if done.returncode:
        raise KernelFailure(done.stderr)
    return str(library)


def _entries(source):
    """A C function for each kernel that unpacks its arguments."""
    lines = []
    for name, parameters in re.findall(r"^KERNEL (\w+)\(([^)]*)\)", source, re.MULTILINE):
        kinds = [re.sub(r"\w+$", "", " ".join(p.split())).strip() for p in parameters.split(",")]
        values = ", ".join(f"*({kind}*)args[{i}]" for i, kind in enumerate(kinds))
        lines.append(
            f'extern "C" const char* run_{name}(unsigned* grid, unsigned* block, unsigned long long seed, void** args)\n'
            f"{{ return run_grid(grid, block, seed, [&] {{ {name}({values}); }}); }}"
        )
    return "\n".join(lines)
