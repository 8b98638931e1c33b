"""Optimisers: each writes one update of the flat parameter vector p from the flat gradient vector g.

Formulas and defaults are PyTorch's. r is the learning rate of the step, t the number of the step, from 1.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nnlite.backend import Array, backend_of, single_threaded_blas
from nnlite.errors import StateError

if TYPE_CHECKING:
    from nnlite.model import Sequential
    from nnlite.vectors import Slot

Rate = float | Callable[[int], float]
_WORTH_THREADS = 1 << 16  # values of a block: for fewer, waking a thread takes longer than what it does
_LINE = 16  # values of a line of the cache, where blocks begin
_EVEN = 2  # blocks of a long vector are a multiple of it, so that 2 threads end together


class Optimizer:
    """What all optimisers share: the rate, the state vectors, clipping, and the walk over the parameters in blocks.

    learning_rate: a number, or a schedule, a function of the step (from 0); assignable at any time.
    weight_decay: of an L2 penalty; it is added to the gradient as weight_decay p.
    clip_norm: if the norm of all gradients is larger, they are scaled down to it (Pascanu et al. 2013, algorithm 1).
    Raises ValueError for a negative rate or decay and a clip_norm that is not positive. One with a state vector belongs to one
    model: `step` raises StateError for another.
    `steps` counts the steps made. A subclass names its state vectors in `state_names` and writes `update`.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, learning_rate: Rate, weight_decay: float = 0.0, clip_norm: float | None = None) -> None:
        if not callable(learning_rate) and not learning_rate >= 0:
            raise ValueError(f"learning_rate must not be negative, got {learning_rate}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm}")
        self.learning_rate, self.weight_decay, self.clip_norm = learning_rate, weight_decay, clip_norm
        self.steps = 0
        self.state: dict[str, Array] = {}
        self._model: Any = None  # a weak reference to whose state it is

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None}

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.learning_rate(self.steps) if callable(self.learning_rate) else self.learning_rate)

    def step(self, model: "Sequential", halted: Any = None) -> None:
        """Update the model's parameters, except the frozen ones, from its gradients.

        halted: of a device's tally of losses: after one that is not finite nothing is updated.
        """
        with model.updating():
            if self.clip_norm is not None:
                clip(model.grads, self.clip_norm)
            self.update_slots(model, halted=halted)

    def update_slots(self, model: "Sequential", wanted: "Callable[[Slot], bool] | None" = None, halted: Any = None) -> None:
        """One step for the parameters that are wanted (all, for None) and not frozen."""
        if self._is_halted(halted):
            return
        vectors = [model.params, model.grads, *self._state_of(model)]
        rate, blocks = self.rate, _blocks(model.vectors.select(wanted), model.backend.sweep_values)
        self.steps += 1

        def work(i: int) -> None:
            p, g, *state = (vector[blocks[i]] for vector in vectors)
            temporary = model.backend.scratch("update", p.shape, p.dtype)
            if self.weight_decay and not self.decouples_decay:
                g = g + self.weight_decay * p
            self.update(p, g, temporary, *state, rate=rate, halted=halted)

        if any(block.stop - block.start > _WORTH_THREADS for block in blocks):
            model.backend.map_shards(work, len(blocks))
        else:
            for i in range(len(blocks)):
                work(i)

    decouples_decay = False
    looks_at_halted = False  # whether `update` does so itself, on the device

    def _is_halted(self, halted: Any) -> bool:
        return halted is not None and not self.looks_at_halted and bool(halted[1])

    def update(self, p: Array, g: Array, d: Array, *state: Array, rate: float, halted: Any = None) -> None:
        """Write one update into p and the state; g is only read, d is room for the steps in between."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _state_of(self, model: "Sequential") -> list[Array]:
        if self.state and self._model is not None and self._model() is not model:
            raise StateError(f"this {type(self).__name__} holds the state of another model: make a new optimiser for each")
        self._model = weakref.ref(model)
        for name in self.state_names:
            if name not in self.state:
                self.state[name] = model.backend.zeros(len(model.params), model.params.dtype)
            vector = self.state[name]
            if vector.shape != model.params.shape:
                raise StateError(
                    f"this {type(self).__name__} has optimised a model of {len(vector)} parameters, "
                    f"this one has {len(model.params)}: make a new optimiser"
                )
            if backend_of(vector).device != model.device:
                self.state[name] = model.backend.asarray(backend_of(vector).to_host(vector))
        return [self.state[name] for name in self.state_names]


class SGD(Optimizer):
    """v <- momentum v + g      p <- p - r v      or, with nesterov, p <- p - r (g + momentum v)

    learning_rate, weight_decay, clip_norm: as `Optimizer` has them. Raises ValueError for nesterov without momentum.
    Source: Sutskever et al. 2013, section 2, in PyTorch's form.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_norm)
        if not 0 <= momentum < 1 or (nesterov and not momentum):
            raise ValueError(f"momentum must be in [0, 1), and positive for nesterov, got {momentum}")
        self.momentum, self.nesterov = momentum, nesterov

    looks_at_halted = True

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """No velocity where there is no momentum."""
        return ("velocity",) if self.momentum else ()

    def update(self, p: Array, g: Array, d: Array, *state: Array, rate: float, halted: Any = None) -> None:
        v = state[0] if state else None
        backend_of(p).sgd(p, g, v, d, rate, self.momentum, self.nesterov, halted)


