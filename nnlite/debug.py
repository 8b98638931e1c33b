"""Checks around every layer: shapes, dtypes, finite values, who writes to whose memory. And: where a bad loss comes from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nnlite.arguments import listing, shortened
from nnlite.backend import Array
from nnlite.errors import NonFiniteError, ShapeError, StateError
from nnlite.layers.base import Context, Layer
from nnlite.plan import Run
from nnlite.steps import LayerStep

if TYPE_CHECKING:
    from nnlite.model import Sequential

Rows = Sequence[int] | None


@contextmanager
def debug(model: "Sequential") -> Iterator["Sequential"]:
    """Check every layer of the model while the block runs: `with nn.debug(model): trainer.fit(...)`.

    Forward and backward, each result must have the layer's shape and the model's dtype and be finite; the layer must not
    write to what it was given, nor return its memory unless `shares_memory` says so. Gradients must be finite. Raises
    NonFiniteError, ShapeError or StateError, naming layer, direction, pass and samples. Slower by the checks; layers run as
    they were written, without `rewrite`.
    """
    with _checked(model, None):
        yield model


@contextmanager
def _checked(model: "Sequential", rows: Rows) -> Iterator[None]:
    rewrite, model.rewrite = model.rewrite, False
    try:
        for before, run in pairwise([None, *model.plan.training, None, model.plan.inference]):
            for step in run.steps if run else ():
                if isinstance(step, LayerStep):
                    _watch(step, _Checks(model, step.path, step.layer, rows), before)
        yield
    finally:
        model.rewrite = rewrite  # makes the plan anew, without the checks


def locate(model: "Sequential", x: Any, t: Any, sample_weight: Any, rows: Rows = None) -> str:
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


def _watch(step: LayerStep, checks: "_Checks", before: Run | None) -> None:
    """Wrap the step, and what the run before it calls of its layer."""
    step_forward, step_backward = step.forward, step.backward

    def forward(a: Array, stack: list[Array], ctx: Context, target: Array | None = None) -> Array:
        return checks.around("forward", lambda given: step_forward(given, stack, ctx, target), a, ctx)

    def backward(delta: Array, stack: list[Array], ctx: Context, target: Array | None = None) -> Any:
        return checks.around("backward", lambda given: step_backward(given, stack, ctx, target), delta, ctx)

    step.__dict__.update(forward=forward, backward=backward)
    if before is not None and before.exit is step.layer:
        exit_backward = before.exit_backward

        def backward_of_exit(delta: Array, ctx: Context) -> Any:
            return checks.around("backward", lambda given: exit_backward(given, ctx), delta, ctx)

        before.__dict__["exit_backward"] = backward_of_exit


class _Checks:
    """What is checked of one layer."""

    def __init__(self, model: "Sequential", path: str, layer: Layer, rows: Rows) -> None:
        self.model, self.xp, self.rows = model, model.backend.xp, rows
        self.path, self.layer = path, layer

    def around(self, direction: str, call: Callable[[Array], Any], given: Array, ctx: Context) -> Any:
        """Call it and check what it gives and what it left behind."""
        before = given.copy()
        result = call(given)
        where = f"layer {self.path} {shortened(self.layer)}, {direction}, pass {ctx.shard.pass_id}"
        if not bool(self.xp.array_equal(given, before)) and bool(self.xp.isfinite(before).all()):
            raise StateError(f"{where}: it writes to the array that it was given")
        if result is None:
            return None  # nobody wanted it
        shape = (len(given), *(self.layer.out_shape if direction == "forward" else self.layer.in_shape))
        if result.shape != shape:
            raise ShapeError(f"{where}: the result has shape {result.shape}, not {shape}")
        if result.dtype != self.model.params.dtype:
            raise ShapeError(f"{where}: the result is {result.dtype}, the model {self.model.params.dtype}")
        if not self.layer.shares_memory and self.xp.may_share_memory(result, given):
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
            if gradient is not None and ctx.trained and not bool(self.xp.isfinite(gradient).all()):
                raise NonFiniteError(f"{where}: the gradient of {name} is not finite")


def _places(model: "Sequential", values: Array) -> list[int]:
    """The rows, or places of a vector, where a value is not finite."""
    finite = model.backend.to_host(model.backend.xp.isfinite(values))
    finite = finite if finite.ndim == 1 else finite.all(axis=1)
    return [int(i) for i in (~finite).nonzero()[0]]


def _samples(places: list[int], rows: Rows) -> str:
    """Samples of a batch by their rows in the data set, where these are known."""
    if rows is None:
        return f"samples {listing(places, most=10)} of the batch"
    return f"row{'s' * (len(places) > 1)} {listing([int(rows[i]) for i in places], most=10)} of the data set"
