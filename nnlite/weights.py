"""Values for a model, by name, from a model that may have other names and other values."""

from collections.abc import Iterable, Mapping
from typing import Any

from nnlite.arguments import listing, shortened
from nnlite.atomic import shown
from nnlite.engine.vectors import Vectors
from nnlite.errors import FileError

Arrays = dict[str, Any]


class Taken(list[str]):
    """The names of the values that a model took from a file.   left_out: the others, each with the reason."""

    def __init__(self, names: Iterable[str], left_out: list[str]) -> None:
        super().__init__(names)
        self.left_out = left_out

    def __repr__(self) -> str:
        left_out = f"; left out: {listing(self.left_out, most=5, longest=65)}" if self.left_out else ""
        return f"{len(self)} values taken: {listing(self, most=5)}{left_out}"


def entries(vectors: Vectors) -> Arrays:
    """The values of a model that a file stores: views of its parameters and buffers by name."""
    return vectors.named(vectors.trained, vectors.params) | vectors.named(vectors.kept, vectors.buffers)


def check_names(names: Any) -> None:
    """Raise ValueError unless `names` is a dict of patterns, with one * on both sides or on neither."""
    if names is not None and not isinstance(names, Mapping):
        raise ValueError(f'names must be a dict {{"name in the file": "name here"}}, not {shortened(names)}')
    for there, here in (names or {}).items():
        if not (isinstance(there, str) and isinstance(here, str) and there.count("*") == here.count("*") <= 1):
            raise ValueError(f"names must be texts with one * each, or with none, not {shortened({there: here})}")


def renamed(arrays: Arrays, names: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """By name here, from the first pattern that matches: the name in the file, and the array.

    Raises ValueError for a pattern without a match, and for two arrays with one name.
    """
    idle, found = set(names), dict[str, tuple[str, Any]]()
    for there, array in arrays.items():
        pattern = next((pattern for pattern in names if _stands_for(pattern, there) is not None), None)
        idle.discard(pattern or "")
        here = there if pattern is None else names[pattern].replace("*", _stands_for(pattern, there) or "")
        if here in found:
            raise ValueError(f"names: {shortened(found[here][0])} and {shortened(there)} would both be {shortened(here)} here")
        found[here] = there, array
    if idle:
        raise ValueError(f"names: nothing in the file is called {listing(idle, most=3)}, it has {listing(arrays)}")
    return found


def _stands_for(pattern: str, name: str) -> str | None:
    """The text that * matches in a name, "" if the pattern has none; None if it does not match."""
    before, star, behind = pattern.partition("*")
    if not star:
        return "" if name == pattern else None
    fits = len(name) >= len(before) + len(behind) and name.startswith(before) and name.endswith(behind)
    return name[len(before) : len(name) - len(behind)] if fits else None


def take(vectors: Vectors, given: Mapping[str, tuple[str, Any]], strict: bool, path: Any) -> Taken:
    """Copy what fits into the model. Raises FileError if nothing fits, or with `strict` if anything does not."""
    own = entries(vectors)
    faults = {name: _fault(name, own.get(name), *given.get(name, (name, None))) for name in sorted(own.keys() | given.keys())}
    taken, left_out = [name for name in own if not faults[name]], [fault for fault in faults.values() if fault]
    if left_out and (strict or not taken):
        raise FileError(f"{shown(path)} does not fit this model: {listing(left_out, most=5, longest=65)}")
    with vectors.lock.writing():
        for name in taken:
            own[name][...] = vectors.backend.asarray(given[name][1])
    return Taken(taken, left_out)


def _fault(here: str, own: Any, there: str, array: Any) -> str:
    """Why a value is not taken; "" if it is."""
    name = here if here == there else f"{here} ({there} in the file)"
    if array is None:
        return f"missing {name}"
    if own is None:
        return f"extra {name}"
    if array.shape != own.shape:
        return f"{name} has shape {array.shape}, here {own.shape}"
    return "" if array.dtype.kind == "f" else f"{name} is {array.dtype}"
