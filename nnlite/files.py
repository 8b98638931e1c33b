"""Reading saved models."""

from collections.abc import Iterable
from os import PathLike
from typing import Any

import nnlite.layers
from nnlite.arguments import shortened
from nnlite.atomic import shown
from nnlite.engine.vectors import walk
from nnlite.errors import FileError
from nnlite.layers.base import Layer
from nnlite.model import Sequential
from nnlite.serialize import build, read_model, renamed, take
from nnlite.state import Arrays


def load(path: str | PathLike[str], layers: Iterable[type[Layer]] = (), device: str = "cpu") -> Sequential:
    """The model that `model.save(path)` wrote.

    layers: the custom layer classes that it contains. Raises FileError for a damaged file, an unknown layer, or values
    that do not fit; FileNotFoundError if there is no such file.
    """
    arrays, description = read_model(path)
    try:
        model = _build_whole(description["model"], _classes(layers), arrays)
        take(model.vectors, renamed(arrays, {}), strict=True, path=path)
        model.set_frozen(set(map(str, description["frozen"])))
        model.passes = int(description["passes"])
    except FileError:
        raise
    except Exception as error:  # an untrusted description can make layers raise anything
        raise FileError(f"{shown(path)}: its configuration does not describe a model: {error}") from error
    return model.to(device)


def _build_whole(description: dict[str, Any], classes: dict[str, type[Layer]], arrays: Arrays) -> Sequential:
    """The model, but only if the file holds its values: a few bytes of description must not allocate all memory."""
    in_shape = tuple(description["input_shape"])
    model: Sequential = build(description | {"input_shape": None}, classes)
    if type(model) is not Sequential:
        raise FileError(f"its configuration describes {shortened(model)}, no whole model")
    model.declare_shapes(in_shape)
    declared = {f"{path}.{n}": p.shape for path, layer in walk(model.children()) for n, p in layer.declared.items()}
    if declared != {name: array.shape for name, array in arrays.items()}:
        raise FileError("its values are not those of the model that it describes")
    model.assemble(in_shape)
    return model


def _classes(layers: Iterable[type[Layer]]) -> dict[str, type[Layer]]:
    own = {name: getattr(nnlite.layers, name) for name in nnlite.layers.__all__}
    return own | {"Sequential": Sequential} | {kind.__name__: kind for kind in layers}
