"""What in an input a prediction rests on: four maps of the same question, each a few lines over the model's gradient."""

from itertools import product
from typing import Any

import numpy as np

from nnlite.arguments import listing, number, shortened, whole
from nnlite.backend import Array, host_array, single_threaded_blas
from nnlite.engine.engine import Engine
from nnlite.engine.plan import flatten
from nnlite.errors import DataError, ShapeError, StateError
from nnlite.layers.base import Context, Layer, Shape
from nnlite.model import Sequential, needs_model


def saliency(model: Sequential, x: Any, classes: Any = None) -> Array:
    """|dz_c / dx|: how much a small change of each value moves the output of class c.     x, result: (N, *input_shape)

    classes: c, a class or one for each sample; default: the class of the largest output.  The model runs as in inference.
    Raises DataError for a class that the model has not, ShapeError for inputs that do not fit and outputs that are no vectors,
    StateError for a model of ids, which have no gradient.  Source: Simonyan et al., 2013, arXiv:1312.6034.
    """
    x = _real(model, x)
    return np.abs(_gradient(model, x, _one_hot(model, x, classes)))


def integrated_gradients(model: Sequential, x: Any, classes: Any = None, *, baseline: Any = 0.0, steps: int = 64) -> Array:
    """(x - x0) times the mean of dz_c / dx on the straight line from the baseline x0 to x.     x, result: (N, *input_shape)

    The values of a sample add up to z_c(x) - z_c(x0), but for the error of the integral, a Gauss-Legendre sum of `steps`
    points: near rounding for smooth activations; for ReLU and max-pooling, whose gradient jumps, it shrinks with more steps.

    classes: as for `saliency`.  baseline: a number, one sample or one for each, whose prediction says nothing: black, the mean.
    Raises what `saliency` does, and ShapeError for a baseline that does not fit.  Source: Sundararajan et al., 2017,
    arXiv:1703.01365.
    """
    x = _real(model, x)
    one_hot, x0 = _one_hot(model, x, classes), _baseline(model, x, baseline)
    places, weights = np.polynomial.legendre.leggauss(whole("steps", steps, 1))
    mean = np.zeros(x.shape)
    for place, weight in zip((1 + places) / 2, weights / 2, strict=True):
        mean += weight * _gradient(model, x0 + x.dtype.type(place) * (x - x0), one_hot)
    return np.asarray((x - x0) * mean, model.dtype)


def grad_cam(model: Sequential, x: Any, layer: int | str, classes: Any = None) -> Array:
    """max(0, sum of w_k A_k), w_k = the mean of dz_c / dA_k over the pixels: where a layer's outputs A speak for class c.

    x: (N, *input_shape)   A: (N, H, W, K), or (N, T, K) of sequences   result: (N, H, W) or (N, T), of the size of A

    layer: its number, or its path such as "3.0", as in the names of parameters; usual is the last convolution, or the
    activation after it.
    classes: as for `saliency`.  Raises what `saliency` does, ValueError for a layer that is not there, listing those that are,
    ShapeError for one whose outputs are vectors.  Source: Selvaraju et al., 2017, arXiv:1610.02391.
    """
    path = str(layer)
    watched = _layer(model, path)
    x = _real(model, x)
    delta = _one_hot(model, x, classes)
    seen = _Seen(len(x), watched.out_shape, model.dtype)
    engine = Engine(model.children(), model.in_shape, model.vectors, model.seed, rewrite=False)
    with (
        single_threaded_blas,
        model.lock.reading(),
        engine.wrapped(lambda at, inner: _Watched(inner, seen) if at == path else inner, rewrite=False),
    ):
        engine.input_gradient(model.backend.asarray(x), model.backend.asarray(delta))
    w = seen.deltas.mean(axis=tuple(range(1, seen.deltas.ndim - 1)), keepdims=True)
    return np.maximum((w * seen.outputs).sum(axis=-1), 0)


def occlusion(model: Sequential, x: Any, window: Any, classes: Any = None, *, stride: Any = None, fill: float = 0.0) -> Array:
    """z_c(x) - z_c(x with a window filled), for windows all over the sample.     x: (N, *size, C)   result: (N, *size)

    A place in several windows gets their mean; a window covers all channels. Vectors (N, n) have size (n,), and so have ids.

    window: a whole number, or one for each axis of the size.  classes: as for `saliency`.  stride: from one window to the next,
    as `window`; default: the window.  fill: what a covered value, or id, becomes.
    Raises DataError and ShapeError as `saliency`; ShapeError for a window larger than the sample or a stride that skips places.
    Source: Zeiler and Fergus, 2014, arXiv:1311.2901.
    """
    number("fill", fill)
    x = _ids(model, x, fill) if _takes_ids(model) else _values(model, x)
    one_hot, size = _one_hot(model, x, classes), model.in_shape[:-1] or model.in_shape
    widths = _per_axis("window", window, size, size)
    strides = _per_axis("stride", window if stride is None else stride, size, widths)
    whole_output = (_outputs(model, x) * one_hot).sum(axis=1)
    total, count = np.zeros((len(x), *size)), np.zeros(size)
    starts = [range(0, n - width + step, step) for n, width, step in zip(size, widths, strides, strict=True)]
    for place in product(*starts):
        covered = tuple(slice(start, start + width) for start, width in zip(place, widths, strict=True))
        filled = x.copy()
        filled[:, *covered] = fill
        total[:, *covered] += (whole_output - (_outputs(model, filled) * one_hot).sum(axis=1)).reshape(-1, *[1] * len(size))
        count[covered] += 1
    return np.asarray(total / count, model.dtype)


