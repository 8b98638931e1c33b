"""Arrays and kernels: the ground floor. It knows no layer and no model."""

from typing import Literal

from nnlite.arguments import shortened
from nnlite.backend.arrays import by_position, host_array, is_array, length
from nnlite.backend.base import Backend
from nnlite.backend.choice import cpu_backend, set_kernels, with_chosen_kernels
from nnlite.backend.cpu.blas import single_threaded_blas
from nnlite.backend.cpu.numpy import get_numpy_backend
from nnlite.backend.cpu.threads import (
    ReadersWriterLock,
    Turnstile,
    get_num_threads,
    set_num_threads,
    share_cores,
    usable_cores,
)
from nnlite.backend.cpu.winograd import set_conv_algorithm
from nnlite.backend.frames import FRAME
from nnlite.backend.memory import Memory
from nnlite.backend.tally import Tally
from nnlite.backend.window import Array, Padding, Pair, Window
from nnlite.errors import DeviceError

__all__ = [
    "FRAME",
    "Array",
    "Backend",
    "Memory",
    "Padding",
    "Pair",
    "ReadersWriterLock",
    "Tally",
    "Turnstile",
    "Window",
    "backend_of",
    "by_position",
    "get_backend",
    "get_num_threads",
    "get_numpy_backend",
    "host_array",
    "is_array",
    "length",
    "set_conv_algorithm",
    "set_kernels",
    "set_num_threads",
    "share_cores",
    "single_threaded_blas",
    "usable_cores",
    "with_chosen_kernels",
]


def get_backend(device: str, precision: Literal["float32", "tf32"] = "float32") -> Backend:
    """The backend of "cpu" or "cuda"; raises DeviceError for other names and for a device that is missing.

    precision: of float32 products on "cuda"; "tf32" is faster and rounds factors to 10 bits. The CPU has only "float32".
    """
    if device == "cpu":
        if precision != "float32":
            raise DeviceError(f'device "cpu" computes in "float32", not in {shortened(precision)}')
        return cpu_backend()
    if device == "cuda":
        from nnlite.backend.cuda.cupy import get_cupy_backend

        return get_cupy_backend(precision)
    raise DeviceError(f'there is no device {shortened(device)}: use "cpu" or "cuda"')


def backend_of(array: object) -> Backend:
    """The backend of the device that holds an array."""
    return get_backend("cuda") if hasattr(array, "__cuda_array_interface__") else cpu_backend()
