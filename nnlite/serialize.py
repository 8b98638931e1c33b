"""Models as files: safetensors, with the configuration as canonical JSON in the metadata key `nnlite`.

The same model gives the same bytes. Layers are found by name among nnlite's own and those given, never by import path. A model
takes values by name, also from a file that has other names and other values.
"""

import json
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np

from nnlite.arguments import listing, shortened
from nnlite.atomic import shown, write_whole
from nnlite.engine.vectors import Vectors
from nnlite.errors import FileError, StateError
from nnlite.layers.base import Layer
from nnlite.state import Arrays

FORMAT = 1


def save(model: Layer, vectors: Vectors, passes: int, path: str | PathLike[str]) -> None:
    """Write a model's configuration and values, atomically: an old file is intact until the end.

    Raises StateError for a layer that `describe` cannot describe, FileError where the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.ascontiguousarray(vectors.backend.to_host(view)) for name, view in entries(vectors).items()}
    whole = {"format": FORMAT, "model": describe(model), "passes": passes, "frozen": vectors.frozen_names}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    write_whole(path, to_bytes(arrays, metadata={"nnlite": text}))


def describe(layer: Layer) -> dict[str, Any]:
    """The layer's class and constructor's arguments: numbers, strings, None, layers, and lists and arrays of them, which
    become tuples.

    A subclass of Sequential is described as a Sequential of its layers. An initialiser that is a function is left out: it
    cannot be saved, but its values are. Raises StateError for anything else that JSON cannot hold.
    """
    kind = layer.saved_as or type(layer)
    inits = [parameter.init for parameter in layer.declared.values()]
    arguments = {p.name: getattr(layer, p.name) for p in kind.arguments()}
    kept = {name: value for name, value in arguments.items() if not (callable(value) and any(value is init for init in inits))}
    return {"class": kind.__name__, **{name: _encode(value, layer, name) for name, value in kept.items()}}


def build(description: dict[str, Any], classes: dict[str, type[Layer]]) -> Any:
    """The layer that `describe` described."""
    arguments = {name: _decode(value, classes) for name, value in description.items() if name != "class"}
    kind = classes.get(description["class"])
    if kind is None:
        name = str(description["class"])[:80]
        raise FileError(f"unknown layer {name!r}: pass its class, nnlite.load(path, layers=[{name}])")
    names = [p.name for p in kind.arguments()]
    star = next((i for i, p in enumerate(kind.arguments()) if p.kind is p.VAR_POSITIONAL), None)
    if star is None:
        return kind(**arguments)
    before, rest = [arguments.pop(name) for name in names[:star]], arguments.pop(names[star])
    return kind(*before, *rest, **arguments)


def _encode(value: Any, layer: Layer, name: str) -> Any:
    if isinstance(value, Layer):
        return describe(value)
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list | tuple):
        return [_encode(v, layer, name) for v in value]
    if not isinstance(value, bool | int | float | str | None):
        raise StateError(f"{type(layer).__name__} cannot be saved: its argument {name} is {shortened(value)}")
    return value


def _decode(value: Any, classes: dict[str, type[Layer]]) -> Any:
    if isinstance(value, dict):
        return build(value, classes)
    if isinstance(value, list):
        values = [_decode(v, classes) for v in value]
        return values if any(isinstance(v, Layer) for v in values) else tuple(values)
    return value


def read_tensors(path: str | PathLike[str], what: str) -> tuple[Arrays, dict[str, Any]]:
    """The tensors of a file and the JSON object in its metadata; raises FileError unless it is `what` nnlite saved."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        description = json.loads(metadata["nnlite"])
        if not isinstance(description, dict):
            raise TypeError(f"its description is {type(description).__name__}")
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise FileError(f"{shown(path)}: not {what} that nnlite saved, or damaged: {shortened(error)}") from error
    return arrays, description


def read_model(path: str | PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """The values of a saved model by name, and its description; FileError for anything but a saved model."""
    arrays, description = read_tensors(path, "a model")
    if description.keys() == {"digest", "state"}:
        raise FileError(
            f"{shown(path)} is a checkpoint: Trainer.fit(checkpoint=, resume=True) goes on with it; "
            "best.safetensors beside it is a model"
        )
    if description.get("format") != FORMAT:
        raise FileError(f"{shown(path)}: format {description.get('format')}, this nnlite reads format {FORMAT}")
    return arrays, description


# ---- values by name


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
