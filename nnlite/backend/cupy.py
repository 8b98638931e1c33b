"""A CUDA device through CuPy: every operation in plain `xp`. Importing this module does not import CuPy."""

import functools
from typing import Any

from nnlite.backend.base import Backend
from nnlite.backend.window import Array
from nnlite.errors import DataError, DeviceError


class CupyBackend(Backend):
    """Arrays on the current CUDA device. There is one shard: the batch."""

    device = "cuda"

    def __init__(self) -> None:
        self.xp = _import_cupy()

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """A real numeric array on the device; host data is moved."""
        array: Array = self.xp.asarray(x, dtype)
        if array.dtype.kind not in "biuf":
            raise DataError(f"expects real numbers, got an array of {array.dtype}")
        return array

    def to_host(self, x: Array) -> Any:
        """A NumPy copy of `x`."""
        return self.xp.asnumpy(x)

    def erf(self, x: Array) -> Array:
        """The error function."""
        from cupyx.scipy.special import erf

        result: Array = erf(x)
        return result

    def __reduce__(self) -> Any:
        return get_cupy_backend, ()


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError("device 'cuda' needs CuPy: pip install 'nnlite[cuda12]' or 'nnlite[cuda13]'") from error
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda': CuPy is installed, but there is no usable CUDA driver or device")
    return cupy


@functools.cache
def get_cupy_backend() -> CupyBackend:
    """The one CUDA backend; raises DeviceError where there is none."""
    return CupyBackend()
