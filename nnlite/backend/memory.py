"""Memory that is used again: by one operation for its duration, by one shard between forward and backward."""

import math
from collections.abc import Callable
from typing import Any

from nnlite.backend.operations import Operations
from nnlite.backend.window import Array

_KEPT_VIEWS = 1000  # for so many keys


class Buffers:
    """Arrays by name, made when first asked for and used again as long as they are large enough."""

    def __init__(self, backend: Operations) -> None:
        self.backend = backend
        self._arrays: dict[Any, Array] = {}
        self._views: dict[Any, Any] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of undefined contents; it shares memory with what `name` was given before."""
        return self._get(name, shape, dtype, _in_order)

    def batch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Likewise, for a batch of samples, in the order in which the backend wants it to lie."""
        return self._get((name, "batch"), shape, dtype, self.backend.lay_out)

    def views(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make()` gave for this key, while no array was made anew."""
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
        """So many values of the array of that name, which is made anew where it is too small."""
        flat = self._arrays.get(name)
        if flat is None or flat.dtype != dtype or flat.size < size:
            flat = self._arrays[name] = self.backend.empty(size, dtype)
            self._views.clear()  # some may be of the old array, and would keep it
        return flat[:size]

    def _keep(self, key: Any, view: Any) -> Any:
        if len(self._views) >= _KEPT_VIEWS:
            self._views.clear()
        self._views[key] = view
        return view


def _in_order(flat: Array, shape: tuple[int, ...]) -> Array:
    return flat.reshape(shape)


class Pool:
    """Large arrays that go from hand to hand: fresh memory costs more than what is written to it."""

    def __init__(self, backend: Operations) -> None:
        self.backend = backend
        self._free: list[Array] = []

    def take(self, size: int, dtype: Any) -> Array:
        """At least so many values, undefined: the smallest array that fits and is not twice too large; `give` it back."""
        fitting = [flat for flat in self._free if flat.dtype == dtype and size <= flat.size <= 2 * size]
        if fitting:
            flat = min(fitting, key=len)
            self._free = [other for other in self._free if other is not flat]
        else:
            flat = self.backend.empty(size, dtype)
        return flat

    def give(self, array: Array) -> None:
        """Nobody needs this array, which came from `take`, any more."""
        self._free.append(array)


class Memory:
    """What one operation keeps of one shard between its forward and its backward pass.

    `swept` says that backward follows forward at once on the same thread: then even large things, such as patches, are
    worth keeping. Otherwise they are made again, so that what a batch keeps does not outgrow its activations.
    """

    def __init__(self, backend: Operations, swept: bool = False) -> None:
        self.backend, self._swept, self._needs_backward = backend, swept, swept
        self._own = Buffers(backend)
        self._kept: dict[str, Array] = {}
        self._parts: dict[int, Memory] = {}

    def part(self, i: int) -> "Memory":
        """The memory of one of several operations that this one consists of."""
        if i not in self._parts:
            self._parts[i] = Memory(self.backend)
        part = self._parts[i]
        part._swept, part._needs_backward = self.swept, self.needs_backward
        return part

    @property
    def swept(self) -> bool:
        """Whether backward follows at once."""
        return self._swept

    @property
    def needs_backward(self) -> bool:
        """Whether backward follows at all."""
        return self._needs_backward

    def persist(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that stays until backward."""
        array = self._kept[name] = self._own.get(name, shape, dtype)
        return array

    def persist_batch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Likewise, for a batch of samples, in the backend's order."""
        array = self._kept[name] = self._own.batch(name, shape, dtype)
        return array

    def keep(self, name: str, array: Array) -> Array:
        """Keep an array of somebody else's, until it is forgotten."""
        self._kept[name] = array
        return array

    def keep_if_swept(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array | None:
        """An array that stays until backward if that follows at once; else None."""
        if self.swept:
            return self.persist(name, shape, dtype)
        self.forget(name)
        return None

    def forget(self, name: str) -> None:
        """Nobody needs it any more."""
        self._kept.pop(name, None)

    def forget_all(self) -> None:
        """Nobody needs anything any more."""
        self._kept.clear()

    def kept(self, name: str) -> Array | None:
        """What forward kept under this name, or None."""
        return self._kept.get(name)
