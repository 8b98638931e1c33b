"""What the machine can do, measured in the systems' turns. The samples of these are FLOPs.

sgemm, sgemm-1: NumPy's product, on all threads and on one.  product-1: nnlite's.  peak-1: multiply-adds in C (`peak.c`).
"""

import ctypes
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from nnlite.backend.native import loader
from nnlite.backend.native.backend import get_native_backend
from peers_parts.tasks import Built

SGEMM_SIZE, PRODUCT_SIZE = 1024, 512
MULTIPLY_ADDS = 192 * 50_000  # a multiple of `peak.c`'s chains at any width of a vector


def build(limit: str) -> tuple[Built, int]:
    """The measurement, and the FLOPs of one call."""
    if limit == "peak-1":
        return build_peak(), 2 * MULTIPLY_ADDS
    if limit == "product-1":
        return build_product(get_native_backend().matmul, PRODUCT_SIZE), 2 * PRODUCT_SIZE**3
    return build_product(np.matmul, SGEMM_SIZE), 2 * SGEMM_SIZE**3


def build_product(matmul: Any, size: int) -> Built:
    a, b, out = (get_native_backend().empty(size * size, "float32").reshape(size, size) for _ in range(3))
    a[...], b[...] = 1, 1
    return Built({"matmul": lambda i: matmul(a, b, out=out)}, parameters=0)


def build_peak() -> Built:
    multiply_add, sums = compile_peak(), np.empty(16, np.float32)
    return Built({"C": lambda i: multiply_add(0.5, 0.5, MULTIPLY_ADDS, sums.ctypes.data)}, parameters=0)


def compile_peak() -> Any:
    """The function of `peak.c`, compiled as the kernels are."""
    flags = [*loader.FLAGS.split(), *shlex.split(os.environ.get("NNLITE_CFLAGS", "")), f"-I{loader.FOLDER}"]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/peak.so"
        source = Path(__file__).with_name("peak.c")
        subprocess.run([*loader.find_compiler(), *flags, str(source), "-o", library], check=True)
        function = ctypes.CDLL(library).multiply_add
    function.argtypes, function.restype = [ctypes.c_float, ctypes.c_float, ctypes.c_long, ctypes.c_void_p], None
    return function
