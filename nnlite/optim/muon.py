"""Muon: the momentum of each filter, orthogonalised."""

import math
from collections.abc import Callable
from typing import Any

from nnlite.arguments import flag, number, whole
from nnlite.backend import Array, Backend, single_threaded_blas
from nnlite.errors import StateError
from nnlite.layers.base import Slot
from nnlite.optim.optimizer import Optimizer, Rate, Trainable


class Muon(Optimizer):
    """v <- momentum v + g      p <- p - r orthogonal(g + momentum v)      or, without nesterov, p <- p - r orthogonal(v)

    For matrices and filters: p (n, ...) is viewed as (n, product of the rest). orthogonal(M) is M with all singular values
    brought close to 1, by `iterations` of Newton and Schulz. weight_decay: p <- (1 - r weight_decay) p before the step.
    renormalize: before the step p is scaled to the norm sqrt(n), which does not change the output of a batch norm after it.
    Raises StateError for a parameter that is a vector: give those to another optimiser with `ParameterGroups`.
    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """

    state_names = ("velocity",)

    def __init__(
        self,
        learning_rate: Rate = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        renormalize: bool = False,
        iterations: int = 5,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
        self.momentum, self.nesterov = number("momentum", momentum, least=0, below=1), flag("nesterov", nesterov)
        self.renormalize, self.iterations = flag("renormalize", renormalize), whole("iterations", iterations, 1)

    def _sweep(self, model: Trainable, wanted: Callable[[Slot], bool] | None, vectors: list[Array], rate: float) -> None:
        slots = [slot for slot in model.vectors.trained if not slot.frozen and (wanted is None or wanted(slot))]
        for slot in slots:
            if len(slot.parameter.shape) < 2:
                raise StateError(f"Muon optimises matrices and filters; {slot.name} has shape {slot.parameter.shape}")

        def update(i: int) -> None:
            matrices = (
                v[slots[i].place].reshape(slots[i].parameter.shape[0], -1) for v in (vectors[0], model.grads, vectors[1])
            )
            self.update(model.backend, *matrices, rate=rate, step=self.steps + 1)

        with single_threaded_blas:
            model.backend.map_shards(update, len(slots))

    def update(self, backend: Backend, p: Array, g: Array, *state: Array, rate: float, step: int) -> None:
        (v,), momentum = state, float(self.momentum)
        v *= momentum
        v += g
        direction = orthogonalize(backend, g + momentum * v if self.nesterov else v, self.iterations)
        if self.renormalize:
            p *= math.sqrt(len(p)) / (_norm(backend, p) + 1e-12)
        p *= 1 - rate * float(self.weight_decay)
        p -= rate * direction


def orthogonalize(backend: Backend, M: Array, iterations: int) -> Array:
    """M (n, k) with singular values near 1 (0.7 to 1.2): X <- a X + (b X X' + c (X X')^2) X from X = M / |M|.

    Newton-Schulz in a fifth-degree form whose slope at zero is large (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = M / (_norm(backend, M) + 1e-7)
    if len(X) > X.shape[1]:
        X = X.T
    for _ in range(iterations):
        A = backend.matmul(X, X.T)
        X = a * X + backend.matmul(b * A + c * backend.matmul(A, A), X)
    return X if X.shape == M.shape else X.T


def _norm(backend: Backend, M: Array) -> Any:
    """The Frobenius norm, in the dtype of M, without reading it from a device."""
    return backend.xp.asarray(backend.norm(M.reshape(-1)), M.dtype)
