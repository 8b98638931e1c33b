"""Whose kernels the CPU uses: those in C where they can be had, else NumPy's."""

import os
import sys

from nnlite.arguments import choice
from nnlite.backend.base import Backend
from nnlite.backend.cpu.numpy import NumpyBackend, get_numpy_backend
from nnlite.backend.native.backend import NativeBackend, get_native_backend
from nnlite.errors import DeviceError


class _Kernels:
    """The choice of `nn.set_kernels`, for models built, copied, loaded or moved afterwards."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.failed = False  # "auto" tries once

    def get(self) -> str:
        """The choice: that of the last call, else of the environment, else "auto"."""
        if self.name is None:
            self.name = choice("NNLITE_KERNELS", os.environ.get("NNLITE_KERNELS", "auto"), "auto", "native", "numpy")
        return self.name


_kernels = _Kernels()


def set_kernels(name: str) -> None:
    """Choose the kernels of the CPU, for models built, copied, loaded or moved afterwards.

    "native": compiled C, with the same bits on every processor; DeviceError where it can be neither found nor compiled.
    "numpy": NumPy and its BLAS.  "auto", the default: native where it can be had, else NumPy. The environment variable
    `NNLITE_KERNELS` sets another default. Raises ValueError for other names.
    """
    _kernels.name = choice("name", name, "auto", "native", "numpy")


def cpu_backend() -> Backend:
    """The backend of the CPU that was chosen."""
    chosen = _kernels.get()
    if chosen == "numpy" or (chosen == "auto" and _kernels.failed):
        return get_numpy_backend()
    try:
        return get_native_backend()
    except DeviceError as error:
        if chosen == "native":
            raise
        _kernels.failed = True
        print(f"nnlite: NumPy's kernels are used: {str(error).splitlines()[0]}", file=sys.stderr)
        return get_numpy_backend()


def with_chosen_kernels(backend: Backend) -> Backend:
    """The CPU's backend that is chosen now in place of an earlier choice; any other stays."""
    return cpu_backend() if type(backend) in (NumpyBackend, NativeBackend) else backend
