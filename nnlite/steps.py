"""The steps that a shard goes through: layers, and the three movements of a stack that a residual connection consists of."""

from typing import Any

from nnlite.backend import Array
from nnlite.layers.base import Context, Layer


class Fork:
    """Remember `a` for the shortcut; backward, add what came back along it."""

    def forward(self, a: Array, stack: list[Array], ctx: Context) -> Array:
        stack.append(a)
        return a

    def backward(self, delta: Array, stack: list[Array], ctx: Context) -> Array:
        return ctx.xp.add(delta, stack.pop(), out=ctx.out)


class Swap:
    """Go over from one branch to the other."""

    def forward(self, a: Array, stack: list[Array], ctx: Context) -> Array:
        stack[-1], a = a, stack[-1]
        return a

    backward = forward


class Add:
    """The sum of both branches; backward, the same delta for both."""

    def forward(self, a: Array, stack: list[Array], ctx: Context) -> Array:
        return ctx.xp.add(a, stack.pop(), out=ctx.out)

    def backward(self, delta: Array, stack: list[Array], ctx: Context) -> Array:
        stack.append(delta)
        return delta


class LayerStep:
    """One layer; `in_place` and `delta_in_place`: forward, or backward, may overwrite what it is given.

    `buffer`: the number of the buffer for its delta; deltas are soon done with, so the shards of a thread share those.
    """

    def __init__(self, path: str, layer: Layer) -> None:
        self.path, self.layer = path, layer
        self.in_place = self.delta_in_place = False
        self.buffer = 0

    def forward(self, a: Array, stack: list[Array], ctx: Context, target: Array | None = None) -> Array:
        """The layer's output; in `target`, where one is given and the layer writes to `ctx.out`."""
        room = target if target is not None else a if self.in_place else (None, self.layer.out_shape)
        ctx.aim(room, a if self.layer.elementwise else None)
        return self.layer.forward(a, ctx)

    def backward(self, delta: Array, stack: list[Array], ctx: Context, target: Array | None = None) -> Any:
        """The delta of the layer's input, likewise."""
        ctx.aim(target if target is not None else delta if self.delta_in_place else (self.buffer, self.layer.in_shape))
        return self.layer.backward(delta, ctx)


class StackStep:
    """A movement of a residual connection; `in_place` and `delta_in_place` likewise."""

    def __init__(self, move: Fork | Swap | Add) -> None:
        self.move = move
        self.in_place = self.delta_in_place = False
        self.buffer = 0

    def forward(self, a: Array, stack: list[Array], ctx: Context, target: Array | None = None) -> Array:
        """The movement."""
        ctx.aim(target if target is not None else a if self.in_place else (None, a.shape[1:]))
        return self.move.forward(a, stack, ctx)

    def backward(self, delta: Array, stack: list[Array], ctx: Context, target: Array | None = None) -> Array:
        """The movement, backward."""
        ctx.aim(target if target is not None else delta if self.delta_in_place else (self.buffer, delta.shape[1:]))
        return self.move.backward(delta, stack, ctx)


Step = LayerStep | StackStep
