"""Files and the arrays in them. What is read is untrusted: only nnlite's errors, and not much more memory than the file has."""

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, defs, helper, numpy_helper

from nnlite.arguments import shortened
from nnlite.atomic import shown
from nnlite.backend import Array
from nnlite.errors import FileError

OLDEST = 7  # opset


def parsed(path: str | PathLike[str]) -> ModelProto:
    """The file as protobuf. Raises FileError for one that is none, FileNotFoundError if there is no such file."""
    try:
        model: ModelProto = ModelProto.FromString(Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except (DecodeError, OSError, ValueError) as error:
        raise FileError(f"{shown(path)} is no ONNX file, or damaged: {shortened(error)}") from error
    return model


def opset(model: ModelProto) -> int:
    """The version of its operators; raises FileError for one that is not known."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = defs.onnx_opset_version()
    if not versions or not OLDEST <= max(versions) <= newest:
        found = max(versions) if versions else "none"
        raise FileError(f"its opset is {found}: opsets {OLDEST} to {newest} are read, newer ones with a newer onnx")
    return int(max(versions))


class Initializers(Mapping[str, Array]):
    """The arrays of a graph by name, read when they are asked for.   folder: of external data, None if there is none"""

    def __init__(self, tensors: Any, folder: Path | None) -> None:
        self._tensors, self._folder = {tensor.name: tensor for tensor in tensors}, folder

    def __getitem__(self, name: str) -> Array:
        return array(self._tensors[name], self._folder)

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def array(tensor: TensorProto, folder: Path | None = None) -> Array:
    """A tensor's values; raises FileError where they do not fit its shape."""
    try:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor = _with_external_data(tensor, folder)
        if tensor.data_type == TensorProto.STRING:
            raise FileError(f"tensor {shortened(tensor.name)} holds texts")
        return np.asarray(numpy_helper.to_array(tensor))
    except FileError:
        raise
    except Exception as error:  # an untrusted tensor can make onnx raise anything
        raise FileError(f"tensor {shortened(tensor.name)} is damaged: {shortened(error)}") from error


def _with_external_data(tensor: TensorProto, folder: Path | None) -> TensorProto:
    """The tensor with its values, which are in another file: one in the folder of the model, never elsewhere."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if folder is None:
        raise FileError(f"tensor {shortened(tensor.name)} is in the file {shortened(name)}: load the model by its path")
    path = Path(os.path.realpath(folder / name))
    if not name or not path.is_relative_to(os.path.realpath(folder)):
        raise FileError(f"tensor {shortened(tensor.name)} is in {shortened(name)}, outside the folder of the model: refused")
    itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    size = itemsize * int(np.prod(tensor.dims, dtype=object))
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    if length != size or offset < 0 or not path.is_file() or offset + size > path.stat().st_size:
        raise FileError(f"tensor {shortened(tensor.name)} is not in {shown(path)}: {size} bytes from {offset} on")
    with path.open("rb") as file:
        file.seek(offset)
        return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, raw_data=file.read(size))
