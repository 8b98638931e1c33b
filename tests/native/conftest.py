"""What all tests of the C kernels share."""

import os

import numpy as np
import pytest

from nnlite.backend.native import loader
from nnlite.backend.native.operations import kernels


@pytest.fixture
def same_bits(native, monkeypatch):
    """Whether the arrays that `work()` returns are the same with vectors of 16, 32 and 64 bytes, for kernels of these files."""

    if "-DVB" in os.environ.get("NNLITE_CFLAGS", ""):
        pytest.skip("NNLITE_CFLAGS has the vectors' width")

    def compare(work, *sources):
        flags, results = loader.FLAGS, []
        monkeypatch.setattr(loader, "SOURCES", list(sources))
        for size in (16, 32, 64):
            monkeypatch.setattr(loader, "FLAGS", f"{flags} -DVB={size}")
            kernels.cache_clear()
            results.append([array.tobytes() for array in work()])
        assert results[0] and all(results[0])
        return results[0] == results[1] == results[2]

    yield compare
    kernels.cache_clear()


@pytest.fixture(scope="session")
def displaced():
    """A function that makes a read-only copy which starts one byte behind its place: not even its values are aligned."""

    def copy(a):
        raw = np.empty(a.nbytes + 1, np.uint8)
        values = raw[1:].view(a.dtype).reshape(a.shape)
        values[...] = a
        values.flags.writeable = False
        return values

    return copy
