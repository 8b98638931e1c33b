"""What passes through a run of layers use again: contexts, gradient vectors, prepared filters."""

from typing import TYPE_CHECKING, Any

from nnlite.backend import Array
from nnlite.backend.memory import Buffers, Memory
from nnlite.layers.base import Context, Layer, Shard
from nnlite.plan import Run
from nnlite.steps import LayerStep
from nnlite.vectors import Slot, is_trained, shift

if TYPE_CHECKING:
    from nnlite.model import Sequential
    from nnlite.shards import Pass

_WORTH_THREADS = 1 << 18  # values of weights to prepare: for fewer, waking a thread takes longer


class Workspace:
    """What one shard in flight holds: a context for each step, and the memory that they use again."""

    def __init__(self, model: "Sequential", run: Run) -> None:
        backend = model.backend
        self.shard = Shard(seed=model.seed)
        self.input = Buffers(backend)
        self.steps = run.steps
        self.contexts = [
            Context(backend, model.layer_ids.get(getattr(step, "path", ""), 0), self.shard, model.dtype) for step in run.steps
        ]
        self.exit = Context(backend, 0, self.shard, model.dtype)
        pairs = zip(run.steps, self.contexts, strict=True)
        self.layers = [(i, step.layer, ctx) for i, (step, ctx) in enumerate(pairs) if isinstance(step, LayerStep)]
        self.preparing = [(i, ctx) for i, layer, ctx in self.layers if prepares(layer)]
        self.allowed: Any = None
        self.gradient: GradientVector | None = None
        self.maker = run.maker

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

    def write_to(self, gradient: "GradientVector") -> None:
        """Let backward write the gradients there."""
        if self.gradient is not gradient:
            self.gradient = gradient
            gradient.bind(self.contexts)

    def forward(self, a: Array, stack: list[Array], target: Array | None = None) -> Array:
        """Through all steps; the one that makes the result may write it to `target`."""
        for i, step in enumerate(self.steps):
            a = step.forward(a, stack, self.contexts[i], target if i == self.maker else None)
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

    `total`: where the shards' gradients are added up; the first shard writes there directly, through `direct`.
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
        self.reused = [Memory(model.backend) for _ in self.preparing]
        self.kept: tuple[list[Array], dict[int, Any]] | None = None
        self.weights = sum(layer.weights() for _, layer in self.preparing)
        self.prepared_from = _what_they_read(model, {run.steps[i].path for i, _ in self.preparing})  # type: ignore[union-attr]
        self.workspaces: list[Workspace] = []
        self.gradients: list[GradientVector] = []

    def workspace(self) -> Workspace:
        """A workspace; give it back with `workspaces.append`."""
        try:
            return self.workspaces.pop()
        except IndexError:
            return Workspace(self.model, self.run)

    def prepare(self) -> dict[int, Any]:
        """What the layers prepare for a training pass, by step; the next one writes the same arrays anew."""
        return self._prepare(self.reused)

    def keep_prepared(self) -> dict[int, Any]:
        """The same for inference, kept as long as what they read has the same values."""
        if self.model.backend.waits_for_reads:  # comparing would take longer than preparing
            return self._prepare([Memory(self.model.backend) for _ in self.preparing])
        kept = self.kept
        if kept is None or not all((a == b).all() for a, b in zip(kept[0], self.prepared_from, strict=True)):
            # New arrays: another thread may still use the old ones.
            values = [values.copy() for values in self.prepared_from]
            kept = self.kept = values, self._prepare([Memory(self.model.backend) for _ in self.preparing])
        return kept[1]

    def _prepare(self, memories: list[Memory]) -> dict[int, Any]:
        prepared: dict[int, Any] = {}

        def work(j: int) -> None:
            i, layer = self.preparing[j]
            prepared[i] = layer.prepare(memories[j])

        if self.weights >= _WORTH_THREADS:
            self.model.backend.map_shards(work, len(self.preparing))
        else:
            for j in range(len(self.preparing)):
                work(j)
        return prepared

    def gradient(self) -> GradientVector:
        """A gradient vector; give it back with `gradients.append`."""
        try:
            return self.gradients.pop()
        except IndexError:
            # Zeros, because what a barrier writes is never written by the shards.
            return GradientVector(self.run, self.slots, self.model.backend.zeros(len(self.total), self.total.dtype))

    def add(self, gradient: GradientVector) -> None:
        """Add a shard's gradients to the total, and take their vector back."""
        self.total += gradient.vector
        self.gradients.append(gradient)


def _what_they_read(model: "Sequential", paths: set[str]) -> list[Array]:
    """The stretches of the model's vectors that hold the arrays of the layers with these paths."""
    stretches = []
    for slots, vector in ((model.vectors.trained, model.params), (model.vectors.kept, model.buffers)):
        places = [slot.place for slot in slots if slot.path in paths]
        if places:
            stretches.append(vector[places[0].start : places[-1].stop])
    return stretches


def prepares(layer: Layer) -> bool:
    """Whether the layer has something to prepare."""
    return type(layer).prepare is not Layer.prepare
