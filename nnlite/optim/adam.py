"""Adam and AdamW.

Formula and defaults are PyTorch's. r is the learning rate of the step, t its number from 1, g the flat gradient vector, p the
flat parameter vector.
"""

import math
from functools import partial

from nnlite.arguments import number, shortened, vector
from nnlite.backend import Array, Backend
from nnlite.optim.optimizer import Optimizer, Rate


class Adam(Optimizer):
    """m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      p <- p - r m' / (sqrt(v') + eps)

    m' = m / (1 - b1^t), v' = v / (1 - b2^t), betas = (b1, b2).  Source: Kingma and Ba 2015, algorithm 1.
    learning_rate, weight_decay, clip_norm: see `Optimizer`. Raises ValueError for betas outside [0, 1) and a negative
    eps. The state holds m / (1 - b1) and v / (1 - b2), which saves two sweeps.
    """

    state_names = ("m", "v")

    def __init__(
        self,
        learning_rate: Rate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
        self.betas, self.eps = betas, number("eps", eps, least=0)

    @property
    def betas(self) -> tuple[float, float]:
        """(b1, b2), assignable at any time."""
        return self._betas

    @betas.setter
    def betas(self, betas: tuple[float, float]) -> None:
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, not {shortened(betas)}")
        vector("betas", betas, least=0, below=1)
        for name, before, beta in zip(self.state_names, self.__dict__.get("_betas", betas), betas, strict=True):
            if name in self.state_vectors:
                self.state_vectors[name] *= (1 - float(before)) / (1 - float(beta))
        self._betas = betas

    def update(self, backend: Backend, p: Array, g: Array, *state: Array, rate: float, step: int) -> None:
        (m, v), (b1, b2) = state, map(float, self.betas)
        decay = 1 - rate * float(self.weight_decay) if self.decouples_decay else 1.0
        m_scale, v_scale = (1 - b1) / (1 - _power(b1, step)), math.sqrt((1 - b2) / (1 - _power(b2, step)))
        numbers = (b1, b2), float(self.eps) / v_scale, rate * m_scale / v_scale, decay
        (backend.adam or partial(adam, backend))(p, g, m, v, *numbers)


def adam(
    backend: Backend,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    betas: tuple[float, float],
    eps: float,
    rate: float,
    decay: float,
) -> None:
    """m <- b1 m + g      v <- b2 v + g^2      p <- decay p - rate m / (sqrt(v) + eps), in ten sweeps."""
    xp, d = backend.xp, backend.scratch("update", p.shape, p.dtype)
    if decay != 1:
        p *= decay
    m *= betas[0]
    m += g
    v *= betas[1]
    v += xp.multiply(g, g, out=d)
    xp.sqrt(v, out=d)
    d += eps
    xp.divide(m, d, out=d)
    d *= rate
    p -= d


def _power(base: float, exponent: int) -> float:
    """base^exponent by multiplications, which all processors round alike; the last digit of `**` is up to the C library."""
    power = 1.0
    while exponent:
        power *= base if exponent & 1 else 1.0
        base, exponent = base * base, exponent >> 1
    return power


class AdamW(Adam):
    """Adam after p <- (1 - r weight_decay) p, instead of the L2 penalty.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    decouples_decay = True

    def __init__(
        self,
        learning_rate: Rate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, clip_norm=clip_norm)
