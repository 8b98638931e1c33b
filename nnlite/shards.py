"""How a batch goes through a model: cut into shards, run by run, forward and backward, on threads, in a fixed order.

State k is what lies at the barrier before run k: the current array and the stack, each for the whole batch. Within a run
a shard goes through all steps while it is in the cache. Gradients are added in the order of the shards.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nnlite.backend import Array, Turnstile
from nnlite.backend.memory import Buffers
from nnlite.layers.base import Context, Layer, Shard
from nnlite.plan import LayerStep, Run
from nnlite.vectors import Slot, shift

if TYPE_CHECKING:
    from nnlite.losses import Loss
    from nnlite.model import Sequential

State = list[Array]


class Workspace:
    """What one shard in flight holds: a context for each step, and the memory that they use again."""

    def __init__(self, model: "Sequential", run: Run) -> None:
        xp = model.backend.xp
        self.shard = Shard(seed=model.seed)
        self.input = Buffers(xp)
        self.steps = run.steps
        self.contexts = [
            Context(xp, model.layer_ids.get(step.path, 0) if isinstance(step, LayerStep) else 0, self.shard, model.dtype)
            for step in run.steps
        ]
        self.exit = Context(xp, 0, self.shard, model.dtype)
        pairs = zip(run.steps, self.contexts, strict=True)
        self.layers = [(i, step.layer, ctx) for i, (step, ctx) in enumerate(pairs) if isinstance(step, LayerStep)]
        self.preparing = [(i, ctx) for i, layer, ctx in self.layers if prepares(layer)]
        self.allowed: Any = None

    def begin(self, rows: slice, current: "Pass", prepared: dict[int, Any], swept: bool = False) -> None:
        """Take up the rows of a pass."""
        shard = self.shard
        shard.start, shard.rows = rows.start, rows.stop - rows.start
        shard.pass_id, shard.training = current.pass_id, current.training
        for i, ctx in self.preparing:
            ctx.prepared, ctx.swept = prepared[i], swept

    def allow(self, freezes: int, first: tuple[int, int] | None, wants_dx: bool) -> None:
        """Tell the layers whose gradients and deltas somebody wants; `freezes` counts the changes of what is frozen."""
        if self.allowed != (freezes, first, wants_dx):
            self.allowed = freezes, first, wants_dx
            for i, layer, ctx in self.layers:
                ctx.trained = is_trained(layer)
                ctx.needs_delta = wants_dx or first is None or i > first[1]

    def forward(self, a: Array, stack: list[Array], target: Array | None = None) -> Array:
        """Through all steps; the last may write to `target`."""
        last = len(self.steps) - 1
        for i, step in enumerate(self.steps):
            a = step.forward(a, stack, self.contexts[i], target if i == last else None)
        return a


class GradientVector:
    """The gradients of a run in one vector, and the views of it that backward writes to."""

    def __init__(self, run: Run, slots: list[Slot], vector: Array) -> None:
        self.vector = vector
        start = slots[0].place.start if slots else 0
        index = {step.path: i for i, step in enumerate(run.steps) if isinstance(step, LayerStep)}
        self.views = [
            (index[s.path], f"d{s.attribute}", vector[shift(s.place, start)].reshape(s.parameter.shape)) for s in slots
        ]

    def bind(self, contexts: list[Context]) -> None:
        """Let these contexts, of the first steps or of all, write here."""
        for i, name, view in self.views:
            if i < len(contexts):
                setattr(contexts[i], name, view)


class RunMemory:
    """Workspaces and gradient vectors of one run that nobody uses at the moment.

    `total`: where the shards' gradients are added up; a single shard writes there directly, through `direct`.
    """

    def __init__(self, model: "Sequential", run: Run) -> None:
        self.model, self.run = model, run
        paths = {step.path for step in run.steps if isinstance(step, LayerStep)}
        self.slots = [slot for slot in model.vectors.trained if slot.path in paths]
        place = slice(self.slots[0].place.start, self.slots[-1].place.stop) if self.slots else slice(0, 0)
        self.total = model.grads[place]
        self.direct = GradientVector(run, self.slots, self.total)
        layer_steps = ((i, step.layer) for i, step in enumerate(run.steps) if isinstance(step, LayerStep))
        self.preparing = [(i, layer) for i, layer in layer_steps if prepares(layer)]
        self.workspaces: list[Workspace] = []
        self.gradients: list[GradientVector] = []

    def workspace(self) -> Workspace:
        """A workspace; give it back with `workspaces.append`."""
        try:
            return self.workspaces.pop()
        except IndexError:
            return Workspace(self.model, self.run)

    def gradient(self) -> GradientVector:
        """A gradient vector; give it back with `gradients.append`."""
        try:
            return self.gradients.pop()
        except IndexError:
            # Zeros, because what a barrier writes is never written by the shards.
            return GradientVector(self.run, self.slots, self.model.backend.xp.zeros_like(self.total))

    def add(self, gradient: GradientVector, first: bool) -> None:
        """Add a shard's gradients to the total, or begin it."""
        if first:
            self.total[...] = gradient.vector
        else:
            self.total += gradient.vector


