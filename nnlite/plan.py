"""From a tree of layers to the runs of steps that a shard goes through.

The only place that looks at neighbouring layers. `rewrite=False` leaves every step as it was written; the results are
the same bits, but for convolutions that pool, where sums have another order.
"""

import copy
import math
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any, NamedTuple, TypeGuard

from nnlite.backend import Array
from nnlite.layers import BatchNorm, Conv2D, Dense, MaxPool2D, ReLU, Residual
from nnlite.layers.base import BatchLayer, Context, Layer, Shape
from nnlite.steps import Add, Fork, LayerStep, StackStep, Step, Swap

# Bytes of a shard: its largest step, or all that a sweep keeps. Measured: smaller shards stay in a nearer cache, but threads
# wait for each other between calls; larger ones spill.
BUDGET = 14 << 20
WORTH_CUTTING = 1 << 29  # FLOP of a training step: for less, a second thread gains little
EVEN = 4  # more than two shards are a multiple of it, so that 2 or 4 threads end together
FLOPS_PER_SUMMED_VALUE = 400  # a gradient is summed at 20 FLOP a value; at 5% of the work that is 20 times more
FLOPS_PER_MOVED_VALUE = 40  # reading or writing a value takes as long as so many FLOP of a product


class Run:
    """Steps that each shard goes through without waiting for the others.

    entry: the layer of the barrier before it, whose forward opens the run (it is the first step); exit: the layer of the
    barrier after it, whose backward opens the run's backward. `whole`: a layer needs the batch in one piece.
    sweeps: it is the last of a training pass, in which a shard goes forward, through the loss and backward at once.
    in_shapes, out_shapes: of a sample's state, the current array and the stack, before and after the run.
    carried: places of the stack after the run that hold what lay on the stack before it, and where; doubled: those that hold
    the current array; maker: the number of the step that made it.
    """

    def __init__(self, steps: list[Step], entry: BatchLayer | None = None, whole: bool = False) -> None:
        self.steps, self.entry, self.whole = steps, entry, whole
        self.exit: BatchLayer | None = None
        self.sweeps = False
        self.in_shapes: list[Shape] = []
        self.out_shapes: list[Shape] = []
        self.carried: dict[int, int] = {}
        self.doubled: set[int] = set()
        self.maker: int | None = None
        self._cuts: dict[int, list[slice]] = {}

    @property
    def layers(self) -> list[Layer]:
        """The layers of its steps."""
        return [step.layer for step in self.steps if isinstance(step, LayerStep)]

    def exit_backward(self, delta: Array, ctx: Context) -> Any:
        """The backward pass of the barrier after it."""
        return self.exit.backward(delta, ctx)  # type: ignore[union-attr]

    def cut(self, n: int, itemsize: int) -> list[slice]:
        """The shards of a batch of n: a function of shapes alone, so that every machine cuts alike."""
        shards = self._cuts.get(n)
        if shards is None:
            shards = self._cuts[n] = self._cut(n, itemsize)
        return shards

    def _cut(self, n: int, itemsize: int) -> list[slice]:
        if self.whole:
            return [slice(0, n)]
        layers = self.layers if self.exit is None else [*self.layers, self.exit]
        count = 1
        if n * _work(layers) > WORTH_CUTTING:
            # Each shard reads and writes all weights: it should hold as many values of its own.
            largest = max(_values(layer) for layer in layers)
            most = n * largest // max(1, sum(layer.weights() for layer in layers))
            held = max(largest, sum(_kept(layer) for layer in layers)) if self.sweeps else largest
            count = min(-(-n * held * itemsize // BUDGET), most)
            count = max(EVEN, round(count / EVEN) * EVEN) if count > 2 else 2
            count = max(1, min(count, n // self._least_rows()))
        rows, longer = divmod(n, count)  # the longer shards first: what they use is large enough for the others
        starts = [i * rows + min(i, longer) for i in range(count + 1)]
        return [slice(*both) for both in pairwise(starts)]

    def _least_rows(self) -> int:
        """Samples that make summing the gradients cost under 5% of computing them."""
        values = sum(p.size for layer in self.layers for p in layer.declared.values() if p.trained)
        return max(1, -(-values * FLOPS_PER_SUMMED_VALUE // max(1, _work(self.layers))))


def _work(layers: list[Layer]) -> int:
    """FLOP of a training step of one sample; what is read and written counts, too."""
    return 3 * sum(layer.flops() + FLOPS_PER_MOVED_VALUE * _values(layer) for layer in layers)


def _values(layer: Layer) -> int:
    return math.prod(layer.in_shape) + math.prod(layer.out_shape) + layer.temporaries()


def _kept(layer: Layer) -> int:
    # Its output is the next one's input; an elementwise one may work in place.
    return (0 if layer.elementwise else math.prod(layer.in_shape)) + layer.temporaries()


class Plan(NamedTuple):
    """The runs of a training pass, and the one run of inference."""

    training: list[Run]
    inference: Run


def make_plan(layers: dict[str, Layer], in_shape: Shape, rewrite: bool = True) -> Plan:
    """Flatten, rewrite and cut into runs."""
    training, inference = _with_frozen_forms(_flatten(layers, "")), _flatten(layers, "")
    if rewrite:
        training, inference = (_relu_fused(_pool_in_conv(_pool_before_relu(steps))) for steps in (training, inference))
    runs = _cut_at_barriers(training)
    runs[-1].sweeps = True
    whole = Run(inference, whole=any(isinstance(s, LayerStep) and not _shardable(s.layer) for s in inference))
    for chain in (runs, [whole]):
        shapes = [in_shape]
        for run in chain:
            run.in_shapes, shapes = shapes, _shapes_after(run.steps, shapes)
            run.out_shapes = shapes
            _follow_stack(run)
            _number_buffers(run)
    if rewrite:
        for run in runs:
            _allow_in_place(run, training=True)
        _allow_in_place(whole, training=False)
    return Plan(runs, whole)


def _flatten(layers: dict[str, Layer], prefix: str) -> list[Step]:
    steps = list[Step]()
    for name, layer in layers.items():
        path = prefix + name
        if isinstance(layer, Residual):
            main, shortcut = (_flatten(branch, path + ".") for branch in (layer.main_branch(), layer.shortcut_branch()))
            steps += [StackStep(Fork()), *main, StackStep(Swap()), *shortcut, StackStep(Add())]
        elif layer.children():
            steps += _flatten(layer.children(), path + ".")
        else:
            steps.append(LayerStep(path, layer))
    return steps


def _with_frozen_forms(steps: list[Step]) -> list[Step]:
    """Layers that are frozen whole as what they are then: no barrier, no statistics."""
    for step in steps:
        if isinstance(step, LayerStep) and step.layer.has_frozen_form and step.layer.is_frozen_whole:
            step.layer = step.layer.frozen_form()
    return steps


def _pool_before_relu(steps: list[Step]) -> list[Step]:
    """ReLU then max-pool is max-pool then ReLU, forward and backward, on a fraction of the values."""
    steps = list(steps)
    for i, (first, second) in enumerate(pairwise(steps)):
        if _is(first, ReLU) and _is(second, MaxPool2D):
            steps[i], steps[i + 1] = second, _relu_step(ReLU(), second.layer.out_shape, first)
    return steps


def _relu_step(relu: ReLU, shape: Shape, like: LayerStep) -> LayerStep:
    """A step of this ReLU for samples of a shape, in place of another."""
    relu.in_shape = relu.out_shape = shape
    relu.backend = like.layer.backend
    return LayerStep(like.path, relu)


def _pool_in_conv(steps: list[Step]) -> list[Step]:
    """A convolution and the max-pooling behind it as one step: only the maxima are put into an image."""
    joined = list[Any]()
    for step in steps:
        joined.append(step)
        if len(joined) > 1 and _is(joined[-2], Conv2D) and _is(step, MaxPool2D):
            conv, pool = joined[-2:]
            joins = conv.layer.backend.joins_pool and conv.layer.groups == 1
            if joins and pool.layer.plan.window.is_blockwise and not pool.layer.plan.is_large:
                joined[-2:] = [LayerStep(conv.path, _with_pool(conv.layer, pool.layer))]
    return joined


class _DoneReLU(ReLU):
    """A ReLU whose forward pass was done by the step before it."""

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = a
        return a


def _relu_fused(steps: list[Step]) -> list[Step]:
    """ReLU in the sweep that adds a bias or normalises before it, where the backend has such a sweep."""
    steps = list(steps)
    for i, (first, second) in enumerate(pairwise(steps)):
        if _is(second, ReLU) and _ends_with_a_sweep(first):
            steps[i] = LayerStep(first.path, _with_relu(first.layer))
            steps[i + 1] = _relu_step(_DoneReLU(), second.layer.out_shape, second)
    return steps


def _ends_with_a_sweep(step: Step) -> TypeGuard[LayerStep]:
    if not isinstance(step, LayerStep) or not step.layer.backend.fuses_relu:
        return False
    layer = step.layer
    return type(layer) is BatchNorm or (type(layer) in (Conv2D, Dense) and layer.bias and getattr(layer, "groups", 1) == 1)


def _with_relu(layer: Layer) -> Layer:
    """A twin with the same parameters whose outputs have gone through ReLU."""
    twin = copy.copy(layer)
    twin.ends_with_relu = True
    return twin


def _with_pool(conv: Conv2D, pool: MaxPool2D) -> Conv2D:
    """A twin of `conv` that has the same parameters and gives what `pool` would make of its outputs."""
    twin, window = copy.copy(conv), pool.plan.window
    twin.plan = conv.backend.conv_plan(conv.plan.window.before(window), conv.filters, conv.groups, conv.bias, window.kernel)
    twin.out_shape = pool.out_shape
    return twin


def _is(step: Step, kind: type[Layer]) -> TypeGuard[LayerStep]:
    return isinstance(step, LayerStep) and type(step.layer) is kind


def _shardable(layer: Layer) -> bool:
    return layer.samplewise or isinstance(layer, BatchLayer)


def _cut_at_barriers(steps: list[Step]) -> list[Run]:
    runs = [Run([])]
    for step in steps:
        if isinstance(step, LayerStep) and isinstance(step.layer, BatchLayer):
            runs[-1].exit = step.layer
            runs.append(Run([step], entry=step.layer))
        elif isinstance(step, LayerStep) and not step.layer.samplewise:
            runs += [Run([step], whole=True), Run([])]
        else:
            runs[-1].steps.append(step)
    return [run for run in runs if run.steps or run.exit] or runs[:1]


def _shapes_after(steps: Sequence[Step], shapes: list[Shape]) -> list[Shape]:
    current, *stack = shapes
    for step in steps:
        if isinstance(step, LayerStep):
            current = step.layer.out_shape
        elif isinstance(step.move, Fork):
            stack.append(current)
        elif isinstance(step.move, Swap):
            stack[-1], current = current, stack[-1]
        else:
            stack.pop()
    return [current, *stack]


def _follow_stack(run: Run) -> None:
    """Find what a run carries along without touching it, and what it leaves at two places: no copy of that is made."""
    depth = len(run.in_shapes)
    current, *stack = range(depth)  # where an array lay before the run, or depth + i for what step i makes
    used = set[int]()  # their deltas have other parts than the one that comes back along the stack
    for i, step in enumerate(run.steps):
        if isinstance(step, LayerStep):
            used.add(current)
            current = depth + i
        elif isinstance(step.move, Fork):
            stack.append(current)
        elif isinstance(step.move, Swap):
            stack[-1], current = current, stack[-1]
        else:
            used |= {current, stack.pop()}
            current = depth + i
    run.maker = current - depth if current >= depth else None
    run.doubled = {j for j, source in enumerate(stack, 1) if source == current}
    run.carried = {
        j: source
        for j, source in enumerate(stack, 1)
        if 0 < source < depth and source not in used and [current, *stack].count(source) == 1
    }


def _number_buffers(run: Run) -> None:
    """Give each step's delta a buffer that holds no delta that is still wanted; buffer 0 is that of the run's exit."""
    current, stack = {0}, [set[int]() for _ in run.out_shapes[1:]]
    for step in reversed(run.steps):
        taken = current.union(*stack)
        step.buffer = next(number for number in count() if number not in taken)
        if isinstance(step, LayerStep):
            # What shares memory with the delta that it was given keeps that buffer taken, too.
            current = current | {step.buffer} if step.layer.shares_memory or step.layer.elementwise else {step.buffer}
        elif isinstance(step.move, Add):
            stack.append(current)
        elif isinstance(step.move, Swap):
            stack[-1], current = current, stack[-1]
        else:
            stack.pop()
            current = current | {step.buffer}


def _allow_in_place(run: Run, training: bool) -> None:
    """Mark the steps whose input nobody else needs, forward and backward: elementwise ones, and sums of two branches."""
    steps = run.steps
    free, stack = False, [False] * len(steps)  # what lies at a barrier is kept, and the first input is the user's
    for step in steps:
        if isinstance(step, LayerStep):
            layer, keeps = step.layer, step.layer.keeps if training else None
            step.in_place = free and layer.elementwise and keeps in (None, "output")
            shared = layer.shares_memory or step.in_place
            free = keeps in (None, "input") and (not shared or (free and keeps is None))
        else:
            step.in_place = free
            free = _move(step, free, stack, splits=Fork, joins=Add)
    free, stack = run.exit is not None and not run.exit.shares_memory, [False] * len(steps)
    for step in reversed(steps):
        if isinstance(step, LayerStep):
            step.delta_in_place = free and step.layer.elementwise
            free = free if step.layer.shares_memory or step.delta_in_place else True
        else:
            step.delta_in_place = free
            free = _move(step, free, stack, splits=Add, joins=Fork)


def _move(step: StackStep, free: bool, stack: list[bool], splits: type, joins: type) -> bool:
    if isinstance(step.move, splits):
        stack.append(False)
        return False
    if isinstance(step.move, joins):
        stack.pop()
        return True  # the sum is a new array
    stack[-1], free = free, stack[-1]
    return free
