"""What `make processors` compares, `make sanitize` in short, and the places of `make kernels`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bits
import kernel_mutants
import native_mutants
import processors
import pytest
import sanitize

import nnlite as nn
from nnlite.backend.native.operations import kernels


@pytest.fixture(scope="module")
def called(native):
    """All lines of `checks/bits.py` for kernels, and the kernels that they did not call."""
    nn.set_kernels("native")
    kernels.cache_clear()
    uncalled = bits.watched()
    yield [*bits.layers(), *bits.operations()], uncalled
    kernels.cache_clear()
    nn.set_kernels("auto")


def test_every_kernel_is_compared(called):
    assert not called[1]


def test_names_are_unique(called):
    names = [name for name, _ in called[0]]
    assert len(names) == len(set(names))


def test_a_hash_sees_every_bit_but_not_those_of_a_nan():
    a = bits.numbers((3, 5), "float32")
    other = a.copy()
    other.view("uint32")[2, 4] ^= 1
    assert bits.digest(a) != bits.digest(other) and bits.digest(a) != bits.digest(a.ravel())
    a[0] = float("nan")
    other = a.copy()
    other.view("uint32")[0] ^= 1 << 31
    assert bits.digest(a) == bits.digest(other) != bits.digest(a[1:])


def test_what_differs_is_named():
    first = {"a": "1", "b": "2"}
    assert processors.differing({"gcc": first, "clang": dict(first)}) == {}
    others = {"gcc": first, "clang": {"a": "1", "b": "3"}, "arm": {"a": "1", "c": "2"}}
    assert processors.differing(others) == {"b": ["clang", "arm"], "c": ["arm"]}
    builds = "gcc, AVX2", "Clang, AVX2"
    lines = processors.report(dict.fromkeys(builds, first), dict.fromkeys(builds, 0.0), ["gcc, AVX-512"], "a machine")
    assert lines[-1] == "2 hashes, 2 builds, 0 differ" and any("gcc, AVX-512 | left out" in line for line in lines)


def test_no_kernel_leaves_its_arrays(native):
    """In float32 and with the smallest vectors; `make sanitize` has all others."""
    if "-fsanitize" in os.environ.get("NNLITE_CFLAGS", ""):
        pytest.skip("this is `make sanitize`")
    if not shutil.which("gcc") or not Path(sanitize.library("libasan.so")).is_absolute():
        pytest.skip("no AddressSanitizer of GCC here")
    command = [sys.executable, sanitize.__file__, "--widths", "16", "--dtypes", "float32", "--tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout == "vectors of 16 bytes: nothing found\n", done.stderr[-3000:]


@pytest.mark.parametrize(("module", "folder"), [(native_mutants, "native"), (kernel_mutants, "cuda")])
def test_each_planted_bug_has_its_place(module, folder):
    sources = bits.ROOT / "nnlite" / "backend" / folder
    missing = [what for what, file, old, _, place in module.MUTANTS if (sources / file).read_text().count(old) <= place]
    assert not missing
