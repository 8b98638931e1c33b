"""Keras's files, read and written by h5py: a zip archive `.keras`, weights alone `.weights.h5`, HDF5 `.h5` of Keras 2.

Keras 3 numbers the arrays of a layer, and names its group by class and place: layers/conv2d_1/vars/0. Keras 2 names both:
model_weights/conv2d_1/conv2d_1/kernel:0, and lists the names in order.
"""

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np

from nnlite.arguments import shortened
from nnlite.atomic import shown
from nnlite.backend import Array
from nnlite.errors import FileError
from nnlite.interop.keras.texts import check_texts

ZIP, HDF5 = b"PK", b"\x89HDF\r\n\x1a\n"
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MOST_UNPACKED = 50  # times the size of the archive: weights hardly shrink when they are packed
CONTAINERS = ("layers/", "_layer_checkpoint_dependencies/")  # the second by Keras 2.13 to 2.15
NUMBERED = re.compile(rf"(?:{'|'.join(CONTAINERS)})?(?P<place>.+)/vars/(?P<number>\d+)")

Place = tuple[tuple[str, str], ...]  # a layer and the models around it, the outermost first: ((group by class, name), ...)


class Named(NamedTuple):
    """An array and its name in the file. Of Keras 3 it is a number."""

    name: str
    array: Array


class Unit(NamedTuple):
    """The arrays of one layer. group: of Keras 3, by class and place, which says its order among those of its class."""

    name: str
    arrays: list[Named]
    group: str = ""


class Contents:
    """config: the architecture as JSON has it; None for a file of weights."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def of(self, place: Place) -> list[Named]:
        """The arrays of a layer, in Keras's order."""
        raise NotImplementedError

    def units(self) -> list[Unit]:
        """All layers that have arrays."""
        raise NotImplementedError


class Numbered(Contents):
    """A file of Keras 3: the arrays by group and number, and the layers' names by group."""

    def __init__(self, config: Any, arrays: Mapping[str, Array], names: Mapping[str, str]) -> None:
        super().__init__(config)
        self._names, self._groups = names, dict[str, dict[int, Array]]()
        for name, array in arrays.items():
            if match := NUMBERED.fullmatch(name):
                group = match["place"].replace(CONTAINERS[1], CONTAINERS[0])
                self._groups.setdefault(group, {})[int(match["number"])] = array

    def of(self, place: Place) -> list[Named]:
        return self._arrays("/layers/".join(group for group, _ in place))

    def units(self) -> list[Unit]:
        groups = sorted((group for group in self._groups if not group.endswith("seed_generator")), key=_by_number)
        return [Unit(self._names.get(group, group), self._arrays(group), group) for group in groups]

    def _arrays(self, group: str) -> list[Named]:
        return [Named(f"{group}/{number}", array) for number, array in sorted(self._groups.get(group, {}).items())]


class Listed(Contents):
    """A file of Keras 2: layers and their arrays in order, by name."""

    def __init__(self, config: Any, layers: Mapping[str, list[Named]]) -> None:
        super().__init__(config)
        self._layers = layers

    def of(self, place: Place) -> list[Named]:
        outermost, innermost = place[0][1], place[-1][1]
        arrays = self._layers.get(outermost, [])
        return arrays if len(place) == 1 else [named for named in arrays if innermost in named.name.split("/")[1:-1]]

    def units(self) -> list[Unit]:
        """Of a model inside the model the arrays are listed together: their names say whose they are."""
        parts = dict[str, list[Named]]()
        for arrays in self._layers.values():
            for named in arrays:
                parts.setdefault(named.name.rpartition("/")[0], []).append(named)
        return [Unit(name.rpartition("/")[2], arrays) for name, arrays in parts.items()]


