"""`make sanitize`: the tests of the C kernels, and `checks/bits.py`, under AddressSanitizer and UBSan at every vector width.

usage: python checks/sanitize.py [--widths 16 32 64] [--tests PATH ...]

Arrays have exactly the size that was asked for and are full of NaN, so that a kernel that reads or writes one value too many,
or one that nobody wrote, is seen.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from nnlite.backend.cpu.host import Host
from nnlite.backend.memory import Buffers, Pool

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (16, 32, 64)
TESTS = ["tests/native", "--ignore=tests/native/test_kernels_choice.py"]  # which compiles in other ways
FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
BITS = "import sanitize, bits; sanitize.exact(); bits.DTYPES = {}; bits.main(['layers', 'operations'])"


def exact():
    """Give each array memory of its own: aligned as NumPy does, no value longer."""

    def empty(self, size, dtype):
        array = np.empty(size, dtype)
        array.view(np.uint8)[...] = 0xFF  # NaN
        return array

    def at_least(self, size, name, dtype):
        self._views.clear()
        flat = self._arrays[name] = self.backend.empty(size, dtype)
        return flat

    Host.empty, Buffers._at_least = empty, at_least
    Pool.take = lambda self, size, dtype: self.backend.empty(size, dtype)


def pytest_configure():
    """As a plugin of pytest."""
    exact()


def library(name):
    """The path of one of GCC's libraries."""
    return subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def environment(width, cache):
    return {
        **os.environ,
        "CC": "gcc",
        "NNLITE_CFLAGS": f"{FLAGS} -DVB={width}",
        "NNLITE_CACHE": cache,
        "NNLITE_KERNELS": "native",
        "LD_PRELOAD": library("libasan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "checks")]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS)
    parser.add_argument("--tests", nargs="*", default=TESTS)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "float64"], help="of checks/bits.py")
    args = parser.parse_args()
    for width in args.widths:
        with tempfile.TemporaryDirectory(prefix="nnlite-sanitize-") as cache:
            variables = {"env": environment(width, cache), "cwd": ROOT}
            bits = [sys.executable, "-c", BITS.format(args.dtypes)]
            tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", "-p", "sanitize", *args.tests]
            failed = subprocess.run(bits, stdout=subprocess.DEVNULL, **variables).returncode
            if failed or (args.tests and subprocess.run(tests, **variables).returncode):
                raise SystemExit(f"vectors of {width} bytes: failed")
        print(f"vectors of {width} bytes: nothing found", flush=True)


if __name__ == "__main__":
    main()
