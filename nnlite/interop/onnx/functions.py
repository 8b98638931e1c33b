"""Operators that are functions of each number, and arithmetic.

Files spell some functions in many ways: GELU as x (1 + erf(x / sqrt 2)) / 2, SiLU as x sigmoid(x). So where two values follow
from one, or a node has no layer, the function itself is followed, and at each node compared with those that layers compute.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from nnlite import layers
from nnlite.backend import Array
from nnlite.interop.graph import add
from nnlite.interop.onnx.axes import Axis
from nnlite.interop.onnx.operation import Operation, Unsupported
from nnlite.interop.onnx.reading import Function, Reading, Value, as_image
from nnlite.layers.base import Context, Layer, Shard

_FLOATS = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16
_INTEGERS = TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.INT16, TensorProto.UINT8, TensorProto.UINT16

# ---- functions that layers compute


def _activation(make: Callable[[Operation], Layer]) -> Any:
    def read(reading: Reading, node: Operation) -> Value:
        value, layer = reading.data(node, pending=True), make(node)
        if value.pending:
            return _followed(reading, node, value, lambda a: _computed(layer, a))
        return _layer(reading, value, layer)

    return read


def _layer(reading: Reading, value: Value, layer: Layer) -> Value:
    made = reading.add(value, layer)
    made.of = value, lambda a: _computed(layer, a)
    return made


def _computed(layer: Layer, a: Array) -> Array:
    """What a layer without parameters makes of an array."""
    return np.asarray(layer.forward(a, Context(layer.backend, 0, Shard(0), a.dtype)))


def _prelu(reading: Reading, node: Operation) -> Value:
    value, slopes = reading.affine(reading.data(node), reading.constant(node, 1))
    return reading.add(value, layers.PReLU(shared=slopes.ndim == 0), slopes=slopes.reshape(-1))


def _swish(reading: Reading, node: Operation) -> Value:
    alpha, value = node.attribute("alpha", 1.0), reading.data(node)
    if alpha == 1:
        return _layer(reading, value, layers.SiLU())
    if alpha <= 0:
        raise Unsupported(f"alpha={alpha} is not positive")
    scaled = reading.add(value, layers.Normalize(0, 1 / alpha))
    return reading.add(reading.add(scaled, layers.SiLU()), layers.Normalize(0, alpha))


def _cast(reading: Reading, node: Operation) -> Value:
    to = node.attribute("to")
    if to in _FLOATS:
        return reading.data(node)
    if to not in _INTEGERS:
        raise Unsupported("it makes other than numbers")
    return _followed(reading, node, reading.data(node, pending=True), np.trunc)


def _log_softmax(reading: Reading, node: Operation) -> Value:
    raise Unsupported("the losses take logits: logits=True leaves it out at the end of a model")


# ---- arithmetic

_OF_MORE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sum": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Max": np.maximum,
    "Min": np.minimum,
    "Greater": np.greater,
    "Less": np.less,
    "Where": np.where,
}
_OF_ONE: dict[str, Function] = {
    "Erf": np.vectorize(math.erf, otypes=[float]),
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Neg": np.negative,
    "Abs": np.abs,
    "Reciprocal": np.reciprocal,
}


def _of_one(reading: Reading, node: Operation) -> Value:
    return _followed(reading, node, reading.data(node, pending=True), _OF_ONE[node.kind])


def _clip(reading: Reading, node: Operation) -> Value:
    bounds = [
        reading.constant(node, 1, node.attribute("min", -np.inf)),
        reading.constant(node, 2, node.attribute("max", np.inf)),
    ]
    least, most = (float(v) for v in bounds)
    return _followed(reading, node, reading.data(node, pending=True), lambda a: np.clip(a, least, most))


def _arithmetic(reading: Reading, node: Operation) -> Value:
    inputs = [reading.values[name] for name in node.inputs]
    values = [v for v in inputs if isinstance(v, Value)]
    pending, rank = [v for v in values if v.pending], len(values[0].axes.shape) + 1
    for value in values:
        if value.pads:
            raise Unsupported("its input is padded, which only a convolution or a pooling takes up")
    if any(not isinstance(v, Value) and np.ndim(v) > rank for v in inputs):
        raise Unsupported("its constant has more axes than the other input")
    if len(values) == len(inputs) and node.kind in ("Add", "Sum") and not pending:
        return _sum(reading, values)
    if len(values) == 1 and len(inputs) == 2 and not pending and _is_affine(node, inputs):
        first = inputs[0] is values[0]
        return _affine(reading, node, values[0], inputs[1 if first else 0], first)
    return _of_values(reading, node, inputs, values)


def _is_affine(node: Operation, inputs: list[Any]) -> bool:
    return node.kind in ("Add", "Sum", "Mul", "Sub") or (node.kind == "Div" and isinstance(inputs[0], Value))


def _affine(reading: Reading, node: Operation, value: Value, numbers: Array, first: bool) -> Value:
    """y = scale a + shift: in the layer before, or as Normalize."""
    scale = shift = None
    value, numbers = reading.affine(value, numbers)
    if node.kind == "Div" and not numbers.all():
        raise Unsupported("it divides by 0")
    if node.kind in ("Mul", "Div"):
        scale = numbers if node.kind == "Mul" else 1 / numbers
    else:
        scale = None if first or node.kind != "Sub" else np.asarray(-1.0)
        shift = numbers if first is False or node.kind != "Sub" else -numbers
    return _changed(reading, node, value, scale, shift, 0 if first else 1) or _line(reading, value, scale, shift)


def _line(reading: Reading, value: Value, scale: Array | None, shift: Array | None) -> Value:
    """y = scale a + shift, by layers of their own."""
    made = value if scale is None else _scaled(reading, value, scale)
    made = made if shift is None else reading.add(made, layers.Normalize(_numbers(-shift), 1.0))
    if all(v is None or v.ndim == 0 for v in (scale, shift)):
        s, t = 1.0 if scale is None else float(scale), 0.0 if shift is None else float(shift)
        made.of = value, lambda a: s * a + t
    return made


def _changed(
    reading: Reading, node: Operation, value: Value, scale: Array | None, shift: Array | None, place: int
) -> Value | None:
    """The value, its layer with other parameters, if the layer has some and nothing else reads what it makes."""
    layer, arrays = value.layer, value.arrays
    if value.name not in reading.nodes or not reading.read_once(node, place):
        return None
    if isinstance(layer, layers.Normalize) and shift is None and scale is not None and (scale > 0).all():
        if np.ndim(layer.std) or layer.std != 1:
            return None
        reading.change(value, arrays, std=_numbers(1 / scale))
        return value
    if isinstance(layer, layers.LayerNorm | layers.GroupNorm):
        return _changed_norm(reading, value, layer, scale, shift)
    if not isinstance(layer, layers.Dense | layers.Conv2D | layers.BatchNorm):
        return None
    weight, bias = ("gamma", "beta") if isinstance(layer, layers.BatchNorm) else ("W", "b")
    s = 1.0 if scale is None else scale
    changed = arrays | {
        weight: arrays[weight] * np.reshape(s, np.shape(s) + (1,) * (arrays[weight].ndim - 1) * bool(np.ndim(s)))
    }
    b = arrays.get(bias, 0.0) * s + (0.0 if shift is None else shift)
    if bias in arrays or shift is not None:
        changed[bias] = np.broadcast_to(b, (len(arrays[weight]),))
    reading.change(value, changed, **({} if weight == "gamma" else {"bias": bias in changed}))
    return value


def _changed_norm(
    reading: Reading, value: Value, layer: layers.LayerNorm | layers.GroupNorm, scale: Array | None, shift: Array | None
) -> Value | None:
    """A norm of samples that gets what it does not have yet."""
    if (scale is not None and (layer.scale or layer.shift)) or (shift is not None and layer.shift):
        return None
    name, values = ("beta", shift) if scale is None else ("gamma", scale)
    arrays = value.arrays | {name: np.broadcast_to(np.asarray(values), layer.in_shape[-1:])}
    reading.change(value, arrays, **{"scale" if name == "gamma" else "shift": True})
    return value


def _scaled(reading: Reading, value: Value, scale: Array) -> Value:
    if (scale > 0).all():
        return reading.add(value, layers.Normalize(0.0, _numbers(1 / scale)))
    channels = math.prod(part.size for part in value.axes.here[-1]) if value.axes.here else 1
    value = reading.stored(value, as_image(value.axes.here))
    W = np.broadcast_to(scale, (channels,)).reshape(-1, 1, 1, 1)
    return reading.add(value, layers.Conv2D(channels, 1, groups=channels, bias=False), W=W)


def _numbers(values: Array) -> Any:
    """One number, or a tuple."""
    return float(np.ravel(values)[0]) if (values == np.ravel(values)[0]).all() else tuple(map(float, values))


def _of_values(reading: Reading, node: Operation, inputs: list[Any], values: list[Value]) -> Value:
    """A function of several values that follow from one, and of numbers."""
    function, nodes = _OF_MORE[node.kind], (*dict.fromkeys(each for v in values for each in v.pending), node)
    along = {v.along for v in values if v.along}
    root = _common(values)
    if root is None or len(along) > 1 or any(not isinstance(v, Value) and np.size(v) != 1 for v in inputs):
        raise Unsupported("no layer computes this of such inputs", nodes)
    value, functions = root
    numbers = [None if isinstance(v, Value) else float(np.reshape(v, ())) for v in inputs]

    def computed(a: Array) -> Array:
        of_values = iter(functions)
        return np.asarray(function(*(next(of_values)(a) if number is None else number for number in numbers)))

    return _named(reading, value, computed, nodes, next(iter(along), ()))


def _sum(reading: Reading, values: list[Value]) -> Value:
    first, *others = values
    stored = [first, *(reading.stored(value, value.axes.like(first.axes)) for value in others)]
    return reading.join(stored, add, first.axes) if others else first


# ---- functions that are followed


def _followed(reading: Reading, node: Operation, value: Value, function: Function) -> Value:
    """The value of a function of each number of another."""
    if not value.pending or value.of is None:
        return _named(reading, value, function, (node,), ())
    root, f = value.of
    return _named(reading, root, lambda a: function(f(a)), (*value.pending, node), value.along)


def _common(values: list[Value]) -> tuple[Value, list[Function]] | None:
    """The nearest value that all follow from, and their functions of it."""
    chains = [_chain(value) for value in values]
    for value, _ in chains[0]:
        functions = [next((f for other, f in chain if _is_same(value, other)), None) for chain in chains]
        if None not in functions:
            return value, functions  # type: ignore[return-value]
    return None


def _is_same(value: Value, other: Value) -> bool:
    return value.name == other.name and (value.axes.file, value.axes.here) == (other.axes.file, other.axes.here)


def _chain(value: Value) -> list[tuple[Value, Function]]:
    chain: list[tuple[Value, Function]] = [] if value.pending else [(value, lambda a: a)]
    f: Function = lambda a: a  # noqa: E731
    while value.of is not None:
        value, step = value.of
        f = _then(step, f)
        chain.append((value, f))
    return chain


def _then(first: Function, second: Function) -> Function:
    return lambda a: second(first(a))


def mean(reading: Reading, node: Operation, value: Value, along: Axis) -> Value:
    """The mean over an axis of the file, which stays as one of length 1: part of a LayerNorm, if anything."""
    if value.along not in ((), along):
        raise Unsupported("it takes means over several axes", (*value.pending, node))
    root, f = value.of if value.pending and value.of else (value, lambda a: a)
    return _pending(root, lambda a: f(a).mean(axis=-1, keepdims=True), (*value.pending, node), along)


_POINTS = np.concatenate([np.linspace(-12, 12, 97), np.linspace(-1, 1, 41)]).reshape(6, 23)


def _named(reading: Reading, value: Value, function: Function, nodes: tuple[Operation, ...], along: Axis) -> Value:
    """The value of a layer that computes this function of another; one that is pending if none does."""
    with np.errstate(all="ignore"):
        for root, f in _chain(value):
            made = _norm(reading, root, _then(f, function), along) if along else _activated(reading, root, _then(f, function))
            if made is not None:
                return made
    return _pending(value, function, nodes, along)


def _norm(reading: Reading, value: Value, function: Function, along: Axis) -> Value | None:
    """A LayerNorm without gamma and beta, if the function is one. Its eps follows from what it makes of two small numbers."""
    s = 1e-3
    y = float(np.asarray(function(np.array([[-s, s]])))[0, -1])
    eps = round(s * s * (1 / (y * y) - 1), 15) if y else -1.0
    normalized = (_POINTS - _POINTS.mean(axis=-1, keepdims=True)) / np.sqrt(_POINTS.var(axis=-1, keepdims=True) + max(eps, 0))
    if not np.allclose(normalized, function(_POINTS), 1e-6, 1e-6):
        return None
    value, _ = reading.columns(value, along)
    return reading.add(value, layers.LayerNorm(eps=eps, scale=False, shift=False))


def _activated(reading: Reading, value: Value, function: Function) -> Value | None:
    """An activation, or a line, if the function is one."""
    y = np.asarray(function(_POINTS))
    at_minus_1, at_0, at_1 = (float(v) for v in np.asarray(function(np.array([[-1.0, 0.0, 1.0]])))[0])
    for layer in _candidates(at_minus_1):
        if np.allclose(_computed(layer, _POINTS), y, 1e-6, 1e-6):
            return _layer(reading, value, layer)
    scale, shift = at_1 - at_0, at_0
    if not scale or not np.allclose(scale * _POINTS + shift, y, 1e-6, 1e-6):
        return None
    numbers = [None if n == kept else np.asarray(n) for n, kept in ((scale, 1), (shift, 0))]
    return value if numbers == [None, None] else _line(reading, value, *numbers)


def _pending(value: Value, function: Function, nodes: tuple[Operation, ...], along: Axis) -> Value:
    pending = Value(value.name, value.axes)
    pending.of, pending.pending, pending.along = (value, function), nodes, along
    return pending


def _candidates(below: float) -> list[Layer]:
    """Layers that compute functions.   below: the value at -1"""
    smooth = layers.GELU(), layers.GELU("tanh"), layers.SiLU(), layers.Sigmoid(), layers.Tanh(), layers.Softplus()
    found: list[Layer] = [layers.ReLU(), *smooth]
    if -1 < below < 0:
        found.append(layers.LeakyReLU(-below))
    if below < 0:
        found.append(layers.ELU(below / math.expm1(-1)))
    return found


FUNCTIONS: dict[str, Callable[[Reading, Operation], Value]] = {
    "Relu": _activation(lambda node: layers.ReLU()),
    "LeakyRelu": _activation(lambda node: layers.LeakyReLU(node.attribute("alpha", 0.01))),
    "PRelu": _prelu,
    "Elu": _activation(lambda node: layers.ELU(node.attribute("alpha", 1.0))),
    "Sigmoid": _activation(lambda node: layers.Sigmoid()),
    "Tanh": _activation(lambda node: layers.Tanh()),
    "Softplus": _activation(lambda node: layers.Softplus()),
    "Gelu": _activation(lambda node: layers.GELU(node.attribute("approximate", "none"))),
    "Swish": _swish,
    "LogSoftmax": _log_softmax,
    "Cast": _cast,
    "Clip": _clip,
    **dict.fromkeys(_OF_MORE, _arithmetic),
    **dict.fromkeys(_OF_ONE, _of_one),
}
