"""Where the time of a training pass goes: a clock around every step of the model's plan."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from nnlite.arguments import whole
from nnlite.backend import Array, get_num_threads
from nnlite.engine.vectors import is_trained
from nnlite.layers.base import BatchLayer, Layer
from nnlite.losses import CrossEntropy, Loss
from nnlite.model import Sequential, needs_model

Key = tuple[str, int]
Row = tuple[str, ...]

FORWARD, BACKWARD = 0, 1
_BARRIER = {"statistics": FORWARD, "combine": FORWARD, "delta_statistics": BACKWARD, "combine_deltas": BACKWARD}


def profile(model: Sequential, x: Any, t: Any, criterion: Loss | None = None, *, passes: int = 10) -> None:
    """Print, for each layer, the time of its forward and backward pass, its GFLOP/s, and its share of the whole.

    x, t: a batch as `loss_and_grad` takes it.  criterion: default CrossEntropy().  passes: number of passes to average over.
    Times are milliseconds of wall time: where k threads are in steps at once, a millisecond is shared by k. FLOPs are those
    of the definition, whatever the algorithm; backward, each gradient that is wanted counts as much as forward. "loss" is the
    criterion; "rest" is the work between the layers: preparing filters, adding up gradients, residual connections. Parameters,
    running statistics and the count of passes stay as they are; `grads` are those of the last pass.
    """
    rows, whole_pass = measure(model, x, t, criterion, passes=passes)
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    print("\n".join([lines[0], rule, *lines[1:], rule, whole_pass]))


def measure(model: Sequential, x: Any, t: Any, criterion: Loss | None = None, *, passes: int = 10) -> tuple[list[Row], str]:
    """The table of `profile`, its header first, and its last line."""
    needs_model(model)
    whole("passes", passes, 1)
    clock = _Clock(criterion or CrossEntropy(), model.backend.wait)
    values, number = model.snapshot(), model.passes
    try:
        with model.engine.wrapped(lambda path, layer: _Timed(path, layer, clock), rewrite=model.rewrite):
            model.loss_and_grad(x, t, clock.criterion)  # allocates what later passes reuse
            clock.edges.clear()
            clock.wait()
            start = time.perf_counter()
            for _ in range(passes):
                model.loss_and_grad(x, t, clock)  # type: ignore[arg-type]
            clock.wait()
            wall = (time.perf_counter() - start) / passes
    finally:
        model.restore(values)
        model.passes = number
    return _rows(model, clock.shares(), len(x), passes, wall), _whole_pass(model, len(x), wall)


class _Timed(Layer):
    """A layer that records the times of its calls."""

    def __init__(self, path: str, layer: Layer, clock: "_Clock") -> None:
        self.layer = layer
        names = {"forward": FORWARD, "backward": BACKWARD} | (_BARRIER if isinstance(layer, BatchLayer) else {})
        self.__dict__ |= {name: clock.timed(getattr(layer, name), path, direction) for name, direction in names.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


class _Clock:
    """Notes when the calls of steps, by (path, direction), begin and end; also wraps and times the criterion."""

    def __init__(self, criterion: Loss, wait: Callable[[], None]) -> None:
        self.criterion, self.wait = criterion, wait
        self.prepare = criterion.prepare
        self.edges: list[tuple[float, int, Key]] = []  # appended to by all threads: +1 at a beginning, -1 at an end

    def of_rows(self, *rows: Any) -> Any:
        return self.timed(self.criterion.of_rows, "loss", FORWARD)(*rows)

    def shares(self) -> dict[Key, float]:
        """The seconds of each step; those in which several calls run at once are shared out among them."""
        seconds: dict[Key, float] = defaultdict(float)
        running, before = Counter[Key](), 0.0
        for now, change, key in sorted(self.edges):
            for other, calls in running.items():
                seconds[other] += (now - before) * calls / running.total()
            running[key] += change
            running += Counter()  # drops zero counts
            before = now
        return seconds

    def timed(self, method: Any, path: str, direction: int) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Array:
            self.wait()
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self.wait()
            self.edges += [(start, 1, (path, direction)), (time.perf_counter(), -1, (path, direction))]
            return result

        return timed


def _rows(model: Sequential, shares: dict[Key, float], n: int, passes: int, wall: float) -> list[Row]:
    times = {key: seconds / passes for key, seconds in shares.items()}
    rows: list[Row] = [("layer", "forward ms", "backward ms", "GFLOP/s", "GFLOP/s", "share")]
    for path, step in ((step.path, step) for run in model.plan.training for step in run.steps if len(step.reads) == 1):
        there, back = times.get((path, FORWARD), 0.0), times.get((path, BACKWARD), 0.0)
        flops, gradients = step.layer.flops() * n, is_trained(step.layer) + (step.reads[0] in model.engine.wanted)
        rates = _rate(flops, there), _rate(gradients * flops, back)
        rows.append((f"{path} {_name(step.layer)}", _ms(there), _ms(back), *rates, f"{(there + back) / wall:.1%}"))
    loss, rest = times.get(("loss", FORWARD), 0.0), wall - sum(times.values())
    return rows + [(name, _ms(value), "", "", "", f"{value / wall:.1%}") for name, value in (("loss", loss), ("rest", rest))]


def _whole_pass(model: Sequential, n: int, wall: float) -> str:
    threads = get_num_threads() if model.backend.cuts_batches else 1
    crew = f"{threads} thread{'s' * (threads > 1)}, {model.kernels} kernels"
    return f"{n} samples in {_ms(wall)} ms on {crew}: {n / wall:,.0f} samples/s"


def _name(layer: Layer) -> str:
    pools = getattr(getattr(layer, "plan", None), "taps", 1) > 1
    return f"{layer!r} + max-pooling" if pools else repr(layer)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _rate(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.1f}" if flops and seconds else ""
