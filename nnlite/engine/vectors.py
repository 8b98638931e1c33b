"""The values of a model: flat vectors of parameters, gradients and buffers, of which layers and names hold views."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

from nnlite.arguments import listing, shortened
from nnlite.backend import Array, Backend, ReadersWriterLock, single_threaded_blas
from nnlite.errors import ShapeError, StateError
from nnlite.init import initial_values
from nnlite.layers.base import Layer, Slot


def walk(layers: dict[str, Layer]) -> Iterator[tuple[str, Layer]]:
    """All layers without children, depth first, with their paths."""
    for name, layer in layers.items():
        yield from ((path, leaf) for path, leaf in everything(layer, name) if not leaf.children())


def everything(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """The layer, whose path is "", and all layers inside it, with their paths."""
    yield path, layer
    for name, child in layer.children().items():
        yield from everything(child, f"{path}.{name}" if path else name)


def frozen_whole(layers: dict[str, Layer]) -> set[str]:
    """The paths of the layers replaced by their frozen form, because everything in them is frozen."""
    return {path for path, layer in walk(layers) if layer.has_frozen_form and layer.is_frozen_whole}


@contextmanager
def unchanged_by_errors(layers: Iterable[Layer]) -> Iterator[None]:
    """If the block fails, restore these layers to their present state."""
    before = [(layer, dict(layer.__dict__), dict(layer.declared)) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, attributes, declared in before:
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
            layer.declared.clear()  # the same dict: twins of layers in the plan share it
            layer.declared.update(declared)
        raise


def refuse_repeats(layers: list[tuple[str, Layer]]) -> None:
    """Raise StateError if one object is in two places."""
    seen: dict[int, str] = {}
    for path, layer in layers:
        if id(layer) in seen:
            raise StateError(
                f"the same {shortened(layer)} object is at {seen[id(layer)]} and {path}: make two layers, or copy.deepcopy it"
            )
        seen[id(layer)] = path


def is_trained(layer: Layer) -> bool:
    """Whether any of its parameters is trained and not frozen."""
    return any(p.trained and name not in layer.frozen for name, p in layer.declared.items())


class Vectors:
    """`params`, `grads`, `buffers`, and the slots that locate the arrays in them.

    lock: between inference and what changes parameters or statistics.
    """

    def __init__(self, leaves: list[tuple[str, Layer]], backend: Backend, dtype: Any, seed: int) -> None:
        self.backend, self.dtype, self.lock = backend, dtype, ReadersWriterLock()
        self.trained = _slots(leaves, trained=True)
        self.kept = _slots(leaves, trained=False)
        self.params, self.buffers = backend.empty(_end(self.trained), dtype), backend.empty(_end(self.kept), dtype)
        self.grads = backend.zeros(_end(self.trained), dtype)
        self._fill(seed)
        self.refresh()

    def named(self, slots: list[Slot], vector: Array) -> dict[str, Array]:
        """Views of `vector` by name."""
        return {slot.name: vector[slot.place].reshape(slot.parameter.shape) for slot in slots}

    def part(self, prefix: str) -> "Vectors":
        """The vectors of the layers below a path: slices of these."""
        part: Vectors = object.__new__(Vectors)
        part.backend, part.dtype, part.lock = self.backend, self.dtype, self.lock
        part.trained, place = _below(prefix, self.trained)
        part.params, part.grads = self.params[place], self.grads[place]
        part.kept, place = _below(prefix, self.kept)
        part.buffers = self.buffers[place]
        part.refresh()
        return part

    @property
    def frozen_names(self) -> list[str]:
        """What is frozen, parameters and statistics."""
        return sorted(slot.name for slot in (*self.trained, *self.kept) if slot.frozen)

    def freeze(self, pattern: str, statistics: bool) -> None:
        """Freeze the parameters whose names match; with `statistics` also the statistics of layers that are then all frozen."""
        matching = self._matching(pattern)
        for slot in matching:
            if slot.parameter.trained:
                slot.layer.frozen.add(slot.attribute)
        layers = {id(slot.layer): slot.layer for slot in matching}.values() if statistics else ()
        whole = [layer for layer in layers if layer.has_frozen_form and not is_trained(layer)]
        for layer in whole:
            layer.frozen.update(layer.declared)
        if not whole and not any(slot.parameter.trained for slot in matching):
            raise ValueError(
                f"{shortened(pattern)} matches only statistics: they are frozen with all parameters of their layer"
            )

    def unfreeze(self, pattern: str) -> None:
        """Train the parameters whose names match again; the statistics of their layers are updated again."""
        for slot in self._matching(pattern):
            kept = {name for name, parameter in slot.layer.declared.items() if not parameter.trained}
            slot.layer.frozen -= {slot.attribute, *kept}

    def set_frozen(self, names: Collection[str]) -> None:
        """Freeze what has these names, and nothing else."""
        for slot in (*self.trained, *self.kept):
            (slot.layer.frozen.add if slot.name in names else slot.layer.frozen.discard)(slot.attribute)

    def _matching(self, pattern: str) -> list[Slot]:
        slots = [slot for slot in (*self.trained, *self.kept) if fnmatchcase(slot.name, pattern)]
        if not slots:
            names = listing(slot.name for slot in self.trained)
            raise ValueError(f"no parameter matches {shortened(pattern)}: the names are {names}")
        return slots

    def clear_frozen(self) -> None:
        """Zero the gradients of what is frozen."""
        for place in self._frozen:
            self.grads[place] = 0

    def select(self, wanted: Callable[[Slot], bool] | None = None) -> list[slice]:
        """The places of the wanted (None: all), unfrozen parameters, neighbours as one slice."""
        if wanted is None:
            return self._unfrozen
        return self.stretches(wanted).get(True, [])

    def stretches(self, key: Callable[[Slot], Any]) -> dict[Any, list[slice]]:
        """The places of the unfrozen parameters, by `key(slot)`, neighbours as one slice."""
        places: dict[Any, list[slice]] = {}
        for slot in self.trained:
            if not slot.frozen:
                places.setdefault(key(slot), []).append(slot.place)
        return {value: _merge(same) for value, same in places.items()}

    def refresh(self) -> None:
        """Apply a change of what is frozen."""
        self.frozen = [slot for slot in self.trained if slot.frozen]
        self._unfrozen = _merge([slot.place for slot in self.trained if not slot.frozen])
        self._frozen = _merge([slot.place for slot in self.frozen])

    def _fill(self, seed: int) -> None:
        """Values of layers that were already built move here; the others are drawn, in order, from one generator.

        The layers' arrays become views of the vectors.
        """
        slots = [(slot, self.params) for slot in self.trained] + [(slot, self.buffers) for slot in self.kept]
        with single_threaded_blas:
            draw = initial_values(seed)
            for slot, vector in slots:
                held = slot.layer.__dict__.get(slot.attribute)
                if held is not None and held.shape != slot.parameter.shape:
                    raise ShapeError(
                        f"layer {slot.name} was built with shape {held.shape}, here it needs {slot.parameter.shape}"
                    )
                values = draw(slot.parameter.init, slot.parameter.shape) if held is None else held
                values = self.backend.asarray(values, self.dtype)
                if values.ndim and values.shape != slot.parameter.shape:
                    raise ShapeError(f"the init of {slot.name} gave the shape {values.shape}, not {slot.parameter.shape}")
                vector[slot.place] = values.reshape(-1)
                slot.layer.bind(slot.attribute, vector[slot.place].reshape(slot.parameter.shape))


class Valued(Layer):
    """A layer with the values of all layers inside it, whole or a part of another one, its owner."""

    vectors: Vectors
    _moved_to: str | None

    @property
    def params(self) -> Array:
        """All trained values in one vector; layers hold views of it."""
        return self.vectors.params

    @params.setter
    def params(self, value: Any) -> None:
        self._copy_into(self.vectors.params, value)

    @property
    def grads(self) -> Array:
        """dJ/d(params) of the last backward pass; zero where frozen."""
        return self.vectors.grads

    @grads.setter
    def grads(self, value: Any) -> None:
        self._copy_into(self.vectors.grads, value)

    @property
    def buffers(self) -> Array:
        """Values that are saved but not trained: running statistics."""
        return self.vectors.buffers

    @buffers.setter
    def buffers(self, value: Any) -> None:
        self._copy_into(self.vectors.buffers, value)

    def _copy_into(self, vector: Array, value: Any) -> None:
        if value is not vector:
            array = self.backend.asarray(value)
            if array.shape != vector.shape:
                raise ShapeError(f"this vector has shape {vector.shape}, not {array.shape}")
            vector[...] = array

    def named_params(self) -> dict[str, Array]:
        """Views of `params` by name, such as "0.W"."""
        self._root()
        return self.vectors.named(self.vectors.trained, self.params)

    def named_grads(self) -> dict[str, Array]:
        """Views of `grads` by the names of the parameters."""
        self._root()
        return self.vectors.named(self.vectors.trained, self.grads)

    def named_buffers(self) -> dict[str, Array]:
        """Views of `buffers` by name, such as "1.running_mean"."""
        self._root()
        return self.vectors.named(self.vectors.kept, self.buffers)

    def snapshot(self) -> tuple[Array, Array]:
        """Copies of params and buffers, taken between two updates."""
        with self.lock.reading():
            return self.params.copy(), self.buffers.copy()

    def restore(self, snapshot: tuple[Array, Array]) -> None:
        """Restore the values of a snapshot."""
        with self.updating():
            self.params[...], self.buffers[...] = (self.backend.asarray(v) for v in snapshot)

    def updating(self) -> AbstractContextManager[None]:
        """Block inference while the parameters change: `with model.updating(): ...`."""
        return self.lock.writing()

    @property
    def lock(self) -> ReadersWriterLock:
        """The lock between inference and changes of parameters or statistics: one for the whole model."""
        self._root()
        return self.vectors.lock

    def _root(self) -> "Valued":
        """The model that holds the values: this one, or the one that it is a part of. StateError where there is none."""
        if self.owner is None:
            raise StateError("this Sequential has no input_shape: give it one, or make it a part of a model that has one")
        root = cast(Valued, self.owner)
        moved = self._moved_to or root._moved_to
        if moved is not None:
            raise StateError(f"{moved} now belongs to another model; copy.deepcopy layers to keep both")
        return root


def _slots(leaves: list[tuple[str, Layer]], trained: bool) -> list[Slot]:
    slots, start = list[Slot](), 0
    for path, layer in leaves:
        for attribute, parameter in layer.declared.items():
            if parameter.trained == trained:
                stop = start + parameter.size
                slots.append(Slot(path, layer, attribute, parameter, slice(start, stop)))
                start = stop
    return slots


def _below(prefix: str, slots: list[Slot]) -> tuple[list[Slot], slice]:
    """The slots below a path, with names and places relative to it, and their place in the whole."""
    inside = [slot for slot in slots if slot.path.startswith(prefix)]
    if not inside:
        return [], slice(0, 0)
    place = slice(inside[0].place.start, inside[-1].place.stop)
    moved = [slot._replace(path=slot.path.removeprefix(prefix), place=shift(slot.place, place.start)) for slot in inside]
    return moved, place


def shift(place: slice, start: int) -> slice:
    """The same place, counted from `start`."""
    return slice(place.start - start, place.stop - start)


def _end(slots: list[Slot]) -> int:
    return slots[-1].place.stop if slots else 0


def _merge(places: list[slice]) -> list[slice]:
    merged = list[slice]()
    for place in places:
        if merged and merged[-1].stop == place.start:
            merged[-1] = slice(merged[-1].start, place.stop)
        elif place.stop > place.start:
            merged.append(place)
    return merged
