"""Models from Keras's files, and their weights for a model that is there."""

import re
from collections.abc import Sequence
from os import PathLike
from typing import Any

from nnlite import layers
from nnlite.arguments import flag, listing, sample_shape, shortened
from nnlite.atomic import shown
from nnlite.engine.plan import flatten
from nnlite.engine.vectors import walk
from nnlite.errors import FileError
from nnlite.interop.keras.files import Contents, Named, Unit, read
from nnlite.interop.keras.layers import ours
from nnlite.interop.keras.models import Architecture, Leaf, without_probabilities
from nnlite.layers.base import Layer, Shape
from nnlite.model import Sequential
from nnlite.serialize import take

Given = dict[str, tuple[str, Any]]  # by name here: the name in the file, and the array
Leaves = list[tuple[str, Layer]]
OURS = {  # by the names of Keras 2; those of Keras 3 are numbers
    "kernel": "W",
    "depthwise_kernel": "W",
    "pointwise_kernel": "W",
    "embeddings": "W",
    "bias": "b",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "alpha": "slopes",
}
KINDS: dict[str, Any] = {  # by the groups of Keras 3
    "dense": layers.Dense | layers.Conv2D | layers.Conv1D,
    "embedding": layers.Embedding,
    "conv1d": layers.Conv1D,
    "conv2d": layers.Conv2D,
    "depthwise_conv2d": layers.Conv2D,
    "separable_conv2d": layers.Conv2D,
    "batch_normalization": layers.BatchNorm,
    "layer_normalization": layers.LayerNorm,
    "group_normalization": layers.GroupNorm,
    "p_re_lu": layers.PReLU,
}


def load(
    path: str | PathLike[str],
    model: Sequential | None = None,
    *,
    logits: bool = False,
    input_shape: Shape | None = None,
) -> Sequential:
    """The model in a file of Keras, `.keras` or `.h5`; or the weights in one, also of a `.weights.h5`, for a model of yours.

    model: takes the weights, and is returned. Those of a file without an architecture are matched by name, and where the names
    differ, one after another by shape.
    logits: leave out a last Softmax or Sigmoid, so that the model trains with nnlite's losses.  input_shape: of a sample, where
    the file leaves sizes open. Layers that are frozen there are frozen here.
    Raises FileError for a damaged file, layers that nnlite has not, listing all, branches that do not nest, code in the file,
    and weights that do not fit, or fit in several ways, listing both sides; FileNotFoundError if there is no such file.
    """
    flag("logits", logits)
    if input_shape is not None:
        sample_shape("input_shape", input_shape)
    if not isinstance(model, Sequential | None):
        raise TypeError(f"model must be a Sequential, not {shortened(model)}")
    if model is not None:
        model._root()
    contents = read(path)
    try:
        if model is None:
            return _made(contents, path, logits, input_shape)
        take(model.vectors, _given(contents, model, path), strict=True, path=path)
    except FileError:
        raise
    except Exception as error:  # an untrusted architecture can make layers raise anything
        raise FileError(f"{shown(path)}: its architecture does not describe a model: {shortened(error)}") from error
    return model


def _made(contents: Contents, path: Any, logits: bool, input_shape: Shape | None) -> Sequential:
    if contents.config is None:
        raise FileError(f"{shown(path)} holds weights alone: give the model that they are for")
    architecture = Architecture(contents, input_shape)
    chain = without_probabilities(architecture.layers) if logits else architecture.layers
    arrays = [array for leaf in architecture.leaves for _, array in leaf.arrays]
    dtype = "float64" if any(array.dtype == "float64" for array in arrays) else "float32"
    model = Sequential(*chain, dtype=dtype)
    model.declare_shapes(architecture.in_shape)
    leaves = _declaring(model)
    if sum(p.size for _, layer in leaves for p in layer.declared.values()) > sum(array.size for array in arrays):
        raise _differ(path, architecture.leaves, leaves)  # before memory is taken
    given = _by_layer(architecture, leaves)
    model.assemble(architecture.in_shape)
    take(model.vectors, given, strict=True, path=path)
    frozen = {id(layer) for leaf in architecture.leaves if leaf.frozen for layer in leaf.layers}
    model.set_frozen({f"{path}.{name}" for path, layer in leaves if id(layer) in frozen for name in layer.declared})
    return model


def _by_layer(architecture: Architecture, leaves: Leaves) -> Given:
    """For layers that the architecture made."""
    found = dict[tuple[int, str], Named]()
    for leaf in architecture.leaves:
        places = [(id(layer), name) for layer in leaf.layers for name in layer.declared]
        if places and len(places) != len(leaf.arrays):
            raise FileError(f"layer {_shapes(leaf)} has {len(leaf.arrays)} arrays, not {len(places)}")
        found |= dict(zip(places, leaf.arrays, strict=False))
    return {
        f"{path}.{name}": (found[id(layer), name].name, ours(found[id(layer), name].array, layer, name))
        for path, layer in leaves
        for name in layer.declared
    }


