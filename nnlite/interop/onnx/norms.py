"""Operators that normalise: by statistics kept from training, or of each sample."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nnlite import layers
from nnlite.interop.onnx.axes import flat, lengths
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.reading import Reading, Value


def _batch_norm(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    gamma, beta, mean, var = (reading.constant(node, i) for i in range(1, 5))
    if node.attribute("training_mode", 0) or (node.version < 9 and not node.attribute("spatial", 1)):
        raise Unsupported("it is in training mode" if node.version >= 9 else "spatial=0 normalises each pixel by itself")
    value, order = reading.channels(value)
    if {v.shape for v in (gamma, beta, mean, var)} != {(len(order),)}:
        raise Unsupported(f"its values have the shapes {gamma.shape}, {mean.shape}, here are {len(order)} channels")
    layer = layers.BatchNorm(momentum=node.attribute("momentum", 0.9), eps=node.attribute("epsilon", 1e-5))
    arrays = {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
    return reading.add(value, layer, **{name: v[order] for name, v in arrays.items()})


def _layer_norm(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    gamma, beta = reading.constant(node, 1), reading.constant(node, 2)
    rank = len(value.axes.shape) + 1
    first = node.attribute("axis", -1) % rank
    if first == 0:
        raise Unsupported("it normalises over the batch")
    value, order = reading.columns(value, flat(value.axes.file[first - 1 :]))
    arrays = {"gamma": gamma, "beta": beta}
    given = {name: v.reshape(-1)[order] for name, v in arrays.items() if v is not None}
    layer = layers.LayerNorm(eps=node.attribute("epsilon", 1e-5), scale="gamma" in given, shift="beta" in given)
    return reading.add(value, layer, **given)


def _instance_norm(reading: Reading, node: Operation) -> Value:
    """Of each of the file's channels: groups of channels here, if a Reshape has made them so."""
    value = reading.data(node)
    file, here = value.axes.file, value.axes.here
    if len(file) < 2 or here[-1][: len(file[0])] != file[0]:
        raise Unsupported("its channels are no groups of neighbouring channels here")
    (groups,), (channels,) = lengths(file[:1]), lengths(here[-1:])
    return _group_norm(reading, node, value, groups, channels)


def _group_normalization(reading: Reading, node: Operation) -> Value:
    value = reading.data(node)
    value = reading.stored(value, [*reading.channels(value)[0].axes.here[:-1], value.axes.file[0]])
    return _group_norm(reading, node, value, node.attribute("num_groups"), value.axes.shape[0])


def _group_norm(reading: Reading, node: Operation, value: Value, groups: int, channels: int) -> Value:
    """gamma and beta: of each channel, or of each group."""
    given = {"gamma": reading.constant(node, 1), "beta": reading.constant(node, 2)}
    if any(v.shape not in ((groups,), (channels,)) for v in given.values()):
        raise Unsupported(f"its values have the shapes {[v.shape for v in given.values()]}, here are {channels} channels")
    wanted: dict[str, Any] = {
        name: np.repeat(v, channels // len(v)) for name, v in given.items() if (v != (name == "gamma")).any()
    }
    layer = layers.GroupNorm(groups, eps=node.attribute("epsilon", 1e-5), scale="gamma" in wanted, shift="beta" in wanted)
    return reading.add(value, layer, **wanted)


def _softmax(reading: Reading, node: Operation) -> Value:
    value, newer = reading.data(node), node.version >= 13
    rank = len(value.axes.shape) + 1
    place = node.attribute("axis", -1 if newer else 1)
    place += rank * (place < 0)
    if not 1 <= place < rank:
        raise Unsupported("it runs over the batch")
    file = value.axes.file
    value, _ = reading.columns(value, file[place - 1] if newer else flat(file[place - 1 :]))
    return reading.add(value, layers.Softmax())


NORMS: dict[str, Callable[[Reading, Operation], Value]] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_normalization,
    "Softmax": _softmax,
}
