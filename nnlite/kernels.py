"""The C kernels as a command: `python -m nnlite.kernels` compiles and tests them and says what is used.

python -m nnlite.kernels            compile what is missing, compare with NumPy, print what `nn.set_kernels("auto")` takes
python -m nnlite.kernels --clear    delete what was compiled before
"""

import argparse
import math
import sys
import time

import numpy as np

from nnlite.backend import FRAME, Array, Memory, Window, get_numpy_backend
from nnlite.backend.base import Backend
from nnlite.backend.native import loader
from nnlite.backend.native.backend import get_native_backend
from nnlite.backend.native.operations import kernels
from nnlite.errors import DeviceError

_TOLERANCE = 1000  # roundings
_SHAPES = ((9, 11, 5), 7), ((8, 8, 32), 48)  # of images, and their filters


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 if there are no kernels or a result is wrong."""
    parser = argparse.ArgumentParser("python -m nnlite.kernels", description="Compile and test the C kernels.")
    parser.add_argument("--clear", action="store_true", help="delete what was compiled before, and do nothing else")
    if parser.parse_args(arguments).clear:
        print(f"deleted {loader.clear()} files of {loader.cache_folder()}")
        return 0
    try:
        for dtype in loader.DTYPES:
            start = time.perf_counter()
            kernels(np.dtype(dtype))
            worst = _difference_of_pictures() if dtype == "uint8" else max(_error(dtype, *case) for case in _SHAPES)
            good = worst < _TOLERANCE
            print(f"{dtype}: {'as NumPy' if good else 'WRONG'}, largest difference {worst:.0f} roundings, ", end="")
            print(f"{time.perf_counter() - start:.1f} s")
            if not good:
                return 1
    except DeviceError as error:
        print(f"no C kernels, NumPy's are used: {error}")
        return 1
    print(f"in use: {loader.origin()}")
    return 0


def _error(dtype: str, shape: tuple[int, int, int], filters: int) -> float:
    """The largest difference between a convolution and its gradients in C and in NumPy, in roundings."""
    rng, window = np.random.default_rng(0), Window.of(shape, 3, 1, 1)
    shapes = (4, *shape), (filters, 3, 3, shape[2]), (filters,), (4, *window.out_size, filters)
    values = [rng.standard_normal(s).astype(dtype) for s in shapes]
    ours, numpys = (_step(backend, window, *values) for backend in (get_native_backend(), get_numpy_backend()))
    errors = [float(abs(a - b).max() / abs(b).max()) for a, b in zip(ours, numpys, strict=True)]
    return max(errors) / float(np.finfo(dtype).eps)


def _difference_of_pictures() -> float:
    """0 if images, moved, mirrored and partly hidden, are the same in C and in NumPy."""
    rng = np.random.default_rng(0)
    images, frames = rng.integers(0, 256, (64, 9, 11, 3), np.uint8), np.zeros(64, FRAME)
    for name, most in (("top", 4), ("left", 4), ("mirrored", 2), ("end_row", 9), ("end_column", 11)):
        frames[name] = rng.integers(0, most, 64)
    ours, numpys = (backend.framed(images, frames, True) for backend in (get_native_backend(), get_numpy_backend()))
    return 0.0 if np.array_equal(ours, numpys) else math.inf


def _step(backend: Backend, window: Window, a: Array, W: Array, b: Array, delta: Array) -> list[Array]:
    plan, memory = backend.conv_plan(window, len(W), 1, True), Memory(backend)
    filters = plan.prepare(W, b, Memory(backend))
    z = plan.forward(a, filters, memory, None).copy()
    dW, db = np.empty_like(W), np.empty_like(b)
    return [z, plan.gradients(a, delta, filters, memory, dW, db, None), dW, db]


if __name__ == "__main__":
    sys.exit(main())
