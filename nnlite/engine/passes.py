"""Take a batch through a model: cut into shards, run by run, forward and backward, on threads, in a fixed order.

A value that later runs need is stored for the whole batch. Within a run a shard goes through all steps while it is in the
cache. Gradients are added in the order of the shards.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from nnlite.backend import Array, Turnstile
from nnlite.backend.memory import Pool
from nnlite.engine.batches import Batch
from nnlite.engine.exchange import Part
from nnlite.engine.plan import Plan, Run, cut_of
from nnlite.engine.steps import Step, Values
from nnlite.engine.vectors import Vectors
from nnlite.engine.workspace import Prepared, RunMemory, Workspace
from nnlite.errors import StateError
from nnlite.layers.base import Context, Shard

LossOf = Callable[[Array, int, slice], Array]  # from the outputs of shard i, these samples: stores its loss, returns its delta


class Stage:
    """One run in one pass.

    cut: its shards.  prepared: by its layers.  spaces: the workspaces of shards between forward and backward.
    batch, delta_batch: what its entry combined from the batch, and from its deltas.
    """

    def __init__(self, run: Run, memory: RunMemory, cut: list[slice], prepared: Prepared) -> None:
        self.run, self.memory, self.cut, self.prepared = run, memory, cut, prepared
        self.spaces: list[Workspace | None] = [None] * len(cut)
        self.batch: Any = None
        self.delta_batch: Any = None

    def each(self, work: Callable[[int, slice], None], on_error: Callable[[], None] = lambda: None) -> None:
        """Do `work(i, rows)` for each shard."""
        self.memory.vectors.backend.map_shards(lambda i: work(i, self.cut[i]), len(self.cut), on_error)


def load(value: Any, name: str, rows: slice, space: Workspace, dtype: Any = None) -> Array:
    """Samples of a value or delta; those of the user's array are cast to `dtype`, unless it is None. name: of the copy."""
    if type(value) is Batch:
        return value.take(rows, name, space.input)
    a = value[rows]
    if dtype is None or (a.dtype == dtype and a.flags.c_contiguous):
        return a
    room = space.input.get(name, a.shape, dtype)
    room[...] = a
    return room


def dtype_of_input(plan: Plan, x: Array, vectors: Vectors) -> Any:
    """The dtype that the input is cast to; None: it is not cast."""
    is_taken = takes_integers(plan, x) or (x.dtype == "uint8" and plan.takes_bytes)
    return None if is_taken else vectors.dtype


def takes_integers(plan: Plan, x: Array) -> bool:
    """Whether the input is integers that stay so: it has no gradient."""
    return x.dtype.kind in "iu" and plan.takes_integers


def infer(plan: Plan, memory: RunMemory, x: Array) -> Array:
    """The model's output, computed with running statistics; nothing is kept."""
    run, vectors = plan.inference, memory.vectors
    stage = Stage(run, memory, cut_of(run, len(x), vectors), memory.keep_prepared())
    dtype = dtype_of_input(plan, x, vectors)
    out: Array = vectors.backend.xp.empty((len(x), *plan.shapes[plan.output]), vectors.dtype)

    def work(i: int, rows: slice) -> None:
        space = memory.workspace()
        space.begin(rows, 0, stage.prepared, training=False, swept=False)
        out[rows] = space.forward({0: load(x, "input", rows, space, dtype)}, {})[plan.output]
        memory.workspaces.append(space)

    stage.each(work)
    return out


def input_gradient(plan: Plan, memory: RunMemory, x: Array, delta: Array) -> Array:
    """dJ/dx from delta = dJ/dz, by a plan of frozen forms. Raises StateError where a layer needs the batch or reads ids."""
    run, vectors = memory.run, memory.vectors
    if len(plan.training) > 1 or run.whole:
        raise StateError("a layer needs the whole batch and has no frozen form: there is no gradient of the inputs")
    stage = Stage(run, memory, cut_of(run, len(x), vectors), memory.keep_prepared())
    if plan.takes_integers:
        raise StateError("the first layer takes integers as they are, which have no gradient")
    wanted = frozenset({0, *(step.makes for step in run.steps)})
    dx: Array = vectors.backend.xp.empty((len(x), *plan.shapes[0]), vectors.dtype)

    def work(i: int, rows: slice) -> None:
        space, gradient = memory.workspace(), memory.gradient()
        space.allow(wanted)
        space.write_to(gradient)
        space.begin(rows, 0, stage.prepared, training=False, swept=True)
        space.forward({0: load(x, "input", rows, space, vectors.dtype)}, {})
        dx[rows] = space.backward({plan.output: delta[rows]}, {})[0]
        memory.workspaces.append(space)
        memory.gradients.append(gradient)

    stage.each(work)
    return dx


