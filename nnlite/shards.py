"""How a batch goes through a model: cut into shards, run by run, forward and backward, on threads, in a fixed order.

State k is what lies at the barrier before run k: the current array and the stack, each for the whole batch, shard after
shard. Within a run a shard goes through all steps while it is in the cache. Gradients are added in the order of the shards.
"""

import math
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nnlite.backend import Array, Backend, Turnstile
from nnlite.backend.memory import Buffers
from nnlite.errors import StateError
from nnlite.layers.base import Context, Shape, Shard
from nnlite.plan import Run
from nnlite.steps import LayerStep
from nnlite.vectors import is_trained
from nnlite.workspace import Workspace

if TYPE_CHECKING:
    from nnlite.losses import Loss
    from nnlite.model import Sequential

Method = TypeVar("Method", bound=Callable[..., Any])


def says_what_memory_was_missing(method: Method) -> Method:
    """A MemoryError of a model's method says how much memory the device has."""

    @wraps(method)
    def wrapper(self: "Sequential", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except MemoryError as error:
            raise self.backend.out_of_memory(error) from error

    return cast(Method, wrapper)


class Batch:
    """An array (N, *shape) that lies shard after shard, each as the backend wants it to lie; `flat`: the memory."""

    def __init__(self, backend: Backend, flat: Array, shape: Shape, cut: list[slice]) -> None:
        self.flat, self.shape, size = flat, shape, math.prod(shape)
        self.shards = [
            (rows, backend.lay_out(flat[rows.start * size : rows.stop * size], (rows.stop - rows.start, *shape)))
            for rows in cut
        ]
        self.by_start = {rows.start: (rows.stop, shard) for rows, shard in self.shards}

    def __getitem__(self, rows: slice) -> Array:
        """The shard of these rows."""
        return self.by_start[rows.start][1]

    def take(self, rows: slice, name: str, room: Buffers) -> Array:
        """These rows: a shard, or, where another run cuts otherwise, a copy in `room`."""
        stop, shard = self.by_start.get(rows.start, (None, None))
        if stop == rows.stop:
            return shard
        copy = room.batch(name, (rows.stop - rows.start, *self.shape), self.flat.dtype)
        for place, shard in self.shards:
            start, stop = max(rows.start, place.start), min(rows.stop, place.stop)
            if start < stop:
                copy[start - rows.start : stop - rows.start] = shard[start - place.start : stop - place.start]
        return copy


State = list[Any]  # of batches; the user's own arrays are arrays


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

    def _cut(self, run: Run) -> list[slice]:
        return run.cut(self.n, self.itemsize) if self.model.backend.cuts_batches else [slice(0, self.n)]

    def load(self, state: State, rows: slice, work: Workspace) -> tuple[Array, list[Array]]:
        """Rows of a state; those of the user's array are cast to the model's dtype."""
        first = state[0]
        if type(first) is Batch:
            return _take(state, rows, "state", work.input)
        a = first[rows]
        if a.dtype == self.model.dtype and a.flags.c_contiguous:
            return a, []
        room = work.input.get("a", a.shape, self.model.dtype)
        room[...] = a
        return room, []

    def each(self, k: int, work: Callable[[int, slice], None], on_error: Callable[[], None] = lambda: None) -> None:
        """Do `work(i, rows)` for each shard of run k."""
        cut = self.cuts[k]
        self.model.backend.map_shards(lambda i: work(i, cut[i]), len(cut), on_error)


def _take(state: State, rows: slice, name: str, room: Buffers) -> tuple[Array, list[Array]]:
    first = state[0]
    a = first.take(rows, f"{name} 0", room)
    return a, [a if batch is first else batch.take(rows, f"{name} {j}", room) for j, batch in enumerate(state[1:], 1)]


def _store(state: State, own: Iterable[int], rows: slice, a: Array, stack: list[Array], target: Array) -> None:
    """Put a shard's rows into a state, at its `own` places of the stack; `a` may lie there already, as `target`."""
    if a is not target:
        target[...] = a
    for j in own:
        state[j][rows][...] = stack[j - 1]


def infer(model: "Sequential", x: Array) -> Array:
    """The model's output, by its running statistics, without anything kept."""
    current = Pass(model, [model.plan.inference], len(x))
    memory = current.memory[0]
    prepared = memory.keep_prepared()
    out: Array = current.xp.empty((len(x), *model.out_shape), model.dtype)

    def work(i: int, rows: slice) -> None:
        space = memory.workspace()
        space.begin(rows, current, prepared)
        out[rows] = space.forward(*current.load([x], rows, space))
        memory.workspaces.append(space)

    current.each(0, work)
    return out


class TrainingPass(Pass):
    """Forward with everything kept that backward needs, then backward."""

    training = True

    def __init__(self, model: "Sequential", x: Array, pass_id: int) -> None:
        super().__init__(model, model.plan.training, len(x), pass_id)
        self.last = len(self.runs) - 1
        self.prepared = [memory.prepare() for memory in self.memory]
        self.states: list[State] = [[x]]
        self.batches: list[Any] = [None] * len(self.runs)  # what the entry layer of each run knows of the batch
        self.pool = model.state_pool
        self.spaces: list[list[Workspace | None]] = [[None] * len(cut) for cut in self.cuts]
        self.delta_batches: list[Any] = [None] * len(self.runs)
        self.first_trained, self.wants_dx = (0, 0), True

    # ---- forward

    def forward_by_hand(self) -> Array:
        """The outputs; `backward` may follow."""
        self.values = self.model.params.copy()
        self.forward(self.last)
        self.commit()
        outputs: Array = self.states[-1][0]
        return outputs

    def forward(self, last: int) -> None:
        """Run 0 ... `last`, keeping workspaces for backward."""
        for k in range(last + 1):
            self._forward_run(k)

    def _forward_run(self, k: int) -> None:
        run = self.runs[k]
        own = [j for j in range(1, len(run.out_shapes)) if j not in run.carried and j not in run.doubled]
        state = self._room(run.out_shapes, [0, *own], self.cuts[k], fresh=k == self.last)
        for j, source in run.carried.items():
            state[j] = self.states[k][source]
        for j in run.doubled:
            state[j] = state[0]
        parts: list[Any] = [None] * len(self.cuts[k])

        def work(i: int, rows: slice) -> None:
            space = self.spaces[k][i] = self.memory[k].workspace()
            target = state[0][rows]
            # The outputs go to the user, who may write to them: they are a copy of what layers keep.
            a, stack = self._run_forward(k, rows, space, target=target if k < self.last else None)
            _store(state, own, rows, a, stack, target)
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
        a, stack = self.load(self.states[k], rows, space)
        if self.runs[k].entry is not None:
            space.contexts[0].a, space.contexts[0].batch = a, self.batches[k]
        return space.forward(a, stack, target), stack

    def commit(self, loss: Any = None) -> None:
        """Take what the batch showed into the running statistics, while nobody infers.

        loss: after backward. Nothing is taken in where it or a gradient is not finite.
        """
        if self.last == 0:
            return
        model = self.model
        numbers = () if loss is None else (loss, model.backend.norm(model.grads))
        with model.lock.writing():
            model.backend.unless_bad(numbers, model.buffers, self._commit)

    def _commit(self) -> None:
        for run, batch in zip(self.runs, self.batches, strict=True):
            if run.entry is not None:
                run.entry.commit(batch)

    # ---- backward

    def backward(self, delta: Array) -> Array:
        """From dJ/d(output) to dJ/dx, gradients on the way, after `forward_by_hand`."""
        self._refuse_changes()
        deltas: State = [delta]
        for k in range(self.last, -1, -1):
            deltas = self._backward_run(k, deltas)
        self._end()
        return deltas[0]

    def _refuse_changes(self) -> None:
        """Some layers would go backward with the new values, some with the old."""
        bits = f"u{self.itemsize}"  # of NaN, too
        if not bool((self.values.view(bits) == self.model.params.view(bits)).all()):
            raise StateError("parameters changed after forward(x, training=True): call it again before backward")

    def sweep(self, t: Array, criterion: "Loss", sample_weight: Array | None, total: float, out: Array | None) -> Any:
        """Forward, loss and backward; stops at the first layer that is trained. Returns the loss."""
        self.first_trained, self.wants_dx = self.model.first_trained, False
        self.forward(self.last - 1)
        losses: list[Any] = [0.0] * len(self.cuts[self.last])

        def loss_of(z: Array, i: int, rows: slice) -> Array:
            weight = None if sample_weight is None else sample_weight[rows]
            losses[i], delta = criterion(z, t[rows], sample_weight=weight, total=total)
            if out is not None:
                out[rows] = z
            return delta

        deltas = self._backward_run(self.last, [], loss_of)
        for k in range(self.last - 1, self.first_trained[0] - 1, -1):
            deltas = self._backward_run(k, deltas)
        self._end()
        return sum(losses[1:], losses[0])

    def _end(self) -> None:
        self.model.vectors.clear_frozen()
        self._give_states_back()

    def _backward_run(self, k: int, deltas: State, loss_of: Callable[[Array, int, slice], Array] | None = None) -> State:
        """Run k backward; with `loss_of` it goes forward first, shard by shard, in one sweep."""
        run, memory, count = self.runs[k], self.memory[k], len(self.cuts[k])
        turnstile = Turnstile(count)
        entry = run.entry if (k, 0) >= self.first_trained else None
        carried = {source: j for j, source in run.carried.items()}
        own = [j for j in range(1, len(run.in_shapes)) if j not in carried]
        wanted = self.wants_dx or k > self.first_trained[0]
        result = self._room(run.in_shapes, [0, *own], self.cuts[k], fresh=k == 0) if wanted else []
        if result:
            for source, j in carried.items():
                result[source] = deltas[j]
        parts: list[Any] = [None] * count

        def work(i: int, rows: slice) -> None:
            gradient = memory.direct if i == 0 else memory.gradient()
            space = self.spaces[k][i] or memory.workspace()
            space.allow(self.model.freezes, self.first_trained if k == self.first_trained[0] else None, self.wants_dx)
            space.write_to(gradient)
            if loss_of is None:
                delta, stack = self._load_deltas(deltas, rows, space)
            else:
                delta, stack = loss_of(self._run_forward(k, rows, space, swept=True)[0], i, rows), []
            target = result[0][rows] if result else None
            # As forward: what the user gets is a copy, in the usual order.
            delta = self._run_backward(k, rows, space, delta, stack, target if k > 0 else None)
            if target is not None:
                _store(result, own, rows, delta, stack, target)
            if entry is not None:
                parts[i] = entry.delta_statistics(delta, space.contexts[0])
            if count > 1:
                with turnstile.turn(i):
                    memory.add(i, gradient, last=i == count - 1)
            self.spaces[k][i] = None
            memory.workspaces.append(space)

        self.each(k, work, turnstile.break_open)
        if entry is not None:
            self._combine_deltas(k, parts)
        if k < self.last:
            self._give_back(array for j, array in enumerate(deltas) if j not in run.carried or not result)
            self._give_state_back(k + 1)
        return result

    def _room(self, shapes: list[Shape], places: list[int], cut: list[slice], fresh: bool) -> State:
        """Batches at these places of a state; plain new arrays where the user will see them."""
        state: State = [None] * len(shapes)
        for j in places:
            if fresh:
                state[j] = self.xp.empty((self.n, *shapes[j]), self.model.dtype)
            else:
                flat = self.pool.take(self.n * math.prod(shapes[j]), self.model.dtype)
                state[j] = Batch(self.model.backend, flat, shapes[j], cut)
        return state

    def _give_state_back(self, k: int) -> None:
        """State k is done with, but for what it shares with the state before it."""
        run = self.runs[k - 1]
        self._give_back(a for j, a in enumerate(self.states[k]) if j not in run.carried and j not in run.doubled)
        self.states[k] = []

    def _give_states_back(self) -> None:
        for k in range(1, self.last + 1):
            self._give_state_back(k)

    def _give_back(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.pool.give(batch.flat)

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
            ctx.prepared = self.prepared[k + 1].get(0)
            ctx.aim((0, run.exit.in_shape))
            delta = run.exit_backward(delta, ctx)
        stop = max(first_step if k == first_run else 0, 0 if run.entry is None else 1)
        for j in range(len(run.steps) - 1, stop - 1, -1):
            delta = run.steps[j].backward(delta, stack, space.contexts[j], target if j == stop else None)
        return delta

    def _load_deltas(self, deltas: State, rows: slice, work: Workspace) -> tuple[Array, list[Array]]:
        """Rows of the deltas of a state; the last run's is the user's array."""
        return _take(deltas, rows, "delta", work.input) if type(deltas[0]) is Batch else (deltas[0][rows], [])

    def _combine_deltas(self, k: int, parts: list[Any]) -> None:
        entry = self.runs[k].entry
        ctx = Context(self.model.backend, 0, Shard(self.model.seed), self.model.dtype)
        ctx.batch, ctx.prepared = self.batches[k], self.prepared[k].get(0)
        self.memory[k].direct.bind([ctx])
        self.delta_batches[k] = entry.combine_deltas(parts, ctx)  # type: ignore[union-attr]

    def release(self) -> None:
        """Give back the workspaces of a pass that nobody will take backward."""
        for memory, spaces in zip(self.memory, self.spaces, strict=True):
            memory.workspaces += [space for space in spaces if space is not None]
            spaces.clear()
        self._give_states_back()
