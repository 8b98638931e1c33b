"""The engine of a model: its plan, the memory that passes reuse, and the pass in progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnlite.backend import Array
from nnlite.backend.memory import Pool
from nnlite.engine.exchange import ALONE, Exchange, Part
from nnlite.engine.passes import Stage, TrainingPass, infer, input_gradient
from nnlite.engine.plan import Plan, Run, Wrap, make_plan
from nnlite.engine.vectors import Vectors, frozen_whole, is_trained, walk
from nnlite.engine.workspace import RunMemory
from nnlite.layers.base import Layer, Shape
from nnlite.losses import Loss


class Engine:
    """Runs layers one after another, whose values are in `vectors`.

    rewrite: whether neighbouring layers become joined and in-place steps.  seed: of the randomness in a pass.
    exchange: with the processes that share the batches of `loss_and_grad`.
    """

    def __init__(self, layers: dict[str, Layer], in_shape: Shape, vectors: Vectors, seed: int, rewrite: bool) -> None:
        self.layers, self.in_shape, self.vectors, self.seed, self.rewrite = layers, in_shape, vectors, seed, rewrite
        self.layer_ids = {path: i for i, (path, _) in enumerate(walk(layers))}
        self.wrap: Wrap | None = None
        self.exchange: Exchange = ALONE
        self.make_plan()

    def make_plan(self) -> None:
        """Make the plan and forget all memory."""
        self.plan = make_plan(self.layers, self.in_shape, self.rewrite, self.wrap)
        self.frozen_whole = frozen_whole(self.layers)
        self.memories: dict[int, RunMemory] = {}
        self.pool = Pool(self.vectors.backend)
        self.frozen_plan: Plan | None = None
        self.under_way: TrainingPass | None = None
        self._find_wanted()

    @contextmanager
    def wrapped(self, wrap: Wrap, rewrite: bool) -> Iterator[None]:
        """While the block runs, call what `wrap(path, layer)` returns instead of each layer."""
        before, self.wrap, self.rewrite = self.rewrite, wrap, rewrite
        self.make_plan()
        try:
            yield
        finally:
            self.wrap, self.rewrite = None, before
            self.make_plan()

    def refresh(self) -> None:
        """Apply a change of what is frozen."""
        if self.frozen_whole != frozen_whole(self.layers):
            self.make_plan()
        else:
            self._find_wanted()

    def _find_wanted(self) -> None:
        """The values whose deltas are wanted, without dJ/dx and with it: those that depend on trained parameters."""
        wanted = set[int]()
        steps = [step for run in self.plan.training for step in run.steps]
        for step in steps:
            if is_trained(step.layer) or not wanted.isdisjoint(step.reads):
                wanted.add(step.makes)
        self.wanted, self.all_wanted = frozenset(wanted), frozenset({0, *(step.makes for step in steps)})

    def memory_of(self, run: Run) -> RunMemory:
        """The memory that passes through this run reuse."""
        known = self.memories.get(id(run))  # of two threads that both make one, the first has its way
        return known or self.memories.setdefault(id(run), RunMemory(self.vectors, run, self.layer_ids, self.seed))

    def infer(self, x: Array) -> Array:
        """The outputs, computed with running statistics."""
        return infer(self.plan, self.memory_of(self.plan.inference), x)

    def forward(self, x: Array, pass_id: int) -> Array:
        """The outputs as in training; `backward` may follow."""
        self.drop()
        x = x.copy()  # the user may write to x before backward
        current = self._pass(x, pass_id, Part(ALONE, len(x), slice(0, len(x))))
        z = current.forward()
        self.under_way = current
        return z

    def backward(self, current: TrainingPass, delta: Array) -> Array:
        """From dJ/dz of the pass in progress: fill the gradients, return dJ/dx."""
        self.under_way = None
        return current.backward(delta, self.all_wanted)

    def input_gradient(self, x: Array, delta: Array) -> Array:
        """dJ/dx from delta = dJ/dz by running statistics, without randomness; nothing else changes."""
        if self.frozen_plan is None:
            self.frozen_plan = make_plan(self.layers, self.in_shape, self.rewrite, self.wrap, frozen=True)
        return input_gradient(self.frozen_plan, self.memory_of(self.frozen_plan.training[0]), x, delta)

    def loss_and_grad(
        self, x: Array, t: Array, criterion: Loss, sample_weight: Array | None, total: float, out: Array | None, pass_id: int
    ) -> Any:
        """The loss of a batch, divided by `total`; fills the gradients. `out` receives the outputs.

        x: the inputs of the batch, or of this process's part of it.
        """
        self.drop()
        exchange, whole, n = self.exchange, out, len(t)
        mine = exchange.rows(self.plan.training, n, self.vectors)
        if exchange.size > 1:
            x = x[mine] if len(x) == n else x
            t, out = t[mine], None if out is None else out[mine]
            sample_weight = None if sample_weight is None else sample_weight[mine]
        current = self._pass(x, pass_id, Part(exchange, n, mine))
        losses: list[Any] = [0.0] * len(current.last.cut)

        def loss_of(z: Array, i: int, rows: slice) -> Array:
            weight = None if sample_weight is None else sample_weight[rows]
            losses[i], delta = criterion.of_rows(self.vectors.backend, z, t[rows], weight, total)
            if out is not None:
                out[rows] = z
            return delta

        current.sweep(loss_of, self.wanted)
        losses = exchange.losses(losses, whole, mine)
        loss = sum(losses[1:], losses[0])
        current.commit(loss)
        return loss

    def drop(self) -> None:
        """Discard a pass whose backward was not called."""
        if self.under_way is not None:
            self.under_way.release()
            self.under_way = None

    def _pass(self, x: Array, pass_id: int, part: Part) -> TrainingPass:
        memories = [self.memory_of(run) for run in self.plan.training]
        stages = [Stage(m.run, m, part.exchange.cut(m.run, part, self.vectors), m.prepare(part.n)) for m in memories]
        return TrainingPass(self.plan, stages, self.vectors, self.pool, x, pass_id, part)
