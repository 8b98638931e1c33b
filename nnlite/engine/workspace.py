"""What passes through a run reuse: contexts, gradient vectors, prepared filters."""

from collections.abc import Mapping
from typing import Any

from nnlite.backend import Array
from nnlite.backend.memory import Buffers, Memory
from nnlite.engine.plan import Run
from nnlite.engine.steps import Step, Values
from nnlite.engine.vectors import Vectors, is_trained, shift
from nnlite.layers.base import Context, Layer, Shard, Slot

_WORTH_THREADS = 1 << 18  # weights to prepare: with fewer, waking a thread takes longer
STRETCH = 32  # shards whose gradients are added one after another

Prepared = dict[int, Any]  # what layers have prepared, by the number of the value that their step makes


class Workspace:
    """The state of one shard in flight: a context for each step, by the number of the value made, and the memory they reuse."""

    def __init__(self, vectors: Vectors, run: Run, layer_ids: Mapping[str, int], seed: int) -> None:
        self.run, self.shard = run, Shard(seed)
        self.input = Buffers(vectors.backend)
        self.steps = list({step.makes: step for step in (*run.steps, *run.backward.steps)}.values())
        self.contexts = {
            step.makes: Context(vectors.backend, layer_ids.get(step.path, 0), self.shard, vectors.dtype) for step in self.steps
        }
        self.forward_steps = [(step, self.contexts[step.makes]) for step in run.steps]
        self.preparing = [(step.makes, self.contexts[step.makes]) for step in run.steps if prepares(step.layer)]
        self.gradient: GradientVector | None = None
        self.wanted: frozenset[int] | None = None
        self.backward_steps: list[tuple[Step, Context]] = []

    def begin(self, rows: slice, pass_id: int, prepared: Prepared, training: bool, swept: bool, first: int = 0) -> None:
        """Start a pass of the samples `rows`. first: the place in the batch that these count from."""
        shard = self.shard
        shard.start, shard.rows, shard.pass_id = first + rows.start, rows.stop - rows.start, pass_id
        shard.training, shard.swept = training, swept
        for makes, ctx in self.preparing:
            ctx.prepared = prepared[makes]

    def forward(self, values: Values, targets: Values) -> Values:
        """Run all steps; a value with a target may be written there."""
        for step, ctx in self.forward_steps:
            step.forward(values, ctx, targets.get(step.makes) if targets else None)
        return values

    def backward(self, deltas: Values, targets: Values) -> Values:
        """Run backward through the steps whose deltas are wanted."""
        for step, ctx in self.backward_steps:
            step.backward(deltas, ctx, targets)
        return deltas

    def allow(self, wanted: frozenset[int]) -> None:
        """Set the values whose deltas are wanted, and tell the layers."""
        if self.wanted is not wanted:
            self.wanted = wanted
            back = reversed(self.run.backward.steps)
            self.backward_steps = [(step, self.contexts[step.makes]) for step in back if step.makes in wanted]
            for step in self.steps:
                ctx = self.contexts[step.makes]
                ctx.trained, ctx.needs_delta = is_trained(step.layer), not wanted.isdisjoint(step.reads)

    def write_to(self, gradient: "GradientVector") -> None:
        """Let backward write the gradients there."""
        if self.gradient is not gradient:
            self.gradient = gradient
            gradient.bind(self.contexts)


class GradientVector:
    """The gradients of a run in one vector, and the views of it that backward writes to."""

    def __init__(self, run: Run, slots: list[Slot], vector: Array) -> None:
        self.vector = vector
        start = slots[0].place.start if slots else 0
        makes = {step.path: step.makes for step in run.steps}
        self.views = [
            (makes[s.path], f"d{s.attribute}", vector[shift(s.place, start)].reshape(s.parameter.shape)) for s in slots
        ]

    def bind(self, contexts: Mapping[int, Context]) -> None:
        """Let these contexts, of some or of all steps, write here."""
        for makes, name, view in self.views:
            if makes in contexts:
                setattr(contexts[makes], name, view)


