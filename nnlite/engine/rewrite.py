"""Neighbouring layers as one step: the only place that looks at them.

The results are the same bits, except for convolutions that pool, where sums have another order.
"""

import copy
from collections import Counter
from collections.abc import Iterator

from nnlite.backend import Array
from nnlite.engine.steps import Step
from nnlite.layers import BatchNorm, Conv2D, Dense, MaxPool2D, Normalize, ReLU
from nnlite.layers.base import Context, Layer, Shape


def fuse(steps: list[Step]) -> list[Step]:
    """The steps, rewritten. Subclasses of fusible layers are left alone: they may compute something else."""
    return _relu_fused(_pool_in_conv(_pool_before_relu(steps)))


def reads_bytes(steps: list[Step]) -> bool:
    """Whether what reads the input casts uint8 in its own sweep."""
    return all(type(step.layer) is Normalize for step in steps if 0 in step.reads)


def _neighbours(steps: list[Step]) -> Iterator[tuple[int, Step, Step]]:
    """Pairs of steps in which only the second reads what the first makes, with the place of the first."""
    readers = Counter(v for step in steps for v in step.reads)
    for i in range(len(steps) - 1):
        first, second = steps[i : i + 2]
        if second.reads == (first.makes,) and readers[first.makes] == 1:
            yield i, first, second


def _pool_before_relu(steps: list[Step]) -> list[Step]:
    """ReLU then max-pool is max-pool then ReLU, forward and backward, on a fraction of the values."""
    rewritten = list(steps)
    for i, relu, pool in _neighbours(steps):
        if type(relu.layer) is ReLU and type(pool.layer) is MaxPool2D:
            rewritten[i] = Step(pool.path, pool.layer, relu.reads, relu.makes)
            rewritten[i + 1] = _relu_step(ReLU(), pool.layer.out_shape, relu, pool)
    return rewritten


def _relu_step(relu: ReLU, shape: Shape, like: Step, place: Step) -> Step:
    """This ReLU as a step for samples of `shape`, with path and backend of `like`, and the values of `place`."""
    relu.in_shape = relu.out_shape = shape
    relu.backend = like.layer.backend
    return Step(like.path, relu, place.reads, place.makes)


def _pool_in_conv(steps: list[Step]) -> list[Step]:
    """A convolution and the max-pooling after it as one step: only the maxima are stored as images."""
    rewritten: list[Step | None] = list(steps)
    for i, first, second in _neighbours(steps):
        conv, pool = first.layer, second.layer
        if type(conv) is Conv2D and type(pool) is MaxPool2D and _can_pool(conv, pool):
            rewritten[i : i + 2] = None, Step(first.path, _with_pool(conv, pool), first.reads, second.makes)
    return [step for step in rewritten if step is not None]


def _can_pool(conv: Conv2D, pool: MaxPool2D) -> bool:
    joins = conv.backend.joins_pool and conv.groups == 1
    return bool(joins and pool.plan.window.is_blockwise and not pool.plan.is_large)


class _DoneReLU(ReLU):
    """A ReLU whose forward pass was done by the step before it."""

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = a
        return a


def _relu_fused(steps: list[Step]) -> list[Step]:
    """ReLU in the preceding sweep that adds a bias or normalises, if the backend has such a sweep."""
    rewritten = list(steps)
    for i, first, second in _neighbours(steps):
        if type(second.layer) is ReLU and _ends_with_a_sweep(first.layer):
            rewritten[i] = Step(first.path, _with_relu(first.layer), first.reads, first.makes)
            rewritten[i + 1] = _relu_step(_DoneReLU(), second.layer.out_shape, second, second)
    return rewritten


def _ends_with_a_sweep(layer: Layer) -> bool:
    if not layer.backend.fuses_relu:
        return False
    return type(layer) is BatchNorm or (type(layer) in (Conv2D, Dense) and layer.bias and getattr(layer, "groups", 1) == 1)


def _with_relu(layer: Layer) -> Layer:
    """A twin with the same parameters whose outputs include the ReLU."""
    twin = copy.copy(layer)
    twin.ends_with_relu = True
    return twin


def _with_pool(conv: Conv2D, pool: MaxPool2D) -> Conv2D:
    """A twin of `conv` with the same parameters that returns the pooled outputs."""
    twin, window = copy.copy(conv), pool.plan.window
    twin.plan = conv.backend.conv_plan(conv.plan.window.before(window), conv.filters, conv.groups, conv.bias, window.kernel)
    twin.out_shape = pool.out_shape
    return twin
