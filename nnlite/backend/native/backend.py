"""The backend of the C kernels."""

from functools import cache
from typing import Any

from nnlite.backend.base import Backend
from nnlite.backend.native.operations import NativeOperations, kernels


class NativeBackend(NativeOperations, Backend):
    """The operations of the C kernels, and their plans."""

    def __reduce__(self) -> Any:
        return get_native_backend, ()


@cache
def get_native_backend() -> NativeBackend:
    """The one backend of C kernels; raises DeviceError, saying why, if they can be neither found nor compiled."""
    kernels("float32")
    return NativeBackend()
