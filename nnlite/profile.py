"""Where the time of a training pass goes: a clock around every step of the model's plan."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nnlite.arguments import whole
from nnlite.backend import Array, get_num_threads
from nnlite.layers.base import BatchLayer, Layer
from nnlite.losses import CrossEntropy, Loss
from nnlite.steps import LayerStep
from nnlite.vectors import is_trained

if TYPE_CHECKING:
    from nnlite.model import Sequential

Key = tuple[str, int]

FORWARD, BACKWARD = 0, 1
_BARRIER = {"statistics": FORWARD, "combine": FORWARD, "delta_statistics": BACKWARD, "combine_deltas": BACKWARD}


def profile(model: "Sequential", x: Any, t: Any, criterion: Loss | None = None, *, passes: int = 10) -> None:
    """Print, for each layer, the time of its forward and backward pass, its GFLOP/s, and its share of the whole.

    x, t: a batch as `loss_and_grad` takes it.  criterion: default CrossEntropy().  passes: how many to average over.
    Times are milliseconds of wall time: where k threads are in steps at once, a millisecond is shared by k. FLOPs are those
    of the definition, whatever the algorithm; backward, each gradient that is wanted counts as much as forward. "loss" is the
    criterion; "rest" is what lies between the layers: preparing filters, adding up gradients, residual connections. Parameters,
    running statistics and the count of passes stay as they are; `grads` are those of the last pass.
    """
    whole("passes", passes, 1)
    clock = _Clock(criterion or CrossEntropy(), model.backend.wait)
    values, number = model.snapshot(), model.passes
    try:
        model.loss_and_grad(x, t, clock.criterion)  # makes what later passes use again
        with clock.around(model):
            start = time.perf_counter()
            for _ in range(passes):
                model.loss_and_grad(x, t, clock)  # type: ignore[arg-type]
            clock.wait()
            wall = (time.perf_counter() - start) / passes
    finally:
        model.restore(values)
        model.passes = number
    print(_table(model, clock.shares(), len(x), passes, wall))


class _Clock:
    """Notes when the calls of steps, by (path, direction), begin and end; stands in for the criterion and times it too."""

    def __init__(self, criterion: Loss, wait: Callable[[], None]) -> None:
        self.criterion, self.wait = criterion, wait
        self.prepare = criterion.prepare
        self._edges: list[tuple[float, int, Key]] = []  # appended to by all threads: +1 at a beginning, -1 at an end

    def of_rows(self, *rows: Any) -> Any:
        return self._timed(self.criterion.of_rows, "loss", FORWARD)(*rows)

    @contextmanager
    def around(self, model: "Sequential") -> "Iterator[None]":
        """Time the steps of the model's training plan and what its layers do at barriers."""
        timed = list(_timed_methods(model))
        for owner, name, path, direction in timed:
            owner.__dict__[name] = self._timed(getattr(owner, name), path, direction)
        try:
            yield
        finally:
            for owner, name, _, _ in timed:
                del owner.__dict__[name]

    def shares(self) -> dict[Key, float]:
        """The seconds of each step; those in which several calls run at once are shared out among them."""
        seconds: dict[Key, float] = defaultdict(float)
        running, before = Counter[Key](), 0.0
        for now, change, key in sorted(self._edges):
            for other, calls in running.items():
                seconds[other] += (now - before) * calls / running.total()
            running[key] += change
            running += Counter()  # without those that are zero
            before = now
        return seconds

    def _timed(self, method: Any, path: str, direction: int) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Array:
            self.wait()
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self.wait()
            self._edges += [(start, 1, (path, direction)), (time.perf_counter(), -1, (path, direction))]
            return result

        return timed


def _timed_methods(model: "Sequential") -> Iterator[tuple[Any, str, str, int]]:
    for path, step in _rows(model):
        yield step, "forward", path, FORWARD
        if isinstance(step.layer, BatchLayer):
            yield step.layer, "backward", path, BACKWARD  # called by the run before it
            yield from ((step.layer, name, path, direction) for name, direction in _BARRIER.items())
        else:
            yield step, "backward", path, BACKWARD


def _rows(model: "Sequential") -> Iterator[tuple[str, LayerStep]]:
    for run in model.plan.training:
        for step in run.steps:
            if isinstance(step, LayerStep):
                yield step.path, step


def _first_step(model: "Sequential") -> Any:
    """The step where backward stops: nobody wants the delta of its input."""
    k, i = model.first_trained
    return model.plan.training[k].steps[i] if k < len(model.plan.training) else None


def _table(model: "Sequential", shares: dict[Key, float], n: int, passes: int, wall: float) -> str:
    threads = get_num_threads() if model.backend.cuts_batches else 1
    times = {key: seconds / passes for key, seconds in shares.items()}
    rows = [("layer", "forward ms", "backward ms", "GFLOP/s", "GFLOP/s", "share")]
    first = _first_step(model)
    for path, step in _rows(model):
        there, back = times.get((path, FORWARD), 0.0), times.get((path, BACKWARD), 0.0)
        flops, gradients = step.layer.flops() * n, is_trained(step.layer) + (step is not first)
        rates = _rate(flops, there), _rate(gradients * flops, back)
        rows.append((f"{path} {_name(step.layer)}", _ms(there), _ms(back), *rates, f"{(there + back) / wall:.1%}"))
    loss, rest = times.get(("loss", FORWARD), 0.0), wall - sum(times.values())
    rows += [(name, _ms(value), "", "", "", f"{value / wall:.1%}") for name, value in (("loss", loss), ("rest", rest))]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    whole = f"{n} samples in {_ms(wall)} ms on {threads} thread{'s' * (threads > 1)}: {n / wall:,.0f} samples/s"
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:], rule, whole])


def _name(layer: Layer) -> str:
    pools = getattr(getattr(layer, "plan", None), "taps", 1) > 1
    return f"{layer!r} + max-pooling" if pools else repr(layer)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _rate(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.1f}" if flops and seconds else ""
