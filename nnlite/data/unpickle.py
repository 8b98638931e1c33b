"""The only place that unpickles: python batches whose md5 has been checked, and no class but what arrays need."""

import io
import pickle
from typing import Any


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class("numpy._core.multiarray" if name == "_reconstruct" else "numpy", name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch")


def unpickle(data: bytes) -> Any:
    """The object; raises UnpicklingError for classes that have no place in a batch."""
    return _Unpickler(io.BytesIO(data), encoding="bytes").load()
