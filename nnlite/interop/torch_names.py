"""Which module of a PyTorch model is which layer here: by the names of ResNets, or one after another."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite import layers
from nnlite.arguments import listing
from nnlite.backend import Array
from nnlite.errors import FileError
from nnlite.layers.base import Layer
from nnlite.model import Sequential

Modules = dict[str, dict[str, Any]]  # {"conv1": {"weight": ...}}
BLOCK = re.compile(r"(?P<before>.*?)layer(?P<stage>\d+)\.(?P<place>\d+)\.")
DENSE = ("fc", "linear", "classifier")


def by_module(named: dict[str, Any]) -> Modules:
    """The values of each module by their own names."""
    modules: Modules = {}
    for name, value in named.items():
        module, _, kind = name.rpartition(".")
        modules.setdefault(module, {})[kind] = value
    return modules


def of_resnet(arrays: dict[str, Array], model: Sequential) -> dict[str, Array] | None:
    """The arrays of a ResNet by the names of the layers here; None unless the model has as many residual blocks.

    Names are torchvision's, or those of its kind for CIFAR: conv1, bn1, layer2.0.conv1, layer2.0.downsample.0 or shortcut.0, fc
    or linear, behind any prefix. A shortcut without weights there, every second pixel with zeros around the channels, is a
    convolution here: its filters are made.
    """
    theirs = by_module(arrays)
    blocks = {found[0]: found for name in theirs if (found := BLOCK.match(name))}
    there = sorted(blocks, key=lambda prefix: (int(blocks[prefix]["stage"]), int(blocks[prefix]["place"])))
    here = {path: layer for path, layer in model.children().items() if isinstance(layer, layers.Residual)}
    if not there or len(there) != len(here):
        return None
    before = blocks[there[0]]["before"]
    rest = {path: layer for path, layer in model.children().items() if path not in here}
    paths = _numbered(before, rest, "", theirs)
    made = dict[str, Array]()
    for prefix, (path, block) in zip(there, here.items(), strict=True):
        main, shortcut = block.branches_by_name()
        paths |= _numbered(prefix, main, f"{path}.", theirs)
        side = next((name for name in ("downsample", "shortcut") if f"{prefix}{name}.0" in theirs), None)
        if side is not None:
            paths |= {f"{prefix}{side}.{i}": f"{path}.{name}" for i, name in enumerate(shortcut)}
        elif len(shortcut) == 1:
            made |= {f"{path}.{name}.weight": _around(layer.declared["W"].shape) for name, layer in shortcut.items()}
    return made | {f"{paths.get(m, m)}.{kind}": array for m, values in theirs.items() for kind, array in values.items()}


def _numbered(prefix: str, chain: dict[str, Layer], path: str, theirs: Modules) -> dict[str, str]:
    """Convolutions and norms of a chain, which are numbered, and its Dense layer."""
    convolutions = [name for name, layer in chain.items() if isinstance(layer, layers.Conv2D)]
    norms = [name for name, layer in chain.items() if isinstance(layer, layers.BatchNorm)]
    paths = {f"{prefix}conv{i}": path + name for i, name in enumerate(convolutions, 1)}
    paths |= {f"{prefix}bn{i if f'{prefix}bn{i}' in theirs else ''}": path + name for i, name in enumerate(norms, 1)}
    dense = [f"{prefix}{name}" for name in DENSE if f"{prefix}{name}" in theirs]
    return paths | dict(
        zip(dense, (path + name for name, layer in chain.items() if isinstance(layer, layers.Dense)), strict=False)
    )


def _around(shape: tuple[int, ...]) -> Array:
    """Filters (F, C, 1, 1) that pass the channels, with zeros before and behind."""
    filters, _, _, channels = shape
    return np.eye(filters, channels, -((filters - channels) // 2), dtype=np.float32)[:, :, None, None]


def in_order(arrays: dict[str, Array], ours: Modules, fits: Callable[[Array, Any], bool]) -> dict[str, Array]:
    """The arrays by the names of the layers here, module after module.

    ours: the slots of each layer.  fits: whether an array fits a slot. Names in alphabetical order, as in a safetensors file,
    say nothing about the order of the modules: those of equal shapes are then told apart by their numbers alone.
    """
    theirs = by_module(arrays)
    ordered = list(theirs) != sorted(theirs)
    pairs = list(zip(theirs, ours, strict=False)) if ordered else _by_shape(theirs, ours, fits)
    if len(theirs) != len(ours) or len(pairs) != len(ours) or any(theirs[m].keys() != ours[here].keys() for m, here in pairs):
        there = [f"{name} {array.shape}" for name, array in arrays.items()]
        own = [f"{path}.{kind} {slot.parameter.shape}" for path, slots in ours.items() for kind, slot in slots.items()]
        raise FileError(
            f"the weights are of other layers: there {len(theirs)} modules, {listing(there, most=6, longest=40)}, "
            f"here {len(ours)} layers, {listing(own, most=6, longest=40)}; give names="
        )
    return {f"{here}.{kind}": array for module, here in pairs for kind, array in theirs[module].items()}


def _by_shape(theirs: Modules, ours: Modules, fits: Callable[[Array, Any], bool]) -> list[tuple[str, str]]:
    rest, pairs = sorted(theirs, key=_numbers), list[tuple[str, str]]()
    for here, slots in ours.items():
        fitting = [
            m for m in rest if theirs[m].keys() == slots.keys() and all(fits(theirs[m][kind], slots[kind]) for kind in slots)
        ]
        if len({re.sub(r"\d+", "", m) for m in fitting}) > 1:
            raise FileError(f"which of {listing(fitting, most=5)} is layer {here}? They fit, in no order; give names=")
        if fitting:
            pairs.append((fitting[0], here))
            rest.remove(fitting[0])
    return pairs


def _numbers(name: str) -> list[Any]:
    """Sorts features.2 before features.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
