"""The device of the tests in this folder: pretended, or, with NNLITE_TEST_GPU=1, real."""

import os

import emulator
import fake_cupy
import pytest

from nnlite.backend.cuda.cupy import get_cupy_backend


@pytest.fixture
def cuda(monkeypatch):
    """`model.to("cuda")` works: on arrays that refuse what CuPy refuses, and kernels that g++ compiled; or on a GPU."""
    if os.environ.get("NNLITE_TEST_GPU"):
        import cupy

        yield cupy
        return
    if emulator.COMPILER is None:
        pytest.skip("no g++ here to compile the kernels with")
    yield fake_cupy.install(monkeypatch)
    get_cupy_backend.cache_clear()


@pytest.fixture
def pretended(cuda):
    """Only on the pretended device: for what a test looks into or bends."""
    if os.environ.get("NNLITE_TEST_GPU"):
        pytest.skip("a real device cannot be bent")
    return cuda
