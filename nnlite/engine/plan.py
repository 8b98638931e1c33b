"""From a tree of layers to runs: steps that a shard goes through without waiting for the others."""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import count
from typing import NamedTuple

from nnlite.engine.cut import cut
from nnlite.engine.reuse import end_values, reuse_deltas, reuse_values
from nnlite.engine.rewrite import fuse, reads_bytes
from nnlite.engine.steps import Join, Step, Stretch
from nnlite.engine.vectors import Vectors
from nnlite.layers.base import BatchLayer, Layer, Shape
from nnlite.layers.branches import Branching

Wrap = Callable[[str, Layer], Layer]


class Run:
    """Steps that each shard goes through without waiting for the others, forward and backward.

    entry: the step of the barrier before it, the first one forward; exit: that of the barrier after it, the first one backward.
    forward, backward: its steps in each direction; forward includes the entry but not the exit, backward the reverse.
    whole: a layer needs the whole batch at once.  sweeps: it is the last run of a training pass, in which a shard goes
    forward, through the loss and backward at once.  infers: it is the run of inference.
    """

    def __init__(self, steps: list[Step], entry: Step | None = None, whole: bool = False) -> None:
        self.steps, self.entry, self.whole, self.sweeps, self.infers = steps, entry, whole, False, False
        self.exit: Step | None = None
        self.forward = self.backward = Stretch(steps, frozenset(), frozenset())
        self._cuts: dict[int, list[slice]] = {}

    @property
    def layers(self) -> list[Layer]:
        """The layers of its steps, without those that join branches."""
        return [step.layer for step in self.steps if len(step.reads) == 1]

    @cached_property
    def loads(self) -> frozenset[int]:
        """The values of earlier runs that its shards read."""
        return self.forward.takes & (self.forward.reads | frozenset(self.exit.reads if self.exit else ()))

    @cached_property
    def makes(self) -> frozenset[int]:
        """The values that it makes for later runs."""
        return self.forward.gives - self.forward.takes

    @cached_property
    def receives(self) -> frozenset[int]:
        """The values whose deltas it takes from later runs."""
        made = {step.makes for step in self.backward.steps}
        return self.backward.gives & (self.backward.reads | made | self._of_entry)

    @cached_property
    def returns(self) -> frozenset[int]:
        """The values whose deltas it makes for earlier runs."""
        return self.backward.takes & (self.backward.reads | self._of_entry)

    @property
    def _of_entry(self) -> frozenset[int]:
        return frozenset([self.entry.makes] if self.entry else [])

    def cut(self, n: int, itemsize: int, finer: int = 1) -> list[slice]:
        """The shards of a batch of n; finer: always the same for one run."""
        if n not in self._cuts:
            barrier = [self.exit.layer] if self.exit else []
            self._cuts[n] = [slice(0, n)] if self.whole else cut(self.layers, barrier, n, itemsize, self.sweeps, finer)
        return self._cuts[n]


def cut_of(run: Run, n: int, vectors: Vectors) -> list[slice]:
    """The shards of a batch of n on this backend."""
    backend = vectors.backend
    if not backend.cuts_batches:
        return [slice(0, n)]
    return run.cut(n, vectors.params.dtype.itemsize, backend.finer_inference if run.infers else 1)


class Plan(NamedTuple):
    """The runs of a training pass, and the one run of inference.

    output: the number of the last value.  shapes: of one sample of each value, in training.  images: values that are images.
    takes_integers: whether all layers that read the input take integers unconverted.   takes_bytes: the same of uint8.
    barriers: the paths of those that need the batch.
    """

    training: list[Run]
    inference: Run
    output: int
    shapes: dict[int, Shape]
    images: frozenset[int]
    takes_integers: bool
    takes_bytes: bool
    barriers: frozenset[str]


