"""Nodes whose inputs are all known: their outputs, computed while reading. Most compute shapes, some prepare weights."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from nnlite.backend import Array
from nnlite.interop.onnx.files import array
from nnlite.interop.onnx.operation import Operation, Unsupported

LARGEST = 1 << 27  # values: more than any layer of published networks has
BATCH = 987_654_321  # stands for the size of the batch in a computed shape


def fold(node: Operation, inputs: list[Any]) -> Array:
    """The first output of a node that `CONSTANT` has. inputs: arrays, None for one left out."""
    with np.errstate(all="ignore"):
        return np.asarray(CONSTANT[node.kind](node, *inputs))


def option(node: Operation, name: str, given: Any = None) -> list[int] | None:
    """A list that is an attribute in earlier versions of an operator, an input in later ones."""
    value = node.attribute(name) if given is None else given
    return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]


def _bounded(size: float) -> None:
    if size > LARGEST:
        raise Unsupported(f"it makes {size:,} values, more than {LARGEST:,}")


def _constant(node: Operation) -> Any:
    if node.has("value"):
        return array(node.attribute("value"))
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if node.has(name):
            return np.asarray(node.attribute(name), np.float32 if "float" in name else np.int64)
    raise Unsupported("it is a text or sparse")


def _constant_of_shape(node: Operation, shape: Array) -> Any:
    _bounded(math.prod(map(int, shape)))
    value = array(node.attribute("value")).reshape(-1)[0] if node.has("value") else np.float32(0)
    return np.broadcast_to(value, [int(n) for n in shape])


def _by_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    def folded(node: Operation, a: Array, *others: Array) -> Any:
        for b in others:
            _bounded(math.prod(np.broadcast_shapes(a.shape, b.shape)))
            a = function(a, b).astype(a.dtype)
        return a

    return folded


def _where(node: Operation, condition: Array, a: Array, b: Array) -> Any:
    _bounded(math.prod(np.broadcast_shapes(condition.shape, a.shape, b.shape)))
    return np.where(condition, a, b)


def _divided(a: Array, b: Array) -> Any:
    return np.trunc(a / b) if a.dtype.kind in "iu" else a / b


def _gather(node: Operation, a: Array, places: Array) -> Any:
    axis = node.attribute("axis", 0)
    _bounded(a.size // max(1, a.shape[axis]) * places.size)
    return np.take(a, places.astype(np.int64), axis)


def _slice(node: Operation, a: Array, *inputs: Any) -> Any:
    names = ("starts", "ends", "axes", "steps")
    given = [option(node, name, v) for name, v in zip(names, (*inputs, *[None] * (4 - len(inputs))), strict=True)]
    starts, ends = given[0] or [], given[1] or []
    axes, steps = given[2] or range(len(starts)), given[3] or [1] * len(starts)
    slices = [slice(None)] * a.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        slices[axis] = slice(start, None if step < 0 and end < -a.shape[axis] else end, step)
    return a[tuple(slices)]


def _squeeze(node: Operation, a: Array, axes: Any = None) -> Any:
    axes = option(node, "axes", axes)
    return np.squeeze(a, None if axes is None else tuple(axes))


def _unsqueeze(node: Operation, a: Array, axes: Any = None) -> Any:
    return np.expand_dims(a, tuple(option(node, "axes", axes) or ()))


def _reshape(node: Operation, a: Array, shape: Any = None) -> Any:
    sizes = option(node, "shape", shape) or []
    keep = not node.attribute("allowzero", 0)
    return a.reshape([a.shape[i] if n == 0 and keep else n for i, n in enumerate(sizes)])


def _flatten(node: Operation, a: Array) -> Any:
    axis = node.attribute("axis", 1)
    return a.reshape(math.prod(a.shape[:axis]), -1)


def _cast(node: Operation, a: Array) -> Any:
    if node.attribute("to") == TensorProto.STRING:
        raise Unsupported("it makes texts")
    return a.astype(helper.tensor_dtype_to_np_dtype(node.attribute("to")))


def _range(node: Operation, start: Array, limit: Array, delta: Array) -> Any:
    start, limit, delta = (v.reshape(-1)[0] for v in (start, limit, delta))
    _bounded((limit - start) / delta)
    return np.arange(start, limit, delta)


def _expand(node: Operation, a: Array, shape: Array) -> Any:
    whole = np.broadcast_shapes(a.shape, tuple(map(int, shape)))
    _bounded(math.prod(whole))
    return np.broadcast_to(a, whole)


def _matmul(node: Operation, a: Array, b: Array) -> Any:
    _bounded(math.prod(a.shape[:-1]) * math.prod(b.shape) // max(1, a.shape[-1]))
    return a @ b


def _concat(node: Operation, *inputs: Array) -> Any:
    _bounded(sum(a.size for a in inputs))
    return np.concatenate(inputs, node.attribute("axis"))


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    def folded(node: Operation, a: Array, axes: Any = None) -> Any:
        axes = option(node, "axes", axes)
        return function(a, axis=None if axes is None else tuple(axes), keepdims=bool(node.attribute("keepdims", 1))).astype(
            a.dtype
        )

    return folded


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, a: function(a).astype(a.dtype)


CONSTANT: dict[str, Callable[..., Any]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Add": _by_pairs(np.add),
    "Sub": _by_pairs(np.subtract),
    "Mul": _by_pairs(np.multiply),
    "Div": _by_pairs(_divided),
    "Pow": _by_pairs(np.power),
    "Sum": _by_pairs(np.add),
    "Max": _by_pairs(np.maximum),
    "Min": _by_pairs(np.minimum),
    "Greater": lambda node, a, b: a > b,
    "Less": lambda node, a, b: a < b,
    "Equal": lambda node, a, b: a == b,
    "Not": lambda node, a: ~a,
    "Where": _where,
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Sqrt": _elementwise(np.sqrt),
    "Exp": _elementwise(np.exp),
    "Log": _elementwise(np.log),
    "Floor": _elementwise(np.floor),
    "Ceil": _elementwise(np.ceil),
    "Reciprocal": _elementwise(np.reciprocal),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMean": _reduced(np.mean),
    "MatMul": _matmul,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda node, a: np.transpose(a, node.attribute("perm")),
    "Cast": _cast,
    "Range": _range,
    "Expand": _expand,
    "Shape": lambda node, a: np.asarray(a.shape[node.attribute("start", 0) : node.attribute("end")], np.int64),
    "Size": lambda node, a: np.asarray(a.size, np.int64),
    "Identity": lambda node, a: a,
    "Dropout": lambda node, a, *options: a,
}
