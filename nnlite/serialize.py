"""Models as files: safetensors, with the configuration as canonical JSON in the metadata key `nnlite`.

The same model gives the same bytes. Layers are found by name among nnlite's own and those given, never by import path.
"""

import json
import os
from os import PathLike
from typing import Any

import numpy as np

from nnlite.arguments import shortened
from nnlite.atomic import shown, write_whole
from nnlite.engine.vectors import Vectors
from nnlite.errors import FileError, StateError
from nnlite.layers.base import Layer
from nnlite.weights import Arrays, entries

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
