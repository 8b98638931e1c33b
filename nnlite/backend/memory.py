"""Reused memory: by one operation for its duration, by one shard between forward and backward."""

import math
from collections.abc import Callable
from typing import Any

from nnlite.backend.operations import Operations
from nnlite.backend.window import Array

_KEPT_VIEWS = 1000  # keys


class Buffers:
    """Arrays by name, allocated on first use and reused while they are large enough."""

    def __init__(self, backend: Operations) -> None:
        self.backend = backend
        self._arrays: dict[Any, Array] = {}
        self._views: dict[Any, Any] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array; it shares memory with earlier arrays of that name."""
        return self._get(name, shape, dtype, in_order)

    def batch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised batch of samples, in the backend's memory order."""
        return self._get((name, "batch"), shape, dtype, self.backend.lay_out)

    def views(self, key: Any, make: Callable[[], Any]) -> Any:
        """The cached result of `make()` for this key, valid until an array is reallocated."""
        if key not in self._views:
            self._keep(key, make())
        return self._views[key]

    def _get(self, name: Any, shape: tuple[int, ...], dtype: Any, lay_out: Callable[[Array, tuple[int, ...]], Array]) -> Array:
        key = name, shape, dtype
        view: Array | None = self._views.get(key)
        if view is None:
            view = self._keep(key, lay_out(self._at_least(math.prod(shape), name, dtype), shape))
        return view

    def _at_least(self, size: int, name: Any, dtype: Any) -> Array:
        """`size` values of the array of that name, reallocated if it is too small."""
        flat = self._arrays.get(name)
        if flat is None or flat.dtype != dtype or flat.size < size:
            flat = self._arrays[name] = self.backend.empty(size, dtype)
            self._views.clear()  # some may view the old array and would keep it alive
        return flat[:size]

    def _keep(self, key: Any, view: Any) -> Any:
        if len(self._views) >= _KEPT_VIEWS:
            self._views.clear()
        self._views[key] = view
        return view


def in_order(flat: Array, shape: tuple[int, ...]) -> Array:
    """View `flat` as an array of this shape."""
    return flat.reshape(shape)


class Pool:
    """A free list of large arrays: touching fresh memory costs more than writing to it."""

    def __init__(self, backend: Operations) -> None:
        self.backend = backend
        self._free: list[Array] = []

    def take(self, size: int, dtype: Any) -> Array:
        """At least `size` uninitialised values: the smallest free array that fits, at most twice as large; `give` it back."""
        fitting = [flat for flat in self._free if flat.dtype == dtype and size <= flat.size <= 2 * size]
        if fitting:
            flat = min(fitting, key=len)
            self._free = [other for other in self._free if other is not flat]
        else:
            flat = self.backend.empty(size, dtype)
        return flat

    def give(self, array: Array) -> None:
        """Return an array that came from `take`."""
        self._free.append(array)


class Memory:
    """What one operation keeps of one shard between its forward and its backward pass.

    `swept` says that backward follows forward immediately on the same thread: then even large arrays, such as patches, are
    worth keeping. Otherwise they are recomputed, so that a batch keeps no more than its activations.
    `batch`: the samples that what is prepared will serve, in all shards; 0 where that is not known, as in inference.
    """

    def __init__(self, backend: Operations, swept: bool = False) -> None:
        self.backend, self._swept, self._needs_backward = backend, swept, swept
        self.batch = 0
        self._own = Buffers(backend)
        self._kept: dict[str, Array] = {}
        self._parts: dict[int, Memory] = {}

    def part(self, i: int) -> "Memory":
        """The memory of part i of a composite operation."""
        if i not in self._parts:
            self._parts[i] = Memory(self.backend)
        part = self._parts[i]
        part._swept, part._needs_backward, part.batch = self.swept, self.needs_backward, self.batch
        return part

    @property
    def swept(self) -> bool:
        """Whether backward follows immediately."""
        return self._swept

    @property
    def needs_backward(self) -> bool:
        """Whether backward follows."""
        return self._needs_backward

    def persist(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that stays until backward."""
        array = self._kept[name] = self._own.get(name, shape, dtype)
        return array

    def persist_batch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A batch of samples, in the backend's order, that stays until backward."""
        array = self._kept[name] = self._own.batch(name, shape, dtype)
        return array

    def keep(self, name: str, array: Array) -> Array:
        """Keep an array allocated elsewhere until it is forgotten."""
        self._kept[name] = array
        return array

    def keep_if_swept(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array | None:
        """An array that stays until backward if that follows immediately, else None."""
        if self.swept:
            return self.persist(name, shape, dtype)
        self.forget(name)
        return None

    def forget(self, name: str) -> None:
        """Drop what is kept under this name."""
        self._kept.pop(name, None)

    def forget_all(self) -> None:
        """Drop everything kept."""
        self._kept.clear()

    def kept(self, name: str) -> Array | None:
        """What forward kept under this name, or None."""
        return self._kept.get(name)
