"""RMSProp.

Formula and defaults are PyTorch's. r is the learning rate of the step, g the flat gradient vector, p the flat parameter vector.
"""

from functools import partial

from nnlite.arguments import number
from nnlite.backend import Array, Backend
from nnlite.optim.optimizer import Optimizer, Rate


class RMSProp(Optimizer):
    """v <- alpha v + (1 - alpha) g^2      p <- p - r g / (sqrt(v) + eps)

    learning_rate, weight_decay, clip_norm: see `Optimizer`. Raises ValueError for alpha outside [0, 1) and a negative
    eps.
    Source: Hinton 2012, lecture 6e of Neural Networks for Machine Learning.
    """

    state_names = ("v",)

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
        self.alpha, self.eps = number("alpha", alpha, least=0, below=1), number("eps", eps, least=0)

    def update(self, backend: Backend, p: Array, g: Array, *state: Array, rate: float, step: int) -> None:
        numbers = float(self.alpha), float(self.eps), rate
        (backend.rmsprop or partial(rmsprop, backend))(p, g, *state, *numbers)


def rmsprop(backend: Backend, p: Array, g: Array, v: Array, alpha: float, eps: float, rate: float) -> None:
    """v <- v + (1 - alpha) (g^2 - v)      p <- p - rate g / (sqrt(v) + eps)"""
    xp = backend.xp
    d = xp.multiply(g, g, out=backend.scratch("update", p.shape, p.dtype))
    d -= v
    d *= 1 - alpha
    v += d
    xp.sqrt(v, out=d)
    d += eps
    xp.divide(g, d, out=d)
    d *= rate
    p -= d