class _Seen:
    """The outputs of a layer for a whole batch, and their deltas."""

    def __init__(self, n: int, shape: Shape, dtype: str) -> None:
        self.outputs, self.deltas = np.empty((n, *shape), dtype), np.empty((n, *shape), dtype)


class _Watched(Layer):
    """A layer whose outputs and their deltas are copied, shard by shard."""

    def __init__(self, layer: Layer, seen: _Seen) -> None:
        self.layer, self.seen = layer, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def forward(self, a: Array, ctx: Context) -> Array:
        y = self.layer.forward(a, ctx)
        self._keep(self.seen.outputs, y, ctx)
        return y

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        self._keep(self.seen.deltas, delta, ctx)
        return self.layer.backward(delta, ctx)

    def _keep(self, room: Array, values: Array, ctx: Context) -> None:
        room[ctx.shard.start : ctx.shard.start + len(values)] = ctx.backend.to_host(values)


def _layer(model: Sequential, path: str) -> Layer:
    """The layer at a path, if it gives images or sequences."""
    needs_model(model)
    found = {step.path: step.layer for step in flatten(model.children()) if len(step.reads) == 1}
    if path not in found:
        shown = listing((f"{path} {shortened(layer)}" for path, layer in found.items()), most=12)
        raise ValueError(f"there is no layer {shortened(path)}: there are {shown}")
    if len(found[path].out_shape) < 2:
        raise ShapeError(f"layer {path} {shortened(found[path])} gives vectors {found[path].out_shape}: a map needs places")
    return found[path]


def _takes_ids(model: Sequential) -> bool:
    needs_model(model)
    return model.plan.takes_integers


def _ids(model: Sequential, x: Any, fill: float) -> Array:
    """The ids, wide enough for the one that covers others."""
    if fill != int(fill):
        raise DataError(f"fill must be an id, a whole number, not {shortened(fill)}")
    x = host_array(x)
    return x.astype(np.int64) if x.dtype.kind in "iu" else x


def _real(model: Sequential, x: Any) -> Array:
    if _takes_ids(model):
        raise StateError(f"{shortened(model[0])} reads ids, which have no gradient: occlusion takes them")
    return _values(model, x)


def _values(model: Sequential, x: Any) -> Array:
    return host_array(model.backend.to_host(model.backend.asarray(x)), model.dtype)


def _outputs(model: Sequential, x: Array) -> Array:
    return model.backend.to_host(model(x))


def _gradient(model: Sequential, x: Array, delta: Array) -> Array:
    return model.backend.to_host(model.input_gradient(x, delta))


def _one_hot(model: Sequential, x: Array, classes: Any) -> Array:
    """dz_c / dz: one at the class of each sample."""
    if len(model.out_shape) != 1:
        raise ShapeError(f"the outputs must be a vector with a place for each class, not of shape {model.out_shape}")
    z, count = _outputs(model, x), model.out_shape[0]
    wanted = z.argmax(axis=1) if classes is None else host_array(classes, what="classes")
    if wanted.dtype.kind not in "iu" or wanted.shape not in ((), (len(x),)):
        raise DataError(f"classes must be a whole number or one for each of {len(x)} samples, not {shortened(classes)}")
    if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
        raise DataError(
            f"there is no class {shortened(wanted[(wanted < 0) | (wanted >= count)][0])}: they are 0 to {count - 1}"
        )
    one_hot = np.zeros_like(z)
    one_hot[np.arange(len(x)), wanted] = 1
    return one_hot


def _baseline(model: Sequential, x: Array, baseline: Any) -> Array:
    values = _values(model, baseline)
    if values.shape not in ((), x.shape[1:], x.shape):
        raise ShapeError(f"baseline must be a number or have shape {x.shape[1:]} or {x.shape}, not {values.shape}")
    return values


def _per_axis(name: str, value: Any, size: Shape, most: Shape) -> Shape:
    """A whole number for each axis of the size, from 1 to the most there."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * len(size)
    if len(values) != len(size):
        raise ShapeError(f"{name} must be a whole number or one for each axis of {size}, not {shortened(value)}")
    for v, largest in zip(values, most, strict=True):
        if whole(name, v, 1) > largest:
            raise ShapeError(f"{name} {shortened(value)} is more than {most}")
    return values
