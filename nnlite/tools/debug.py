"""Checks around every layer: shapes, dtypes, finite values, writes to memory. And the cause of a bad loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from nnlite.arguments import listing, shortened
from nnlite.backend import Array
from nnlite.errors import NonFiniteError, ShapeError, StateError
from nnlite.layers.base import Context, Layer, Shape
from nnlite.model import Sequential, needs_model

Rows = Sequence[int] | None
Call = Callable[[Array, Context], Any]


@contextmanager
def debug(model: Sequential) -> Iterator[Sequential]:
    """Check every layer of the model while the block runs: `with nn.debug(model): trainer.fit(...)`.

    Forward and backward, each result must have the layer's shape and the model's dtype and be finite; the layer must not
    modify its input, nor return that memory unless `shares_memory` says so. Gradients must be finite. Raises
    NonFiniteError, ShapeError or StateError, naming layer, direction, pass and samples. The checks take time; layers run as
    they were written, without `rewrite`.
    """
    needs_model(model)
    with _checked(model, None):
        yield model


def _checked(model: Sequential, rows: Rows) -> AbstractContextManager[None]:
    return model.engine.wrapped(lambda path, layer: _Checked(model, path, layer, rows), rewrite=False)


def locate(model: Sequential, x: Any, t: Any, sample_weight: Any, rows: Rows = None) -> str:
    """Where, on the way of the last training pass over this batch, the first value is not finite, and what may be the cause.

    rows: the places of the samples in the data set, where these are known.
    """
    for name, values in {**model.named_params(), **model.named_buffers()}.items():
        if bad := _places(model, values.reshape(-1)):
            return f"{name} is not finite at {listing(bad, most=10)}"
    given = {"inputs": x, "targets": t} | ({} if sample_weight is None else {"weights": sample_weight})
    arrays = {name: model.backend.asarray(values) for name, values in given.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and (bad := _places(model, array.reshape(len(array), -1))):
            return f"the {name} of {_samples(bad, rows)} are not finite"
    buffers, where = model.buffers.copy(), "the outputs are finite, the loss of them is not"
    try:
        with _checked(model, rows):
            arrays["outputs"] = model.forward(arrays["inputs"], training=True, pass_id=model.passes)
    except NonFiniteError as error:
        where = str(error)
    finally:
        model.buffers[...] = buffers
    sizes = {name: float(abs(array).max()) for name, array in {**arrays, "parameters": model.params}.items() if array.size}
    reach = ", ".join(f"{name} {size:.3g}" for name, size in sizes.items())
    return f"{where}. The largest values: {reach}. Training may diverge: lower the learning rate, or scale inputs and targets"


class _Checked(Layer):
    """A layer, with checks of its results and of its inputs afterwards."""

    def __init__(self, model: Sequential, path: str, layer: Layer, rows: Rows) -> None:
        self.model, self.path, self.layer, self.rows = model, path, layer, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def forward(self, a: Array, ctx: Context) -> Array:
        return self._check("forward", a, ctx, self.layer.forward, self.layer.out_shape)

    def backward(self, delta: Array, ctx: Context) -> Any:
        return self._check("backward", delta, ctx, self.layer.backward, self.layer.in_shape)

    def _check(self, direction: str, given: Array, ctx: Context, call: Call, shape: Shape) -> Any:
        before, xp = given.copy(), ctx.xp
        result = call(given, ctx)
        where = f"layer {self.path} {shortened(self.layer)}, {direction}, pass {ctx.shard.pass_id}"
        if not bool(xp.array_equal(given, before)) and bool(xp.isfinite(before).all()):
            raise StateError(f"{where}: it writes to the array that it was given")
        if result is None:
            return None  # not needed
        if result.shape != (len(given), *shape):
            raise ShapeError(f"{where}: the result has shape {result.shape}, not {(len(given), *shape)}")
        if result.dtype != self.model.params.dtype:
            raise ShapeError(f"{where}: the result is {result.dtype}, the model {self.model.params.dtype}")
        if not self.layer.shares_memory and xp.may_share_memory(result, given):
            raise StateError(f"{where}: the result shares memory with what it was given, but shares_memory is false")
        self._finite(where, result, ctx.shard.start)
        if direction == "backward":
            self._finite_gradients(where, ctx)
        return result

    def _finite(self, where: str, result: Array, start: int) -> None:
        if bad := _places(self.model, result.reshape(len(result), -1)):
            raise NonFiniteError(f"{where}: values are not finite in {_samples([start + i for i in bad], self.rows)}")

    def _finite_gradients(self, where: str, ctx: Context) -> None:
        for name, parameter in self.layer.declared.items():
            gradient = getattr(ctx, f"d{name}", None) if parameter.trained and name not in self.layer.frozen else None
            if gradient is not None and ctx.trained and not bool(ctx.xp.isfinite(gradient).all()):
                raise NonFiniteError(f"{where}: the gradient of {name} is not finite")


def _places(model: Sequential, values: Array) -> list[int]:
    """The samples, or places of a vector, where a value is not finite."""
    finite = model.backend.to_host(model.backend.xp.isfinite(values))
    finite = finite if finite.ndim == 1 else finite.all(axis=1)
    return [int(i) for i in (~finite).nonzero()[0]]


def _samples(places: list[int], rows: Rows) -> str:
    """Samples of a batch by their rows in the data set, where these are known."""
    if rows is None:
        return f"samples {listing(places, most=10)} of the batch"
    return f"row{'s' * (len(places) > 1)} {listing([int(rows[i]) for i in places], most=10)} of the data set"
