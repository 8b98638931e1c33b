"""Arrays and kernels: the ground floor. It knows no layer and no model."""

from nnlite.backend.base import Backend
from nnlite.backend.blas import single_threaded_blas
from nnlite.backend.memory import Memory
from nnlite.backend.numpy import get_numpy_backend
from nnlite.backend.threads import ReadersWriterLock, Turnstile, get_num_threads, set_num_threads
from nnlite.backend.window import Array, Padding, Pair, Window
from nnlite.backend.winograd import set_conv_algorithm
from nnlite.errors import DeviceError

__all__ = [
    "Array",
    "Backend",
    "Memory",
    "Padding",
    "Pair",
    "ReadersWriterLock",
    "Turnstile",
    "Window",
    "backend_of",
    "get_backend",
    "get_num_threads",
    "set_conv_algorithm",
    "set_num_threads",
    "single_threaded_blas",
]


def get_backend(device: str) -> Backend:
    """The backend of "cpu" or "cuda"; raises DeviceError for other names and for a device that is not there."""
    if device == "cpu":
        return get_numpy_backend()
    if device == "cuda":
        from nnlite.backend.cupy import get_cupy_backend

        return get_cupy_backend()
    raise DeviceError(f'there is no device {device!r}: use "cpu" or "cuda"')


def backend_of(array: object) -> Backend:
    """The backend of the device that an array lies on."""
    return get_backend("cuda" if hasattr(array, "__cuda_array_interface__") else "cpu")