class TrainingPass:
    """Forward, keeping everything that backward needs, then backward.

    values, deltas: of the whole batch, by number, if other runs need them.  wanted: the values whose deltas are wanted.
    part: x, of a batch that several processes may share.
    """

    def __init__(
        self, plan: Plan, stages: list[Stage], vectors: Vectors, pool: Pool, x: Array, pass_id: int, part: Part
    ) -> None:
        self.plan, self.stages, self.vectors, self.pool, self.part = plan, stages, vectors, pool, part
        self.n, self.pass_id, self.last, self.exchange = len(x), pass_id, stages[-1], part.exchange
        self.input_dtype = dtype_of_input(plan, x, vectors)
        self.values: Values = {0: x}
        self.deltas: Values = {}
        self.wanted = frozenset[int]()

    # ---- forward

    def forward(self) -> Array:
        """The outputs; `backward` may follow."""
        self.seen = self.vectors.params.copy()
        for k in range(len(self.stages)):
            self._forward(k)
        self.commit()
        return self.values.pop(self.plan.output)

    def _forward(self, k: int) -> None:
        stage, run = self.stages[k], self.stages[k].run
        made = {v: self._room(v, stage.cut, fresh=stage is self.last) for v in run.makes}
        parts: list[Any] = [None] * len(stage.cut)

        def work(i: int, rows: slice) -> None:
            space = stage.spaces[i] = stage.memory.workspace()
            targets = {v: batch[rows] for v, batch in made.items()}
            # The user may write to the outputs, so they are a copy of what layers keep.
            values = self._run_forward(stage, rows, space, {} if stage is self.last else targets)
            _store(targets, values)
            if run.exit is not None:
                parts[i] = run.exit.does.statistics(values[run.exit.reads[0]])

        stage.each(work)
        self.values |= made
        if run.exit is not None:
            parts = self.exchange.parts(parts)
            self.stages[k + 1].batch = run.exit.does.combine(parts) if parts else None

    def _run_forward(self, stage: Stage, rows: slice, space: Workspace, targets: Values, swept: bool = False) -> Values:
        space.begin(rows, self.pass_id, stage.prepared, training=True, swept=swept, first=self.part.rows.start)
        values = {v: load(self.values[v], f"value {v}", rows, space, self.input_dtype) for v in stage.run.loads}
        if stage.run.entry is not None:
            ctx = space.contexts[stage.run.entry.makes]
            ctx.a, ctx.batch = values[stage.run.entry.reads[0]], stage.batch
        return space.forward(values, targets)

    def commit(self, loss: Any = None) -> None:
        """Update the running statistics from the batch, while no inference is running.

        loss: after backward. Nothing is updated if it or a gradient is not finite.
        """
        if len(self.stages) == 1:
            return
        vectors, backend = self.vectors, self.vectors.backend
        numbers = () if loss is None else (loss, backend.norm(vectors.grads))
        with vectors.lock.writing():
            backend.unless_bad(numbers, vectors.buffers, self._commit)

    def _commit(self) -> None:
        for stage in self.stages:
            if stage.run.entry is not None and stage.batch is not None:
                stage.run.entry.does.commit(stage.batch)
        self.exchange.average(self.vectors, self.plan.barriers, self.n / self.part.n)

    # ---- backward

    def backward(self, delta: Array, wanted: frozenset[int]) -> Array:
        """From dJ/d(output) to dJ/dx, writing the gradients, after `forward`."""
        self._refuse_changes()
        has_gradient = not takes_integers(self.plan, self.values[0])
        self.wanted, self.deltas = wanted if has_gradient else wanted - {0}, {self.plan.output: delta}
        for k in reversed(range(len(self.stages))):
            self._backward(k)
        x = self.values[0]
        dx: Array = self.deltas.pop(0) if has_gradient else self.vectors.backend.xp.zeros(x.shape, self.vectors.dtype)
        self._end()
        return dx

    def _refuse_changes(self) -> None:
        """Refuse changed parameters: some layers would go backward with the new values, some with the old."""
        bits = f"u{self.seen.itemsize}"  # so that NaN equals itself
        if not bool((self.seen.view(bits) == self.vectors.params.view(bits)).all()):
            raise StateError("parameters changed after forward(x, training=True): call it again before backward")

    def sweep(self, loss_of: LossOf, wanted: frozenset[int]) -> None:
        """Forward, loss and backward, down to the deltas that are wanted."""
        self.wanted = wanted
        for k in range(len(self.stages) - 1):
            self._forward(k)
        self._backward(len(self.stages) - 1, loss_of)
        for k in reversed(range(len(self.stages) - 1)):
            if not self.wanted.isdisjoint(step.makes for step in self.stages[k].run.backward.steps):
                self._backward(k)
        self.exchange.add_gradients(self.vectors, self.plan.barriers, self.n)
        self._end()

    def _backward(self, k: int, loss_of: LossOf | None = None) -> None:
        """Run k backward; with `loss_of` it goes forward first, shard by shard, in one sweep."""
        stage, run, memory, count = self.stages[k], self.stages[k].run, self.stages[k].memory, len(self.stages[k].cut)
        turnstile = Turnstile(count)
        entry = run.entry if run.entry is not None and run.entry.makes in self.wanted else None
        made = {v: self._room(v, stage.cut, fresh=v == 0) for v in run.returns & self.wanted}
        parts: list[Any] = [None] * count
        apart: list[Any] = [None] * count  # gradients that are added later
        ordered = self.exchange.ordered

        def work(i: int, rows: slice) -> None:
            gradient = memory.direct if i == 0 and not ordered else memory.gradient()
            space = stage.spaces[i] or memory.workspace()
            space.allow(self.wanted)
            space.write_to(gradient)
            if loss_of is None:
                deltas = {v: load(self.deltas[v], f"delta {v}", rows, space) for v in run.receives if v in self.deltas}
            else:
                values = self._run_forward(stage, rows, space, {}, swept=True)
                deltas = {self.plan.output: loss_of(values[self.plan.output], i, rows)}
            if run.exit is not None and run.exit.makes in self.wanted:
                self._prepare_exit(run.exit, self.stages[k + 1], rows, space)
            targets = {v: batch[rows] for v, batch in made.items()}
            # As in forward, the user gets a copy, in the usual order.
            _store(targets, space.backward(deltas, {} if k == 0 else targets))
            if entry is not None:
                parts[i] = entry.does.delta_statistics(deltas[entry.makes], space.contexts[entry.makes])
            if ordered:
                apart[i] = gradient
            elif count > 1:
                with turnstile.turn(i):
                    memory.add(i, gradient, last=i == count - 1)
            stage.spaces[i] = None
            memory.workspaces.append(space)

        stage.each(work, turnstile.break_open)
        if ordered:
            self.exchange.add_in_order(memory, apart)
        if entry is not None and (parts := self.exchange.parts(parts)):
            stage.delta_batch = self._combine_deltas(stage, entry, parts)
        self._give_back(self.deltas, run.receives)
        self._give_back(self.values, run.makes)
        self.deltas |= made

    def _prepare_exit(self, exit: Step, behind: Stage, rows: slice, space: Workspace) -> None:
        """Give the barrier after this run what its backward pass reads."""
        ctx, v = space.contexts[exit.makes], exit.reads[0]
        ctx.a = load(self.values[v], f"value {v}", rows, space, self.input_dtype)
        ctx.batch, ctx.delta_batch, ctx.prepared = behind.batch, behind.delta_batch, behind.prepared.get(exit.makes)

    def _combine_deltas(self, stage: Stage, entry: Step, parts: list[Any]) -> Any:
        ctx = Context(self.vectors.backend, 0, Shard(0), self.vectors.dtype)
        ctx.batch, ctx.prepared = stage.batch, stage.prepared.get(entry.makes)
        stage.memory.direct.bind({entry.makes: ctx})
        return entry.does.combine_deltas(parts, ctx)

    def _room(self, v: int, cut: list[slice], fresh: bool) -> Any:
        """Memory for a value of the whole batch; a plain new array if it is returned to the user."""
        shape, vectors = self.plan.shapes[v], self.vectors
        if fresh:
            return vectors.backend.xp.empty((self.n, *shape), vectors.dtype)
        flat = self.pool.take(self.n * math.prod(shape), vectors.dtype)
        return Batch(vectors.backend, flat, shape, v in self.plan.images, cut)

    def _end(self) -> None:
        self.vectors.clear_frozen()
        self._give_back(self.values, tuple(self.values))
        self._give_back(self.deltas, tuple(self.deltas))

    def _give_back(self, values: Values, numbers: Iterable[int]) -> None:
        for v in numbers:
            value = values.pop(v, None)
            if type(value) is Batch:
                self.pool.give(value.flat)

    def release(self) -> None:
        """Return the workspaces of a pass without a backward."""
        for stage in self.stages:
            stage.memory.workspaces += [space for space in stage.spaces if space is not None]
            stage.spaces.clear()
        self._end()


def _store(targets: Values, values: Values) -> None:
    """Copy a shard's values to their targets, unless they were written there."""
    for v, target in targets.items():
        if values[v] is not target:
            target[...] = values[v]
