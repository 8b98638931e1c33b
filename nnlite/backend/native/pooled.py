"""A convolution and the max-pooling of its outputs as one plan: outputs that the pooling ignores are not computed."""

from typing import Any

from nnlite.backend.conv import ConvPlan
from nnlite.backend.memory import Memory
from nnlite.backend.native.operations import NativeOperations
from nnlite.backend.native.pools import NativeMaxPoolPlan
from nnlite.backend.native.rectified import Rectified
from nnlite.backend.window import Array, Pair, Window


class NativePooledPlan(ConvPlan):
    """The plan of the convolution, then that of the pooling; the outputs in between are in scratch."""

    backend: NativeOperations

    def __init__(self, backend: NativeOperations, window: Window, filters: int, bias: bool, plan: ConvPlan, pool: Pair) -> None:
        super().__init__(backend, window, filters, 1, bias, pool)
        self.conv, self.maxima = plan, NativeMaxPoolPlan(backend, Window.of((*window.out_size, filters), pool, pool))
        self.normalizes = plan.normalizes
        self.weights, self.temporaries = plan.weights, plan.temporaries + self.positions * filters

    def prepare(self, W: Array, b: Array | None, memory: Memory) -> Any:
        return self.conv.prepare(W, b, memory)

    def forward(self, a: Array, filters: Any, memory: Memory, out: Array | None, relu: bool = False) -> Array:
        images = a.a if type(a) is Rectified else a
        room = self.backend.scratch("before pooling", (len(images), *self.conv.out_shape), images.dtype)
        y = self.maxima.forward(self.conv.forward(a, filters, memory.part(0), room), memory, out)
        return self.backend.relu(y, y) if relu else y

    def weight_gradient(self, a: Array, delta: Array, memory: Memory, dW: Array, db: Array | None) -> None:
        self.conv.weight_gradient(a, self._before_pooling(delta, memory), memory.part(0), dW, None)
        self._bias_gradient(delta, db)

    def input_gradient(self, delta: Array, filters: Any, memory: Memory, out: Array | None) -> Array:
        return self.conv.input_gradient(self._before_pooling(delta, memory), filters, memory.part(0), out)

    def gradients(
        self, a: Array, delta: Array, filters: Any, memory: Memory, dW: Array, db: Array | None, out: Array | None
    ) -> Array | None:
        """Both, with delta spread once."""
        before = self._before_pooling(delta, memory)
        self._bias_gradient(delta, db)
        return self.conv.gradients(a, before, filters, memory.part(0), dW, None, out)

    def _bias_gradient(self, delta: Array, db: Array | None) -> None:
        if db is not None:
            self.backend.sum_columns(self.backend.rows(delta), db)  # pooling only spreads it

    def _before_pooling(self, delta: Array, memory: Memory) -> Array:
        room = self.backend.scratch("delta before pooling", (len(delta), *self.conv.out_shape), delta.dtype)
        return self.maxima.backward(delta, memory, room)
