"""Main memory, which all backends of the CPU share."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite.backend.arrays import host_array
from nnlite.backend.cpu.threads import map_shards
from nnlite.backend.memory import Buffers
from nnlite.backend.operations import Operations
from nnlite.backend.window import Array
from nnlite.errors import DeviceError

_LINE = 64  # bytes of a cache line, and of the widest registers


class _PerThread(threading.local):
    """The state of each thread, made on first use."""

    def __init__(self, backend: Operations) -> None:
        self.buffers = Buffers(backend)


class Host(Operations):
    """Arrays in main memory, scratch arrays of each thread, shards on threads."""

    device = "cpu"
    xp = np

    def __init__(self) -> None:
        self._own = _PerThread(self)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """As `host_array`; raises DeviceError for arrays of a GPU."""
        if type(x) is not np.ndarray and hasattr(x, "__cuda_array_interface__"):
            raise DeviceError(f"the model is on 'cpu', this {type(x).__module__} array on 'cuda': move one of them")
        return host_array(x, dtype)

    def to_host(self, x: Array) -> Array:
        """`x` itself."""
        return x

    def empty(self, size: int, dtype: Any) -> Array:
        """Aligned to a cache line: NumPy's own memory is not, so each wide register spans two lines."""
        dtype = np.dtype(dtype)
        raw = np.empty(size * dtype.itemsize + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        return raw[start : start + size * dtype.itemsize].view(dtype)

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """This thread's scratch array of that name."""
        return self._own.buffers.get(name, shape, dtype)

    def scratch_batch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._own.buffers.batch(name, shape, dtype)

    def views(self, key: Any, make: Callable[[], Any]) -> Any:
        """Cached per thread: making a dozen views takes Python as long as a product, and other threads wait meanwhile."""
        return self._own.buffers.views(key, make)

    def constant_rows(self, key: Any, n: int, make: Callable[[int], Array]) -> Array:
        """Cached per thread, one array per key."""
        kept = self._own.buffers.views(key, list)
        if not kept or len(kept[0]) < n:
            kept[:] = [make(n)]
        return kept[0][:n]

    def map_shards(self, work: Callable[[int], None], count: int, on_error: Callable[[], None] = lambda: None) -> None:
        """On the threads of `nn.set_num_threads`."""
        map_shards(work, count, on_error)
