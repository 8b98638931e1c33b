"""Neighbouring layers as one step: the only place that looks at them.

The results are the same bits, except for convolutions that pool, where sums have another order, and for what is folded.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, TypeGuard

from nnlite.backend import Array, Memory
from nnlite.engine.steps import Step
from nnlite.layers import BatchNorm, Conv2D, Dense, MaxPool2D, Normalize, ReLU
from nnlite.layers.base import Context, Layer, Shape
from nnlite.layers.norm import FrozenBatchNorm


def fuse(steps: list[Step], training: bool) -> list[Step]:
    """The steps, rewritten. Subclasses of fusible layers are left alone: they may compute something else."""
    steps = steps if training else _norm_in_filters(steps)
    norms = (BatchNorm,) if training else (BatchNorm, FrozenBatchNorm)
    return _norm_in_conv(_relu_fused(_relu_in_norm(_pool_in_conv(_pool_before_relu(steps)), norms)))


def _norm_in_filters(steps: list[Step]) -> list[Step]:
    """The batch norms of inference as part of the convolutions before them, where filters are prepared only once."""
    rewritten: list[Step | None] = list(steps)
    for i, first, second in _neighbours(steps):
        conv, norm = first.layer, second.layer
        if type(conv) is Conv2D and type(norm) is FrozenBatchNorm and not conv.backend.waits_for_reads:
            rewritten[i : i + 2] = None, first.by(_folded(conv, norm), second)
    return [step for step in rewritten if step is not None]


class _FoldedConv(Conv2D):
    """A convolution and the norm y = s z + t behind it: y = (s W) patch + (s b + t)."""

    norm: FrozenBatchNorm

    def prepare(self, memory: Memory) -> Any:
        s, t = self.norm.line()
        return self.plan.prepare(self.W * s[:, None, None, None], s * self.b + t if "b" in self.declared else t, memory)


def _folded(conv: Conv2D, norm: FrozenBatchNorm) -> Layer:
    folded: Layer = _as(_FoldedConv, conv)
    folded.plan = conv.backend.conv_plan(conv.plan.window, conv.filters, conv.groups, True)
    folded.norm, folded.bias = norm, True
    return folded


def _is_conv(layer: Layer) -> TypeGuard[Conv2D]:
    return type(layer) in (Conv2D, _FoldedConv)


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
        if _is_conv(conv) and type(pool) is MaxPool2D and _can_pool(conv, pool):
            rewritten[i : i + 2] = None, first.by(_with_pool(conv, pool), second)
    return [step for step in rewritten if step is not None]


def _can_pool(conv: Conv2D, pool: MaxPool2D) -> bool:
    joins = conv.backend.joins_pool and conv.groups == 1
    return bool(joins and pool.plan.window.is_blockwise and not pool.plan.is_large)


class _RectifiedNorm(BatchNorm):
    """A BatchNorm that includes the ReLU behind it, in both directions.

    unread: whether its outputs are left to the convolution that reads them.
    """

    keeps: ClassVar[Any] = "input"
    unread = False

    def __repr__(self) -> str:
        return f"{BatchNorm(**self.config())!r} + ReLU"

    def _normalization(self, mean: Array, inv_std: Array, rows: int) -> Any:
        by: Any = super()._normalization(mean, inv_std, rows)
        return by._replace(rectified=True, unread=self.unread)


class _UnreadNorm(_RectifiedNorm):
    """Its output is its input, to be normalised and rectified by the convolution that reads it."""

    keeps, unread = "both", True


def _relu_in_norm(steps: list[Step], norms: tuple[type[Layer], ...]) -> list[Step]:
    """A batch norm and the ReLU after it as one step, if the backend has such a normalisation."""
    rewritten: list[Step | None] = list(steps)
    for i, first, second in _neighbours(steps):
        if type(first.layer) in norms and type(second.layer) is ReLU and first.layer.backend.rectifies_norms:
            rewritten[i : i + 2] = None, first.by(_norm_as(_RectifiedNorm, first.layer), second)
    return [step for step in rewritten if step is not None]


def _norm_in_conv(steps: list[Step]) -> list[Step]:
    """A rectified norm is not stored where a convolution reads it that can compute it."""
    rewritten = list(steps)
    for i, first, second in _neighbours(steps):
        norm = first.layer.norm if type(first.layer) is FrozenBatchNorm else first.layer
        if type(norm) is _RectifiedNorm and _is_conv(second.layer) and second.layer.plan.normalizes:
            rewritten[i] = first.by(_norm_as(_UnreadNorm, first.layer))
    return rewritten


def _norm_as(kind: type[BatchNorm], norm: Layer) -> Layer:
    return FrozenBatchNorm(_as(kind, norm.norm)) if type(norm) is FrozenBatchNorm else _as(kind, norm)


def _as(kind: type[Layer], layer: Layer) -> Any:
    """A twin of this class with the same parameters."""
    twin = copy.copy(layer)
    twin.__class__ = kind
    return twin


class _DoneReLU(ReLU):
    """A ReLU whose forward pass was done by the step before it."""

    def __repr__(self) -> str:
        return repr(ReLU())

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.y = a
        return a


def _relu_fused(steps: list[Step]) -> list[Step]:
    """ReLU in the preceding sweep that adds a bias or normalises, if the backend has such a sweep."""
    rewritten = list(steps)
    for i, first, second in _neighbours(steps):
        if type(second.layer) is ReLU and _ends_with_a_sweep(first.layer):
            rewritten[i] = first.by(_with_relu(first.layer))
            rewritten[i + 1] = _relu_step(_DoneReLU(), second.layer.out_shape, second, second)
    return rewritten


def _ends_with_a_sweep(layer: Layer) -> bool:
    if not layer.backend.fuses_relu:
        return False
    adds_bias = (_is_conv(layer) and layer.groups == 1) or type(layer) is Dense
    return type(layer) is BatchNorm or bool(adds_bias and layer.bias)


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