def make_plan(
    layers: dict[str, Layer], in_shape: Shape, rewrite: bool = True, wrap: Wrap | None = None, frozen: bool = False
) -> Plan:
    """Flatten, rewrite and cut into runs.

    rewrite: whether neighbouring layers become joined and in-place steps.
    frozen: whether all layers that have a frozen form use it, as when only dJ/dx is wanted.
    wrap: returns what is called instead of the layer at a path; what joins branches is not wrapped.
    """
    training, inference = flatten(layers), flatten(layers)
    for steps in (training, inference):
        for step in steps:
            if step.layer.has_frozen_form and (frozen or steps is inference or step.layer.is_frozen_whole):
                step.layer = step.does = step.layer.frozen_form()
    if rewrite:
        training, inference = fuse(training, training=True), fuse(inference, training=False)
    images = _find_images(training)
    _find_images(inference)
    runs = _cut_at_barriers(training)
    is_whole = not all(step.layer.samplewise or isinstance(step.layer, BatchLayer) for step in inference)
    whole = [Run(inference, whole=is_whole)]
    whole[0].infers = True
    output = training[-1].makes
    for chain in (runs, whole):
        _follow(chain, output)
        for run in chain:
            end_values(run.forward)
            if rewrite:
                reuse_values(run.forward, training=chain is runs)
            reuse_deltas(run.backward, in_place=rewrite)
    if wrap is not None:
        for step in (*training, *inference):
            if len(step.reads) == 1:
                step.does = wrap(step.path, step.layer)
    shapes = {0: in_shape, **{step.makes: step.layer.out_shape for step in training}}
    takes_integers = all(step.layer.takes_integers for step in inference if 0 in step.reads)
    takes_bytes = rewrite and reads_bytes(inference)
    barriers = frozenset(run.entry.path for run in runs if run.entry is not None)
    return Plan(runs, whole[0], output, shapes, images, takes_integers, takes_bytes, barriers)


def flatten(layers: dict[str, Layer]) -> list[Step]:
    """The steps of a chain of layers, including the layers inside them."""
    return _flatten(layers, 0, count(1), "")


def _flatten(layers: dict[str, Layer], value: int, numbers: "count[int]", prefix: str) -> list[Step]:
    steps = list[Step]()
    for name, layer in layers.items():
        path = prefix + name
        if isinstance(layer, Branching):
            branches = [_flatten(branch, value, numbers, path + ".") for branch in layer.branches_by_name()]
            ends = tuple(branch[-1].makes if branch else value for branch in branches)
            steps += [*(step for branch in branches for step in branch), Join(path, layer.join(), ends, next(numbers))]
        elif layer.children():
            steps += _flatten(layer.children(), value, numbers, path + ".")
        else:
            steps.append(Step(path, layer, (value,), next(numbers)))
        value = steps[-1].makes
    return steps


def _find_images(steps: list[Step]) -> frozenset[int]:
    """The values that layers of images read or make, and those connected with them by layers that follow; tells each step."""
    images, found = set[int](), -1
    while len(images) > found:
        found = len(images)
        for step in steps:
            layer, values = step.layer, {*step.reads, step.makes}
            follows = layer.images is None or layer.elementwise
            if layer.images or (follows and not images.isdisjoint(values)):
                images |= values
    for step in steps:
        step.images = frozenset(images)
    return frozenset(images)


def _cut_at_barriers(steps: list[Step]) -> list[Run]:
    runs = [Run([])]
    for step in steps:
        if isinstance(step.layer, BatchLayer):
            runs[-1].exit = step
            runs.append(Run([step], entry=step))
        elif not step.layer.samplewise:
            runs += [Run([step], whole=True), Run([])]
        else:
            runs[-1].steps.append(step)
    runs = [run for run in runs if run.steps or run.exit]
    runs[-1].sweeps = True
    return runs


def _follow(runs: list[Run], output: int) -> None:
    """Find what each run takes and gives, forward and backward: a barrier's delta is complete before its step goes backward."""
    there = [run.steps for run in runs]
    back = [[*run.steps[run.entry is not None :], *([run.exit] if run.exit else [])] for run in runs]
    for run, forward, backward in zip(runs, _stretches(there, output), _stretches(back, output), strict=True):
        run.forward, run.backward = forward, backward


def _stretches(parts: Sequence[list[Step]], output: int) -> list[Stretch]:
    stretches = list[Stretch]()
    wanted = frozenset([output])
    for steps in reversed(parts):
        gives = wanted
        wanted = (wanted | {v for step in steps for v in step.reads}) - {step.makes for step in steps}
        stretches.append(Stretch(steps, wanted, gives))
    return stretches[::-1]
