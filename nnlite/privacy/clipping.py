"""The sum of the gradients of a batch's samples, each clipped, without storing any of them.

The squared norm of a sample's gradient is a sum over the layers. A first pass measures it layer by layer; in a second one each
sample weighs as much as its clipping leaves of it, and the gradient of that weighted loss is the sum.
"""

from typing import Any

from nnlite.arguments import shortened
from nnlite.backend import Array, single_threaded_blas
from nnlite.engine.engine import Engine
from nnlite.engine.vectors import walk
from nnlite.layers import BatchNorm, Dense
from nnlite.layers.base import Context, Layer, Shard
from nnlite.losses import Loss
from nnlite.model import Sequential


class Clipping:
    """g = 1/L  sum over the samples of a batch of  w_n dJ_n/dp,     w_n = min(1, C / |dJ_n/dp|)

    clip_norm: C   expected: L, the expected number of samples in a batch, which no sample changes.
    Source: Lee and Kifer 2021, Scaling up Differentially Private Deep Learning with Fast Per-Example Gradient Clipping.
    """

    def __init__(self, model: Sequential, clip_norm: float, expected: int) -> None:
        self.model, self.clip_norm, self.expected = model, float(clip_norm), expected
        self.squares: Any = None  # (N,) of the norms, in float64
        self.engine = Engine(model.children(), model.in_shape, model.vectors, model.seed, rewrite=False)
        self.engine.wrap = lambda path, layer: _Measured(layer, self) if _has_parameters(layer) else layer
        self.engine.make_plan()

    def loss_and_grad(self, x: Array, t: Array, criterion: Loss, total: float, out: Array | None) -> Any:
        """The mean loss of a batch; fills the model's `grads` with g. x, t, total: as `model.prepare_batch` returned them.

        out: receives the outputs. Raises ValueError for a layer that mixes samples: a callback may have unfrozen it.
        """
        model, xp, n = self.model, self.model.backend.xp, len(x)
        refuse_mixing(model)
        model.passes += 1
        self.engine.refresh()  # what is frozen may have changed
        self.squares = xp.zeros(n, "float64")
        with single_threaded_blas:
            loss = self.engine.loss_and_grad(x, t, criterion, None, total / n, out, model.passes)  # of J_n, not J_n / N
        weights = self.clip_norm / xp.maximum(xp.sqrt(self.squares), self.clip_norm)
        weights = weights.astype(model.params.dtype)
        model.loss_and_grad(x, t, criterion, weights, pass_id=model.passes, total=total / n * self.expected)
        return loss / n


class _Measured(Layer):
    """A layer that adds the squared norms of the gradients of its samples to those of the batch, and leaves the sums out."""

    def __init__(self, layer: Layer, clipping: Clipping) -> None:
        self.layer, self.clipping = layer, clipping

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def forward(self, a: Array, ctx: Context) -> Array:
        ctx.given = a
        return self.layer.forward(a, ctx)

    def backward(self, delta: Array, ctx: Context) -> Array | None:
        wanted = [name for name, p in self.layer.declared.items() if p.trained and name not in self.layer.frozen]
        if wanted:
            squares = _of_dense if type(self.layer) is Dense else _one_by_one
            rows = slice(ctx.shard.start, ctx.shard.start + len(delta))
            self.clipping.squares[rows] += squares(self.layer, wanted, ctx, delta)
        ctx.trained = False
        return self.layer.backward(delta, ctx)


def _of_dense(layer: Layer, wanted: list[str], ctx: Context, delta: Array) -> Array:
    """|dJ_n/dW|^2 + |dJ_n/db|^2 = |delta_n|^2 (|a_n|^2 + 1): the gradient of W is delta_n a_n'."""
    of_W: Any = _squares(ctx.given) if "W" in wanted else 0.0
    return _squares(delta) * (of_W + float("b" in wanted))


def _squares(rows: Array) -> Array:
    squares: Array = (rows * rows).sum(axis=1, dtype="float64")
    return squares


def _one_by_one(layer: Layer, wanted: list[str], ctx: Context, delta: Array) -> Array:
    """The layer alone, on shards of one sample."""
    xp, squares = ctx.xp, ctx.xp.empty(len(delta), "float64")
    one = ctx.one = getattr(ctx, "one", None) or _context_of_one(layer, ctx)
    one.prepared, one.shard.pass_id = ctx.prepared, ctx.shard.pass_id
    for i in range(len(delta)):
        one.shard.start = ctx.shard.start + i
        layer.forward(xp.ascontiguousarray(ctx.given[i : i + 1]), one)
        layer.backward(xp.ascontiguousarray(delta[i : i + 1]), one)
        squares[i] = sum((g * g).sum(dtype="float64") for g in (getattr(one, f"d{name}") for name in wanted))
    return squares


def _context_of_one(layer: Layer, ctx: Context) -> Context:
    shard = Shard(ctx.shard.seed)
    shard.rows, shard.training, shard.swept = 1, True, True
    one = Context(layer.backend, ctx.layer_id, shard, ctx.dtype)
    one.needs_delta = False
    for name, parameter in layer.declared.items():
        if parameter.trained:
            setattr(one, f"d{name}", layer.backend.zeros(parameter.size, ctx.dtype).reshape(parameter.shape))
    return one


def _has_parameters(layer: Layer) -> bool:
    return any(parameter.trained for parameter in layer.declared.values())


def refuse_mixing(model: Sequential) -> None:
    """Raise ValueError for a layer in which the samples of a batch depend on each other."""
    for path, layer in walk(model.children()):
        if not layer.samplewise and path not in model.engine.frozen_whole:
            remedy = ": GroupNorm, in its place, normalises each by itself" if isinstance(layer, BatchNorm) else ""
            raise ValueError(
                f"layer {path} {shortened(layer)} mixes the samples of a batch, so that none has a gradient of its own{remedy}"
            )