def prepares(layer: Layer) -> bool:
    """Whether the layer has something to prepare."""
    return type(layer).prepare is not Layer.prepare


def is_trained(layer: Layer) -> bool:
    """Whether any of its parameters is trained and not frozen."""
    return any(p.trained and name not in layer.frozen for name, p in layer.declared.items())


def find_first_trained(runs: list[Run]) -> tuple[int, int]:
    """The run and the step of the first layer that is trained: backward stops there."""
    for k, run in enumerate(runs):
        for i, step in enumerate(run.steps):
            if isinstance(step, LayerStep) and is_trained(step.layer):
                return k, i
    return len(runs), 0


class Pass:
    """What all passes share: the runs, their cuts, and what the layers prepared."""

    training = False

    def __init__(self, model: "Sequential", runs: list[Run], n: int, pass_id: int = 0) -> None:
        self.model, self.runs, self.n, self.pass_id = model, runs, n, pass_id
        self.xp = model.backend.xp
        self.itemsize = model.params.dtype.itemsize
        self.cuts = [self._cut(run) for run in runs]
        self.memory = [model.memory_of(run) for run in runs]
        self.prepared = [{i: layer.prepare() for i, layer in memory.preparing} for memory in self.memory]

    def _cut(self, run: Run) -> list[slice]:
        return run.cut(self.n, self.itemsize) if self.model.device == "cpu" else [slice(0, self.n)]

    def load(self, k: int, state: State, rows: slice, work: Workspace) -> tuple[Array, list[Array]]:
        """Rows of state k: the first input is copied and cast, so that nothing writes to the user's array."""
        if k:
            return state[0][rows], [array[rows] for array in state[1:]]
        a = work.input.get("a", (rows.stop - rows.start, *self.runs[0].in_shapes[0]), self.model.dtype)
        a[...] = state[0][rows]
        return a, []

    def empty_state(self, shapes: list[tuple[int, ...]]) -> State:
        """Room for the whole batch."""
        return [self.xp.empty((self.n, *shape), self.model.dtype) for shape in shapes]

    def each(self, k: int, work: Callable[[int, slice], None]) -> None:
        """Do `work(i, rows)` for each shard of run k."""
        cut = self.cuts[k]
        self.model.backend.map_shards(lambda i: work(i, cut[i]), len(cut))


def _store(state: State, rows: slice, a: Array, stack: list[Array], target: Array) -> None:
    """Put a shard's rows into a state; `a` may lie there already, as `target`."""
    if a is not target:
        target[...] = a
    for array, value in zip(state[1:], stack, strict=True):
        array[rows] = value


def infer(model: "Sequential", x: Array) -> Array:
    """The model's output, by its running statistics, without anything kept."""
    current = Pass(model, [model.plan.inference], len(x))
    memory = current.memory[0]
    out: Array = current.xp.empty((len(x), *model.out_shape), model.dtype)

    def work(i: int, rows: slice) -> None:
        space = memory.workspace()
        space.begin(rows, current, current.prepared[0])
        out[rows] = space.forward(*current.load(0, [x], rows, space))
        memory.workspaces.append(space)

    current.each(0, work)
    return out


