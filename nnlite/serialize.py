"""Models as files: safetensors, with the configuration as canonical JSON in the metadata key `nnlite`.

The same model gives the same bytes. Layers are found by name among nnlite's own and those given, never by import path.
"""

import json
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

import nnlite.layers
from nnlite.arguments import flag, shortened
from nnlite.atomic import shown, write_whole
from nnlite.engine.vectors import walk
from nnlite.errors import FileError, StateError
from nnlite.layers.base import Layer
from nnlite.weights import Arrays, Taken, check_names, entries, renamed, take

if TYPE_CHECKING:
    from nnlite.model import Sequential

FORMAT = 1


def save(model: "Sequential", path: str | PathLike[str]) -> None:
    """Write the model's configuration and values, as `nnlite.atomic` writes: an old file is whole until the end.

    Raises StateError for a layer that `describe` cannot describe, FileError where the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.ascontiguousarray(model.backend.to_host(view)) for name, view in entries(model).items()}
    whole = {"format": FORMAT, "model": describe(model), "passes": model.passes, "frozen": model.vectors.frozen_names}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    write_whole(path, to_bytes(arrays, metadata={"nnlite": text}))


def load(path: str | PathLike[str], layers: Iterable[type[Layer]] = (), device: str = "cpu") -> "Sequential":
    """The model that `model.save(path)` wrote.

    layers: the user's own layer classes that it contains. Raises FileError for a damaged file, an unknown layer, or values
    that do not fit; FileNotFoundError where there is no such file.
    """
    arrays, description = _read(path)
    try:
        model = _build_whole(description["model"], _classes(layers), arrays)
        take(model, renamed(arrays, {}), strict=True, path=path)
        model.set_frozen(set(map(str, description["frozen"])))
        model.passes = int(description["passes"])
    except FileError:
        raise
    except Exception as error:  # a description from anywhere can make layers raise anything
        raise FileError(f"{shown(path)}: its configuration does not describe a model: {error}") from error
    return model.to(device)


def _build_whole(description: dict[str, Any], classes: dict[str, type[Layer]], arrays: Arrays) -> "Sequential":
    """The model, but only if the file holds its values: a few bytes of description must not claim all the memory."""
    in_shape = tuple(description["input_shape"])
    model: Sequential = build(description | {"input_shape": None}, classes)
    if type(model).__name__ != "Sequential":
        raise FileError(f"its configuration describes {shortened(model)}, no whole model")
    model.declare_shapes(in_shape)
    declared = {f"{path}.{n}": p.shape for path, layer in walk(model.children()) for n, p in layer.declared.items()}
    if declared != {name: array.shape for name, array in arrays.items()}:
        raise FileError("its values are not those of the model that it describes")
    model.assemble(in_shape)
    return model


def load_weights(model: "Sequential", path: str | PathLike[str], strict: bool, names: Mapping[str, str] | None) -> Taken:
    """Take the values of a saved model by name; the names that were taken. See `Sequential.load_weights`."""
    flag("strict", strict)
    check_names(names)
    arrays, _ = _read(path)
    return take(model, renamed(arrays, names or {}), strict, path)


def describe(layer: Layer) -> dict[str, Any]:
    """The layer's class and constructor's arguments: numbers, strings, None, layers, and lists and arrays of them, which
    become tuples.

    A subclass of Sequential is described as a Sequential of its layers. An initialiser that is a function is left out: it
    cannot be saved, and the values that it gave are. Raises StateError for all else that JSON cannot hold.
    """
    from nnlite.model import Sequential

    kind = Sequential if isinstance(layer, Sequential) else type(layer)
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


def _classes(layers: Iterable[type[Layer]]) -> dict[str, type[Layer]]:
    from nnlite.model import Sequential

    own = {name: getattr(nnlite.layers, name) for name in nnlite.layers.__all__}
    return own | {"Sequential": Sequential} | {kind.__name__: kind for kind in layers}


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
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        description = json.loads(metadata["nnlite"])
        if not isinstance(description, dict):
            raise TypeError(f"its description is {type(description).__name__}")
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise FileError(f"{shown(path)}: not {what} that nnlite saved, or damaged: {shortened(error)}") from error
    return arrays, description


def _read(path: str | PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    arrays, description = read_tensors(path, "a model")
    if description.keys() == {"digest", "state"}:
        raise FileError(
            f"{shown(path)} is a checkpoint: Trainer.fit(checkpoint=, resume=True) goes on with it; "
            "best.safetensors beside it is a model"
        )
    if description.get("format") != FORMAT:
        raise FileError(f"{shown(path)}: format {description.get('format')}, this nnlite reads format {FORMAT}")
    return arrays, description
