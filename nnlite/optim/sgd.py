"""Stochastic gradient descent.

Formula and defaults are PyTorch's. r is the learning rate of the step, g the flat gradient vector, p the flat parameter vector.
"""

from functools import partial

from nnlite.arguments import flag, number
from nnlite.backend import Array, Backend
from nnlite.optim.optimizer import Optimizer, Rate


class SGD(Optimizer):
    """v <- momentum v + g      p <- p - r v      or, with nesterov, p <- p - r (g + momentum v)

    learning_rate, weight_decay, clip_norm: see `Optimizer`. Raises ValueError for nesterov without momentum.
    Source: Sutskever et al. 2013, section 2, in PyTorch's form.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
        self.momentum, self.nesterov = number("momentum", momentum, least=0, below=1), flag("nesterov", nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum above 0, such as 0.9")

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """A velocity only with momentum."""
        return ("velocity",) if self.momentum else ()

    def update(self, backend: Backend, p: Array, g: Array, *state: Array, rate: float, step: int) -> None:
        v = state[0] if state else None
        (backend.sgd or partial(sgd, backend))(p, g, v, rate, float(self.momentum), bool(self.nesterov))


def sgd(backend: Backend, p: Array, g: Array, v: Array | None, rate: float, momentum: float, nesterov: bool) -> None:
    """v <- momentum v + g      p <- p - rate v      or, with nesterov, p - rate (g + momentum v); v may be None."""
    d = backend.scratch("update", p.shape, p.dtype)
    d[...] = g
    if v is not None:
        v *= momentum
        v += g
        d[...] = v
        if nesterov:
            d *= momentum
            d += g
    d *= rate
    p -= d