class TrainingPass(Pass):
    """Forward with everything kept that backward needs, then backward."""

    training = True

    def __init__(self, model: "Sequential", x: Array, pass_id: int) -> None:
        super().__init__(model, model.plan.training, len(x), pass_id)
        self.last = len(self.runs) - 1
        self.states: list[State] = [[x]]
        self.batches: list[Any] = [None] * len(self.runs)  # what the entry layer of each run knows of the batch
        self.spaces: list[list[Workspace | None]] = [[None] * len(cut) for cut in self.cuts]
        self.delta_batches: list[Any] = [None] * len(self.runs)
        self.first_trained, self.wants_dx = (0, 0), True

    # ---- forward

    def forward(self, last: int) -> None:
        """Run 0 ... `last`, keeping workspaces for backward."""
        for k in range(last + 1):
            self._forward_run(k)

    def _forward_run(self, k: int) -> None:
        run = self.runs[k]
        state = self.empty_state(run.out_shapes)
        parts: list[Any] = [None] * len(self.cuts[k])

        def work(i: int, rows: slice) -> None:
            space = self.spaces[k][i] = self.memory[k].workspace()
            target = state[0][rows]
            # The outputs go to the user, who may write to them: they are a copy of what layers keep.
            a, stack = self._run_forward(k, rows, space, target=target if k < self.last else None)
            _store(state, rows, a, stack, target)
            if run.exit is not None:
                parts[i] = run.exit.statistics(a)

        self.each(k, work)
        self.states.append(state)
        if run.exit is not None:
            self.batches[k + 1] = run.exit.combine(parts)

    def _run_forward(
        self, k: int, rows: slice, space: Workspace, swept: bool = False, target: Array | None = None
    ) -> tuple[Array, list[Array]]:
        space.begin(rows, self, self.prepared[k], swept)
        a, stack = self.load(k, self.states[k], rows, space)
        if self.runs[k].entry is not None:
            space.contexts[0].batch = self.batches[k]
        return space.forward(a, stack, target), stack

    def commit(self) -> None:
        """Take what the batch showed into the running statistics, while nobody infers."""
        if len(self.runs) > 1:
            with self.model.lock.writing():
                for run, batch in zip(self.runs, self.batches, strict=True):
                    if run.entry is not None:
                        run.entry.commit(batch)

    # ---- backward

    def backward(self, delta: Array) -> Array:
        """From dJ/d(output) to dJ/dx, gradients on the way."""
        deltas: State = [delta]
        for k in range(self.last, -1, -1):
            deltas = self._backward_run(k, deltas)
        self.model.vectors.clear_frozen()
        return deltas[0]

    def sweep(self, t: Array, criterion: "Loss", sample_weight: Array | None, total: float, out: Array | None) -> float:
        """Forward, loss and backward; stops at the first layer that is trained. Returns the loss."""
        self.first_trained, self.wants_dx = self.model.first_trained, False
        self.forward(self.last - 1)
        losses = [0.0] * len(self.cuts[self.last])

        def loss_of(z: Array, i: int, rows: slice) -> Array:
            weight = None if sample_weight is None else sample_weight[rows]
            losses[i], delta = criterion(z, t[rows], sample_weight=weight, total=total)
            if out is not None:
                out[rows] = z
            return delta

        deltas = self._backward_run(self.last, [], loss_of)
        for k in range(self.last - 1, self.first_trained[0] - 1, -1):
            deltas = self._backward_run(k, deltas)
        self.model.vectors.clear_frozen()
        return sum(losses)

    def _backward_run(self, k: int, deltas: State, loss_of: Callable[[Array, int, slice], Array] | None = None) -> State:
        """Run k backward; with `loss_of` it goes forward first, shard by shard, in one sweep."""
        run, memory, turnstile = self.runs[k], self.memory[k], Turnstile()
        single = len(self.cuts[k]) == 1
        entry = run.entry if (k, 0) >= self.first_trained else None
        result = self.empty_state(run.in_shapes) if self.wants_dx or k > self.first_trained[0] else []
        parts: list[Any] = [None] * len(self.cuts[k])

        def work(i: int, rows: slice) -> None:
            gradient = memory.direct if single else memory.gradient()
            space = self.spaces[k][i] or memory.workspace()
            space.allow(self.model.freezes, self.first_trained if k == self.first_trained[0] else None, self.wants_dx)
            gradient.bind(space.contexts)
            if loss_of is None:
                delta, stack = deltas[0][rows], [array[rows] for array in deltas[1:]]
            else:
                delta, stack = loss_of(self._run_forward(k, rows, space, swept=True)[0], i, rows), []
            target = result[0][rows] if result else None
            delta = self._run_backward(k, rows, space, delta, stack, target)
            if target is not None:
                _store(result, rows, delta, stack, target)
            if entry is not None:
                parts[i] = entry.delta_statistics(delta, space.contexts[0])
            if not single:
                with turnstile.turn(i):
                    memory.add(gradient, first=i == 0)
                memory.gradients.append(gradient)
            self.spaces[k][i] = None
            memory.workspaces.append(space)

        self._each_guarded(k, work, turnstile)
        if entry is not None:
            self._combine_deltas(k, parts)
        return result

    def _run_backward(
        self, k: int, rows: slice, space: Workspace, delta: Array, stack: list[Array], target: Array | None
    ) -> Array:
        run, (first_run, first_step) = self.runs[k], self.first_trained
        if k < first_run:
            return delta
        if run.exit is not None:
            ctx = space.exit
            ctx.a, ctx.batch, ctx.delta_batch = (
                self.states[k + 1][0][rows],
                self.batches[k + 1],
                self.delta_batches[k + 1],
            )
            ctx.aim(("delta", run.exit.in_shape))
            delta = run.exit.backward(delta, ctx)
        stop = max(first_step if k == first_run else 0, 0 if run.entry is None else 1)
        for j in range(len(run.steps) - 1, stop - 1, -1):
            delta = run.steps[j].backward(delta, stack, space.contexts[j], target if j == stop else None)
        return delta

    def _each_guarded(self, k: int, work: Callable[[int, slice], None], turnstile: Turnstile) -> None:
        def guarded(i: int, rows: slice) -> None:
            try:
                work(i, rows)
            except BaseException:
                turnstile.break_open()
                raise

        self.each(k, guarded)

    def _combine_deltas(self, k: int, parts: list[Any]) -> None:
        entry = self.runs[k].entry
        ctx = Context(self.xp)
        ctx.batch = self.batches[k]
        self.memory[k].direct.bind([ctx])
        self.delta_batches[k] = entry.combine_deltas(parts, ctx)  # type: ignore[union-attr]

    def release(self) -> None:
        """Give back the workspaces of a pass that nobody will take backward."""
        for memory, spaces in zip(self.memory, self.spaces, strict=True):
            memory.workspaces += [space for space in spaces if space is not None]
            spaces.clear()
