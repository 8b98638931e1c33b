"""The steps of a plan: a layer reads numbered values and makes one. Value 0 is the input."""

from typing import Any, NamedTuple

from nnlite.backend import Array
from nnlite.layers.base import Context, Layer, Room

Values = dict[int, Any]  # of one shard, or their deltas, by number


class Step:
    """A layer that reads one value.

    does: what is called: the layer itself, or a hook's wrapper around it.  paths: of the layers whose parameters it reads.
    ends: the values that no later step reads. over: the input that forward may overwrite, or None.
    delta_in_place: backward may overwrite its delta; buffer: the number of the thread's buffer for its result.
    adds: whether its result is added to the delta of the same value from a later step that also reads it: in place, or in the
    buffer sum_buffer.  images: values that are images.
    completes: the values from before the run whose deltas are complete after it.
    """

    def __init__(self, path: str, layer: Layer, reads: tuple[int, ...], makes: int) -> None:
        self.path, self.layer, self.does = path, layer, layer
        self.paths: tuple[str, ...] = (path,)
        self.reads, self.makes = reads, makes
        self.ends: tuple[int, ...] = ()
        self.over: int | None = None
        self.delta_in_place = self.sum_in_place = False
        self.buffer = self.sum_buffer = 0
        self.completes = self.images = frozenset[int]()

    def by(self, layer: Layer, last: "Step | None" = None) -> "Step":
        """A step of this layer in place of this one, or of this one and the `last`, which reads what it makes."""
        step = Step(self.path, layer, self.reads, (last or self).makes)
        step.paths = self.paths + (last.paths if last else ())
        return step

    def forward(self, values: Values, ctx: Context, target: Array | None) -> None:
        """Make the value; in `target`, if one is given and the layer writes to `ctx.out`."""
        a = values.pop(self.reads[0]) if self.ends else values[self.reads[0]]
        if target is None:
            target = self._own_room() if self.over is None else a
        ctx.aim(target, a if self.layer.elementwise else None)
        values[self.makes] = self.does.forward(a, ctx)

    def backward(self, deltas: Values, ctx: Context, targets: Values) -> None:
        """From the delta of the value made to that of the value read, in the target of its number, if any."""
        delta, v = deltas.pop(self.makes), self.reads[0]
        others = deltas.get(v)
        target = targets.get(v) if self.completes else None
        if others is None and target is not None:
            ctx.aim(target)
        else:
            ctx.aim(delta if self.delta_in_place else Room(self.buffer, self.layer.in_shape, v in self.images))
        part = self.does.backward(delta, ctx)
        deltas[v] = part if part is None or others is None else self._add(v, part, others, ctx, target)

    def _own_room(self) -> Room:
        return Room(None, self.layer.out_shape, self.makes in self.images)

    def _add(self, v: int, part: Array, others: Array, ctx: Context, target: Array | None) -> Array:
        """The sum of two deltas of value v."""
        buffer = Room(self.sum_buffer, part.shape[1:], v in self.images)
        ctx.aim((part if self.sum_in_place else buffer) if target is None else target)
        return ctx.xp.add(part, others, out=ctx.out)


class Join(Step):
    """A layer that reads several values: its forward takes a list, its backward gives a delta for each."""

    def forward(self, values: Values, ctx: Context, target: Array | None) -> None:
        inputs = [values[v] for v in self.reads]
        if target is None:
            target = self._own_room() if self.over is None else values[self.over]
        ctx.aim(target)
        values[self.makes] = self.does.forward(inputs, ctx)
        for v in self.ends:
            del values[v]

    def backward(self, deltas: Values, ctx: Context, targets: Values) -> None:
        parts: Any = self.does.backward(deltas.pop(self.makes), ctx)
        for v, part in zip(self.reads, parts, strict=True):
            others, target = deltas.get(v), targets.get(v) if v in self.completes else None
            deltas[v] = part if others is None else self._add(v, part, others, ctx, target)


class Stretch(NamedTuple):
    """Steps between two barriers, the values from before them and those needed after them."""

    steps: list[Step]
    takes: frozenset[int]
    gives: frozenset[int]

    @property
    def reads(self) -> frozenset[int]:
        """The values that its steps read."""
        return frozenset(v for step in self.steps for v in step.reads)
