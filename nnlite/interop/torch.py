"""Weights of PyTorch's models, in and out, without PyTorch: dicts of arrays or tensors, and safetensors files."""

import math
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np

from nnlite import layers
from nnlite.arguments import shortened
from nnlite.atomic import shown, write_whole
from nnlite.backend import Array
from nnlite.engine.plan import flatten
from nnlite.engine.steps import Step
from nnlite.errors import FileError, StateError
from nnlite.interop.torch_names import by_module, in_order, of_resnet
from nnlite.layers.base import Elementwise, Shape, Slot
from nnlite.layers.sequence import OfSequences
from nnlite.model import Sequential, needs_model
from nnlite.serialize import Taken, check_names, renamed, take

THEIRS = {"W": "weight", "gamma": "weight", "slopes": "weight", "b": "bias", "beta": "bias"}  # other names are the same
COUNTER = "num_batches_tracked"  # of a BatchNorm: nnlite's momentum needs none


def load(source: Any, model: Sequential, names: Mapping[str, str] | None = None) -> Taken:
    """Take the weights of a PyTorch model of the same architecture; returns the names that were taken.

    source: a state_dict, a dict of arrays by PyTorch's names, or the path of a safetensors file. Filters (O, I, h, w) become
    (O, h, w, I), and the columns of a Dense behind Flatten go from the order (C, H, W) to (H, W, C).
    names: {"features.*": "0.*"}, of modules there and layers here. Without it, layers are matched by name, and where the names
    differ, as torchvision names those of a ResNet (`nn.zoo.resnet`, `nn.zoo.imagenet_resnet`), or one after another.
    Raises FileError where names or shapes do not fit, or fit in several ways, listing both, and for a file that is none of
    safetensors: open a pickled one with `torch.load(path, weights_only=True)` and give its state_dict.
    """
    check_names(names)
    needs_model(model)
    arrays = {name: array for name, array in _arrays(source).items() if not name.endswith(COUNTER)}
    slots, orders = _slots(model), _orders(model)
    if names:
        arrays = {name: array for name, (_, array) in renamed(arrays, names).items()}
    elif not {_their_name(slot) for slot in slots} <= arrays.keys():
        ours = by_module({_their_name(slot): slot for slot in slots})
        named = of_resnet(arrays, model)
        arrays = in_order(arrays, ours, lambda a, slot: _fits(a, slot, orders)) if named is None else named
    found = dict[str, tuple[str, Array]]()
    for slot in slots:
        there = _their_name(slot)
        if there in arrays:
            found[slot.name] = there, _ours(arrays.pop(there), slot, orders)
    found |= {name: (name, array) for name, array in arrays.items()}  # too many
    return take(model.vectors, found, strict=True, path=source if isinstance(source, str | PathLike) else "the dict")


def state_dict(model: Sequential) -> dict[str, Array]:
    """The model's weights as host arrays, by the names and in the shapes that `torch.nn.Sequential` of the same layers has."""
    needs_model(model)
    orders, vectors = _orders(model), model.vectors
    values = vectors.named(vectors.trained, vectors.params) | vectors.named(vectors.kept, vectors.buffers)
    return {_their_name(slot): _theirs(model.backend.to_host(values[slot.name]), slot, orders) for slot in _slots(model)}


def save(model: Sequential, path: str | PathLike[str]) -> None:
    """Write `state_dict(model)` to a safetensors file, which `safetensors.torch.load_file` reads."""
    from safetensors.numpy import save as to_bytes

    write_whole(path, to_bytes(state_dict(model)))