class Adam(Optimizer):
    """m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      p <- p - r m' / (sqrt(v') + eps)

    m' = m / (1 - b1^t), v' = v / (1 - b2^t), betas = (b1, b2).  Source: Kingma and Ba 2015, algorithm 1.
    learning_rate, weight_decay, clip_norm: as `Optimizer` has them. Raises ValueError for betas outside [0, 1).
    The state holds m / (1 - b1) and v / (1 - b2), which saves two sweeps.
    """

    state_names = ("m", "v")
    looks_at_halted = True

    def __init__(
        self,
        learning_rate: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_norm)
        self.betas, self.eps = betas, eps

    @property
    def betas(self) -> tuple[float, float]:
        """(b1, b2), assignable at any time."""
        return self._betas

    @betas.setter
    def betas(self, betas: tuple[float, float]) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        for name, before, beta in zip(self.state_names, self.__dict__.get("_betas", betas), betas, strict=True):
            if name in self.state:
                self.state[name] *= (1 - before) / (1 - beta)
        self._betas = betas

    def update(self, p: Array, g: Array, d: Array, *state: Array, rate: float, halted: Any = None) -> None:
        (m, v), (b1, b2) = state, self.betas
        decay = 1 - rate * self.weight_decay if self.decouples_decay else 1.0
        m_scale, v_scale = (1 - b1) / (1 - b1**self.steps), math.sqrt((1 - b2) / (1 - b2**self.steps))
        backend_of(p).adam(p, g, m, v, d, self.betas, self.eps / v_scale, rate * m_scale / v_scale, decay, halted)