class RunMemory:
    """The free workspaces and gradient vectors of one run.

    `total`: where the shards' gradients are added up; the first shard writes there directly, through `direct`.
    `stretch`: the vector that gradients are being added to.
    """

    def __init__(self, vectors: Vectors, run: Run, layer_ids: Mapping[str, int], seed: int) -> None:
        self.vectors, self.run, self.layer_ids, self.seed = vectors, run, layer_ids, seed
        paths = {step.path for step in run.steps}
        self.slots = [slot for slot in vectors.trained if slot.path in paths]
        place = slice(self.slots[0].place.start, self.slots[-1].place.stop) if self.slots else slice(0, 0)
        self.total = vectors.grads[place]
        self.direct = self.stretch = GradientVector(run, self.slots, self.total)
        self.preparing = [(step.makes, step.layer) for step in run.steps if prepares(step.layer)]
        self.reused = [Memory(vectors.backend) for _ in self.preparing]
        self.kept: tuple[list[Array], Prepared] | None = None
        self.weights = sum(layer.weights() for _, layer in self.preparing)
        self.prepared_from = _what_they_read(vectors, [step for step in run.steps if prepares(step.layer)])
        self.workspaces: list[Workspace] = []
        self.gradients: list[GradientVector] = []

    def workspace(self) -> Workspace:
        """A workspace; give it back with `workspaces.append`."""
        try:
            return self.workspaces.pop()
        except IndexError:
            return Workspace(self.vectors, self.run, self.layer_ids, self.seed)

    def prepare(self, batch: int) -> Prepared:
        """What the layers prepare for a training pass of so many samples; the next one overwrites the same arrays."""
        for memory in self.reused:
            memory.batch = batch
        return self._prepare(self.reused)

    def keep_prepared(self) -> Prepared:
        """What the layers prepare for inference, kept while the values that they read stay the same."""
        backend = self.vectors.backend
        if backend.waits_for_reads:  # comparing takes longer than preparing
            return self._prepare([Memory(backend) for _ in self.preparing])
        kept = self.kept
        if kept is None or not all((a == b).all() for a, b in zip(kept[0], self.prepared_from, strict=True)):
            # New arrays: another thread may still use the old ones.
            values = [values.copy() for values in self.prepared_from]
            kept = self.kept = values, self._prepare([Memory(backend) for _ in self.preparing])
        return kept[1]

    def _prepare(self, memories: list[Memory]) -> Prepared:
        prepared = Prepared()

        def work(j: int) -> None:
            makes, layer = self.preparing[j]
            prepared[makes] = layer.prepare(memories[j])

        if self.weights >= _WORTH_THREADS:
            self.vectors.backend.map_shards(work, len(self.preparing))
        else:
            for j in range(len(self.preparing)):
                work(j)
        return prepared

    def gradient(self) -> GradientVector:
        """A gradient vector; give it back with `gradients.append`."""
        try:
            return self.gradients.pop()
        except IndexError:
            # Zeros, because shards never write the gradients of a barrier.
            return GradientVector(self.run, self.slots, self.vectors.backend.zeros(len(self.total), self.total.dtype))

    def add(self, i: int, gradient: GradientVector, last: bool) -> None:
        """Add the gradients of shard i, the next one, to the total, and take their vector back.

        Many shards are added in stretches, and their sums to the total, so that no digits are lost.
        """
        place = i % STRETCH
        if place == 0:
            self.stretch = gradient
        else:
            self.stretch.vector += gradient.vector
            self.gradients.append(gradient)
        if (place == STRETCH - 1 or last) and self.stretch is not self.direct:
            self.total += self.stretch.vector
            self.gradients.append(self.stretch)


def _what_they_read(vectors: Vectors, steps: list[Step]) -> list[Array]:
    """The stretches of the vectors that hold the arrays of these steps' layers."""
    stretches, paths = [], {path for step in steps for path in step.paths}
    for slots, vector in ((vectors.trained, vectors.params), (vectors.kept, vectors.buffers)):
        places = [slot.place for slot in slots if slot.path in paths]
        if places:
            stretches.append(vector[places[0].start : places[-1].stop])
    return stretches


def prepares(layer: Layer) -> bool:
    """Whether the layer has something to prepare."""
    return type(layer).prepare is not Layer.prepare