def _arrays(source: Any) -> dict[str, Array]:
    if isinstance(source, Mapping):
        return {str(name): _host(value) for name, value in source.items()}
    from safetensors import SafetensorError, safe_open

    if not isinstance(source, str | PathLike):
        raise FileError(f"expects a dict of weights or the path of a safetensors file, not {shortened(source)}")
    try:
        with safe_open(fspath(source), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise FileError(
            f"{shown(source)} is no safetensors file: open a pickled one with torch.load(path, weights_only=True) and give the "
            f"state_dict ({shortened(error)})"
        ) from error


def _host(value: Any) -> Array:
    """A NumPy array; tensors are known by what they can do."""
    value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise FileError(f"weights must be real numbers, not {array.dtype}")
    return array.astype(np.float32) if array.dtype.kind != "f" else array


def _slots(model: Sequential) -> list[Slot]:
    """Layer by layer: the parameters of each, then what it keeps."""
    places = {path: i for i, (path, _) in enumerate((step.path, step.layer) for step in flatten(model.children()))}
    return sorted((*model.vectors.trained, *model.vectors.kept), key=lambda slot: places[slot.path])


def _their_name(slot: Slot) -> str:
    return f"{slot.path}.{THEIRS.get(slot.attribute, slot.attribute)}"


def _orders(model: Sequential) -> dict[str, Shape]:
    """The shapes of the images or sequences whose values a layer reads in a row, by its path."""
    steps = flatten(model.children())
    makers = {step.makes: step for step in steps}
    orders = {}
    for step in steps:
        orders[step.path] = shape = _flattened(step, makers)
        if shape is not None and len(step.reads) > 1:
            raise StateError(
                f"layer {step.path} joins flattened images, which PyTorch stores in another order: put a Dense first"
            )
    return {path: shape for path, shape in orders.items() if shape is not None}


def _flattened(step: Step, makers: dict[int, Step]) -> Shape | None:
    for before in (makers[v] for v in step.reads if v in makers):
        if isinstance(before.layer, layers.Reshape):
            given = before.layer.in_shape
            return given if len(given) in (2, 3) and _has_channels_first(before, makers) else None
        keeps_order = isinstance(before.layer, Elementwise | layers.BatchNorm | layers.LayerNorm)
        if keeps_order and (shape := _flattened(before, makers)) is not None:
            return shape
    return None


def _has_channels_first(step: Step, makers: dict[int, Step]) -> bool:
    """Whether PyTorch has (N, C, ...) there: in images, and behind a layer that takes (N, C, T); vectors of ids are last."""
    before = [makers[v] for v in step.reads if v in makers]
    if not before:
        return len(step.layer.in_shape) == 3 and not isinstance(step.layer, layers.Embedding)
    of_images = any(b.layer.images and len(b.layer.in_shape) == 3 for b in before)
    return of_images or any(isinstance(b.layer, OfSequences) or _has_channels_first(b, makers) for b in before)


def _fits(array: Array, slot: Slot, orders: dict[str, Shape]) -> bool:
    return bool(_ours(array, slot, orders).shape == slot.parameter.shape)


def _ours(array: Array, slot: Slot, orders: dict[str, Shape]) -> Array:
    """PyTorch's array as nnlite stores it; one of another shape as it is, for the message."""
    if array.ndim > 2:
        return np.moveaxis(array, 1, -1)
    order = _order(slot, orders)
    if order is None or array.shape[-1] != math.prod(order):
        return array
    *size, channels = order
    return np.moveaxis(array.reshape(*array.shape[:-1], channels, *size), -len(order), -1).reshape(array.shape)


def _theirs(array: Array, slot: Slot, orders: dict[str, Shape]) -> Array:
    order = _order(slot, orders)
    if array.ndim > 2:
        array = np.moveaxis(array, -1, 1)
    elif order is not None and array.shape[-1] == math.prod(order):
        array = np.moveaxis(array.reshape(*array.shape[:-1], *order), -1, -len(order)).reshape(array.shape)
    return array.copy()  # by itself, in the order of its shape


def _order(slot: Slot, orders: dict[str, Shape]) -> Shape | None:
    """The shape of the images that the last axis of an array runs over, or None: the outputs of a Dense are others."""
    return None if slot.attribute == "b" else orders.get(slot.path)