class AdamW(Adam):
    """Adam, and p <- (1 - r weight_decay) p before it, in place of its penalty.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    decouples_decay = True

    def __init__(
        self,
        learning_rate: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, betas, eps, weight_decay, clip_norm)


class RMSProp(Optimizer):
    """v <- alpha v + (1 - alpha) g^2      p <- p - r g / (sqrt(v) + eps)

    learning_rate, weight_decay, clip_norm: as `Optimizer` has them. Raises ValueError for alpha outside [0, 1).
    Source: Hinton 2012, lecture 6e of Neural Networks for Machine Learning.
    """

    state_names = ("v",)

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_norm)
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {alpha}")
        self.alpha, self.eps = alpha, eps

    def update(self, p: Array, g: Array, d: Array, *state: Array, rate: float, halted: Any = None) -> None:
        xp, (v,) = backend_of(p).xp, state
        xp.multiply(g, g, out=d)
        d -= v
        d *= 1 - self.alpha
        v += d
        xp.sqrt(v, out=d)
        d += self.eps
        xp.divide(g, d, out=d)
        d *= rate
        p -= d


class Muon(Optimizer):
    """v <- momentum v + g      p <- p - r orthogonal(g + momentum v)      or, without nesterov, p <- p - r orthogonal(v)

    For matrices and filters: p (n, ...) is seen as (n, all the rest). orthogonal(M) is M with all its singular values brought
    close to 1, by `iterations` of Newton and Schulz. weight_decay: p <- (1 - r weight_decay) p before the step.
    renormalize: before the step p is scaled to the norm sqrt(n), which a batch norm behind it does not notice.
    Raises StateError for a parameter that is a vector: give those to another optimiser, by `ParameterGroups`.
    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """

    state_names = ("velocity",)

    def __init__(
        self,
        learning_rate: Rate = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        renormalize: bool = False,
        iterations: int = 5,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_norm)
        if not 0 <= momentum < 1 or iterations < 1:
            raise ValueError(f"momentum must be in [0, 1) and iterations at least 1, got {momentum} and {iterations}")
        self.momentum, self.nesterov, self.renormalize, self.iterations = momentum, nesterov, renormalize, iterations

    def update_slots(self, model: "Sequential", wanted: "Callable[[Slot], bool] | None" = None, halted: Any = None) -> None:
        if self._is_halted(halted):
            return
        slots = [slot for slot in model.vectors.trained if not slot.frozen and (wanted is None or wanted(slot))]
        for slot in slots:
            if len(slot.parameter.shape) < 2:
                raise StateError(f"Muon optimises matrices and filters; {slot.name} has shape {slot.parameter.shape}")
        vectors = [model.params, model.grads, *self._state_of(model)]
        rate = self.rate
        self.steps += 1

        def work(i: int) -> None:
            matrices = [v[slots[i].place].reshape(slots[i].parameter.shape[0], -1) for v in vectors]
            self.update(matrices[0], matrices[1], matrices[0], matrices[2], rate=rate)

        with single_threaded_blas:
            model.backend.map_shards(work, len(slots))

    def update(self, p: Array, g: Array, d: Array, *state: Array, rate: float, halted: Any = None) -> None:
        (v,) = state
        v *= self.momentum
        v += g
        step = orthogonalize(g + self.momentum * v if self.nesterov else v, self.iterations)
        if self.renormalize:
            p *= math.sqrt(len(p)) / (backend_of(p).norm(p.reshape(-1)) + 1e-12)
        p *= 1 - rate * self.weight_decay
        p -= rate * step


def orthogonalize(M: Array, iterations: int) -> Array:
    """M (n, k) with singular values near 1 (0.7 to 1.2): X <- a X + (b X X' + c (X X')^2) X from X = M / |M|.

    Newton-Schulz in a fifth-degree form whose slope at zero is large (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = M / (backend_of(M).norm(M.reshape(-1)) + 1e-7)
    if len(X) > X.shape[1]:
        X = X.T
    for _ in range(iterations):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X if X.shape == M.shape else X.T


class ParameterGroups:
    """Optimisers by name pattern: each parameter goes to the first pattern that its name matches.

        nn.ParameterGroups({"*.b": nn.SGD(0.1), "0.*": nn.Adam(1e-4), "*": nn.Adam(1e-3)})

    Patterns are those of `fnmatch`; a parameter that none matches is left alone. clip_norm: over all groups together.
    Raises ValueError for a pattern that matches nothing, and where a group has a clip_norm of its own.
    """

    def __init__(self, groups: Mapping[str, Optimizer], clip_norm: float | None = None) -> None:
        if any(optimizer.clip_norm is not None for optimizer in groups.values()):
            raise ValueError("clip_norm belongs to the ParameterGroups: the norm is that of all gradients together")
        self.groups, self.clip_norm = dict(groups), clip_norm

    def step(self, model: "Sequential", halted: Any = None) -> None:
        """One step of every group; halted: as `Optimizer.step` takes it."""
        self._refuse_idle_patterns([slot.name for slot in model.vectors.trained])
        with model.updating():
            if self.clip_norm is not None:
                clip(model.grads, self.clip_norm)
            for pattern, optimizer in self.groups.items():
                optimizer.update_slots(model, partial(self._is_in, pattern), halted)

    def _is_in(self, pattern: str, slot: "Slot") -> bool:
        return self._group_of(slot.name) == pattern

    def _group_of(self, name: str) -> str | None:
        return next((pattern for pattern in self.groups if fnmatchcase(name, pattern)), None)

    def _refuse_idle_patterns(self, names: list[str]) -> None:
        for pattern in self.groups:
            if not any(self._group_of(name) == pattern for name in names):
                raise ValueError(f"no parameter falls to the group {pattern!r}: the names are {', '.join(names)}")


def clip(gradients: Array, clip_norm: float) -> None:
    """Scale the gradients so that their Euclidean norm is at most `clip_norm`."""
    backend = backend_of(gradients)
    with single_threaded_blas:
        norm = backend.norm(gradients)
    gradients *= backend.xp.minimum(clip_norm / (norm + 1e-6), 1).astype(gradients.dtype)


def _blocks(places: list[slice], size: int) -> list[slice]:
    """The places cut into blocks of about equal length, of about `size` values at most."""
    blocks = list[slice]()
    for place in places:
        length = place.stop - place.start
        count = -(-length // size)
        count += count % _EVEN if count > 1 else 0
        inner = [(place.start + length * i // count) // _LINE * _LINE for i in range(1, count)]
        bounds = [place.start, *inner, place.stop]
        blocks += [slice(*both) for both in pairwise(bounds)]
    return blocks