def _given(contents: Contents, model: Sequential, path: Any) -> Given:
    leaves = _declaring(model)
    if contents.config is not None:
        try:
            architecture = Architecture(contents, model.in_shape)
        except FileError:
            pass  # of layers that nnlite has not, the weights may fit all the same
        else:
            there = Sequential(*architecture.layers)
            there.declare_shapes(architecture.in_shape)
            theirs = _declaring(there)
            if [layer.declared.keys() for _, layer in theirs] != [layer.declared.keys() for _, layer in leaves]:
                raise _differ(path, architecture.leaves, leaves)
            given = _by_layer(architecture, theirs)
            return {
                f"{here}.{name}": given[f"{their_path}.{name}"]
                for (their_path, layer), (here, _) in zip(theirs, leaves, strict=True)
                for name in layer.declared
            }
    return _by_name_or_order(_without_separable(contents.units()), model, leaves, path)


def _by_name_or_order(units: list[Unit], model: Sequential, leaves: Leaves, path: Any) -> Given:
    names = {unit.name: unit for unit in units}
    if names.keys() == {here for here, _ in leaves}:
        pairs = [(names[here], here, layer) for here, layer in leaves]
    else:
        _refuse_twins(model, path)
        pairs, rest = [], units
        for here, layer in leaves:
            fitting = [unit for unit in rest if _fits(unit, layer)]
            if not fitting:
                raise _differ(path, units, leaves)
            if len({_kind(unit) for unit in fitting}) > 1:
                raise FileError(
                    f"{shown(path)} does not say which of {listing(unit.name for unit in fitting)} is layer {here}: both fit"
                )
            pairs.append((fitting[0], here, layer))
            rest = [unit for unit in rest if unit is not fitting[0]]
        if rest:
            raise _differ(path, units, leaves)
    return {
        f"{here}.{name}": (there, ours(array, layer, name))
        for unit, here, layer in pairs
        for name, (there, array) in zip(layer.declared, unit.arrays, strict=True)
    }


def _refuse_twins(model: Sequential, path: Any) -> None:
    """Raise FileError if layers of the same shapes are in branches side by side: in a file they are in either order."""
    above = dict[int, set[int]]()
    seen = list[tuple[str, Any, int]]()
    for step in flatten(model.children()):
        before = {v for read in step.reads for v in (read, *above.get(read, ()))}
        shapes = [(name, parameter.shape) for name, parameter in step.layer.declared.items()] if len(step.reads) == 1 else []
        for other, their_shapes, made in seen:
            if shapes and shapes == their_shapes and made not in before:
                raise FileError(
                    f"{shown(path)} does not say which of its layers are {other} and {step.path}: their shapes are equal"
                )
        above[step.makes] = before
        seen.append((step.path, shapes, step.makes))


def _kind(unit: Unit) -> str:
    """Its group without the number: of these, those with the lower numbers come first."""
    return re.sub(r"_\d+$", "", unit.group)


def _fits(unit: Unit, layer: Layer) -> bool:
    if not isinstance(layer, KINDS.get(_kind(unit).rpartition("/")[2], Layer)):
        return False
    return len(unit.arrays) == len(layer.declared) and all(
        OURS.get(there.rpartition("/")[2].partition(":")[0], name) == name
        and ours(array, layer, name).shape == layer.declared[name].shape
        for name, (there, array) in zip(layer.declared, unit.arrays, strict=True)
    )


def _without_separable(units: list[Unit]) -> list[Unit]:
    """A separable convolution as two."""
    return [part for unit in units for part in (_halves(unit) if _is_separable(unit) else [unit])]


def _is_separable(unit: Unit) -> bool:
    shapes = [array.shape for _, array in unit.arrays]
    return len(shapes) > 1 and len(shapes[0]) == len(shapes[1]) == 4 and shapes[1][:2] == (1, 1)


def _halves(unit: Unit) -> list[Unit]:
    return [unit._replace(arrays=unit.arrays[:1]), unit._replace(arrays=unit.arrays[1:])]


def _declaring(model: Sequential) -> Leaves:
    """The layers that have values, with their paths."""
    return [(path, layer) for path, layer in walk(model.children()) if layer.declared]


def _differ(path: Any, theirs: Sequence[Unit | Leaf], leaves: Leaves) -> FileError:
    there = [_shapes(unit) for unit in theirs if unit.arrays]
    here = [f"{name} {_row(parameter.shape for parameter in layer.declared.values())}" for name, layer in leaves]
    return FileError(
        f"{shown(path)} does not fit this model: there {len(there)} layers, {listing(there, most=5, longest=45)}; "
        f"here {len(here)} layers, {listing(here, most=5, longest=45)}"
    )


def _shapes(unit: Unit | Leaf) -> str:
    return f"{unit.name} {_row(array.shape for _, array in unit.arrays)}"


def _row(shapes: Any) -> str:
    return " ".join(str(tuple(shape)) for shape in shapes)