def read(path: str | PathLike[str]) -> Contents:
    """What a file holds. Raises FileError for anything but a file of Keras, FileNotFoundError if there is no such file."""
    try:
        return _read(Path(path))
    except (FileError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged file can make zipfile, json and h5py raise anything
        raise FileError(f"{shown(path)}: not a file of Keras, or damaged: {shortened(error)}") from error


def _read(path: Path) -> Contents:
    with path.open("rb") as file:
        start = file.read(len(HDF5))
    if start == HDF5:
        with path.open("rb") as raw, h5py.File(path, "r") as file:
            return _contents(file, raw, None)
    if not start.startswith(ZIP):
        raise FileError(f"{shown(path)} is neither a .keras archive nor HDF5")
    with zipfile.ZipFile(path) as archive:
        most = MOST_UNPACKED * os.path.getsize(path)
        config, weights = json.loads(_member(archive, CONFIG, most)), _member(archive, WEIGHTS, most)
    with io.BytesIO(weights) as memory, h5py.File(memory, "r") as file:
        return _contents(file, memory, config)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > most:
        raise FileError(f"{name} in the archive would have {size} bytes, {MOST_UNPACKED} times more than the whole")
    return archive.read(name)


def _contents(file: Any, raw: IO[bytes], config: Any) -> Contents:
    items, size = _items(file), raw.seek(0, os.SEEK_END)
    _check(file, items, raw)
    arrays = _arrays(items, size)
    if "model_config" in file.attrs:
        config = json.loads(_attribute(file, "model_config", size))
    base = "model_weights/" if "model_weights" in items else ""
    root = items.get("model_weights", file)
    if "layer_names" in root.attrs or "layer_names0" in root.attrs:
        layers = {}
        for name in _texts(root, "layer_names", size):
            weights = _texts(items[base + name], "weight_names", size)
            layers[name] = [Named(f"{name}/{w}", arrays[f"{base}{name}/{w}"]) for w in weights if "seed_generator" not in w]
        return Listed(config, layers)
    groups = {
        name.removesuffix("/vars"): item for name, item in items.items() if name.endswith("/vars") and "name" in item.attrs
    }
    names = {name.partition("/")[2]: _text(_attribute(group, "name", size)) for name, group in groups.items()}
    return Numbered(config, arrays, names)


def _items(file: Any) -> dict[str, Any]:
    """Groups and data sets by name; links to other files are not followed."""
    items: dict[str, Any] = {}
    file.visititems(items.__setitem__)
    return items


def _check(file: Any, items: Mapping[str, Any], raw: IO[bytes]) -> None:
    """Raise FileError for what h5py cannot be trusted to read."""
    sets = [item.id for item in items.values() if isinstance(item, h5py.Dataset)]
    texts = [_length(item.attrs.get_id(name)) for item in (file, *items.values()) for name in item.attrs]
    check_texts(
        raw, [(item.get_offset(), item.get_storage_size()) for item in sets if item.get_offset() is not None], sum(texts)
    )


def _length(attribute: Any) -> int:
    """How many texts of any length an attribute has."""
    kind = attribute.get_type()
    return math.prod(attribute.shape or ()) if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str() else 0


def _arrays(items: Mapping[str, Any], size: int) -> dict[str, Array]:
    """The values of all data sets but the optimiser's: together no more than the file."""
    found = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset) and not name.startswith("optimizer")}
    for name, item in found.items():
        if item.is_virtual or item.external:
            raise FileError(f"the values of {shortened(name)} are in another file")
    if sum(item.nbytes for item in found.values()) > size:
        raise FileError("its arrays have more bytes than the file: they are packed or missing")
    return {name: item[()] for name, item in found.items() if item.dtype.kind in "biuf"}


def _attribute(item: Any, name: str, size: int) -> Any:
    """A text or texts, no more than the file has bytes; others are not read."""
    found = item.attrs.get_id(name)
    count = math.prod(found.shape or ())
    if count > size or (count and not isinstance(found.get_type(), h5py.h5t.TypeStringID)):
        raise FileError(f"its attribute {name} is no text")
    return item.attrs[name]


def _texts(item: Any, name: str, size: int) -> list[str]:
    """A list of texts; a long one is in several attributes."""
    parts = [name] if name in item.attrs else sorted((a for a in item.attrs if a.startswith(name)), key=_by_number)
    return [_text(text) for part in parts for text in _attribute(item, part, size)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _by_number(name: str) -> list[Any]:
    """Sorts conv2d_2 before conv2d_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ---- writing


def archive(config: Any, layers: Iterable[Unit]) -> bytes:
    """A `.keras` file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in (
            ("metadata.json", _json({"keras_version": "3.0.0"})),
            (CONFIG, _json(config)),
            (WEIGHTS, numbered(layers)),
        ):
            file.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def numbered(layers: Iterable[Unit]) -> bytes:
    """A `.weights.h5` file."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for unit in layers:
            group = file.create_group(f"layers/{unit.group}/vars")
            group.attrs["name"] = unit.name
            for i, (_, array) in enumerate(unit.arrays):
                group[str(i)] = array
    return buffer.getvalue()


def listed(config: Any, layers: Iterable[Unit]) -> bytes:
    """A `.h5` file of Keras 2."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update({"model_config": json.dumps(config), "keras_version": "2.15.0", "backend": "tensorflow"})
        weights = file.create_group("model_weights")
        weights.attrs.update({"keras_version": "2.15.0", "backend": "tensorflow"})
        layers = list(layers)
        _list(weights, "layer_names", [unit.name for unit in layers])
        for unit in layers:
            group = weights.create_group(unit.name)
            _list(group, "weight_names", [f"{unit.name}/{name}:0" for name, _ in unit.arrays])
            for name, array in unit.arrays:
                group[f"{unit.name}/{name}:0"] = array
    return buffer.getvalue()


def _list(group: Any, name: str, texts: list[str]) -> None:
    """As one attribute, or, where it would be longer than HDF5 allows, as several."""
    encoded = np.array([text.encode() for text in texts])
    parts = np.array_split(encoded, 1 + encoded.nbytes // 60_000)
    for i, part in enumerate(parts):
        group.attrs[name if len(parts) == 1 else f"{name}{i}"] = part


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
