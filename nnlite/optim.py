"""Optimisers: each writes one update of the flat parameter vector p from the flat gradient vector g.

Formulas and defaults are PyTorch's. r is the learning rate of the step, t the number of the step, from 1.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nnlite.arguments import as_call, flag, number, shortened, vector
from nnlite.backend import Array, Backend, backend_of
from nnlite.errors import NonFiniteError, StateError
from nnlite.state import attributes

if TYPE_CHECKING:
    from nnlite.engine.vectors import Slot
    from nnlite.model import Sequential

Rate = float | Callable[[int], float]
_WORTH_THREADS = 1 << 16  # values of a block: for fewer, waking a thread takes longer than what it does
_LINE = 16  # values of a line of the cache, where blocks begin
_EVEN = 2  # blocks of a long vector are a multiple of it, so that 2 threads end together
_LOOKS = 64  # steps after which a loop by hand asks a device whether a gradient was bad: asking waits for the device


class Optimizer:
    """What all optimisers share: the rate, the state vectors, clipping, and the walk over the parameters in blocks.

    learning_rate: a number, or a schedule, a function of the step (from 0); assignable at any time.
    weight_decay: of an L2 penalty; it is added to the gradient as weight_decay p.
    clip_norm: if the norm of all gradients is larger, they are scaled down to it (Pascanu et al. 2013, algorithm 1).
    Raises ValueError for a negative rate or decay, a clip_norm that is not positive, and what is no number. One with a state
    vector belongs to one model: `step` raises StateError for another.
    `steps` counts the steps made, `missed` those in which a parameter was frozen: its own count is the difference.
    A subclass names its state vectors in `state_names` and writes `update`.
    """

    state_names: tuple[str, ...] = ()
    __repr__ = as_call

    def __init__(self, learning_rate: Rate, *, weight_decay: float = 0.0, clip_norm: float | None = None) -> None:
        if isinstance(learning_rate, type) or not callable(learning_rate):
            number("learning_rate, unless it is a schedule,", learning_rate, least=0)
        self.learning_rate, self.weight_decay = learning_rate, number("weight_decay", weight_decay, least=0)
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, above=0)
        self.steps = 0
        self.missed: dict[str, int] = {}
        self.state_vectors: dict[str, Array] = {}
        self._model: Any = None  # a weak reference to whose state it is
        self._tally: Any = None  # of a loop by hand on a device

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_tally": None}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: its attributes, the state vectors, steps and numbers among them, but no schedule.

        Raises StateError for an attribute of a subclass that none can keep.
        """
        return attributes(self, without=("_model", "_tally"))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        vars(self).update(state)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.rate_at(self.steps)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return float(self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate)

    def step(self, model: "Sequential", halted: Any = None) -> None:
        """Update the model's parameters, except the frozen ones, from its gradients.

        Raises NonFiniteError, naming the first of them, where a gradient is not finite; nothing is changed then. On a device,
        where asking for it would wait, nothing is updated from then on, and a loop by hand is told within 64 steps.
        halted: of a device's tally of losses: after one that is not finite nothing is updated.
        """
        if halted is None and model.backend.waits_for_reads:
            halted = self._halted_by_hand(model)
        with model.updating():
            check_and_clip(model, self.clip_norm, halted)
            self.update_slots(model, halted=halted)

    def update_slots(self, model: "Sequential", wanted: "Callable[[Slot], bool] | None" = None, halted: Any = None) -> None:
        """One step for the parameters that are wanted (all, for None) and not frozen."""
        vectors, rate = [model.params, *self._state_of(model)], self.rate
        model.backend.unless_halted(halted, vectors, lambda: self._sweep(model, wanted, vectors, rate))
        self.steps += 1

    def _sweep(self, model: "Sequential", wanted: "Callable[[Slot], bool] | None", vectors: list[Array], rate: float) -> None:
        """`update` for each stretch of parameters with the same clock, in blocks."""
        for step, places in self._clocks(model, wanted):
            self._walk(model, vectors, _blocks(places, model.backend.sweep_values), rate, step)

    def _walk(self, model: "Sequential", vectors: list[Array], blocks: list[slice], rate: float, step: int) -> None:
        backend, grads = model.backend, model.grads

        def update(i: int) -> None:
            block = blocks[i]
            p, *state = [vector[block] for vector in vectors]
            g = grads[block]
            if self.weight_decay and not self.decouples_decay:
                g = g + float(self.weight_decay) * p
            self.update(backend, p, g, *state, rate=rate, step=step)

        if len(blocks) > 1 and any(block.stop - block.start > _WORTH_THREADS for block in blocks):
            backend.map_shards(update, len(blocks))
        else:
            for i in range(len(blocks)):
                update(i)

    def _clocks(self, model: "Sequential", wanted: "Callable[[Slot], bool] | None") -> list[tuple[int, list[slice]]]:
        """The stretches that are updated, by the steps that their parameters have taken part in: frozen ones miss a step."""
        for slot in model.vectors.frozen:
            if wanted is None or wanted(slot):
                self.missed[slot.name] = self.missed.get(slot.name, 0) + 1
        if not self.missed:
            return [(self.steps + 1, model.vectors.select(wanted))]
        stretches = model.vectors.stretches(lambda slot: self._clock(slot) if wanted is None or wanted(slot) else 0)
        return [(clock, places) for clock, places in sorted(stretches.items()) if clock]

    def _clock(self, slot: "Slot") -> int:
        """The number, from 1, of this step for a parameter."""
        return self.steps + 1 - self.missed.get(slot.name, 0)

    decouples_decay = False

    def update(self, backend: Backend, p: Array, g: Array, *state: Array, rate: float, step: int) -> None:
        """Write one update into p and the state; g is only read.  step: of these parameters, from 1."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _halted_by_hand(self, model: "Sequential") -> Any:
        if self._tally is None:
            self._tally = model.backend.tally()
        if self.steps % _LOOKS == 0 and self._tally.read()[1]:
            raise NonFiniteError(f"a gradient was not finite in one of the last {_LOOKS} steps: nothing was updated since")
        return self._tally.halted

    def _state_of(self, model: "Sequential") -> list[Array]:
        if self.state_vectors and self._model is not None and self._model() is not model:
            raise StateError(f"this {type(self).__name__} holds the state of another model: make a new optimiser for each")
        self._model, params = weakref.ref(model), model.params
        for name in self.state_names:
            if name not in self.state_vectors:
                self.state_vectors[name] = model.backend.zeros(len(params), params.dtype)
            vector = self.state_vectors[name]
            if vector.shape != params.shape:
                raise StateError(
                    f"this {type(self).__name__} has optimised a model of {len(vector)} parameters, "
                    f"this one has {len(params)}: make a new optimiser"
                )
            if type(vector) is not type(params):  # the model has moved
                self.state_vectors[name] = model.backend.asarray(backend_of(vector).to_host(vector))
        return [self.state_vectors[name] for name in self.state_names]


class SGD(Optimizer):
    """v <- momentum v + g      p <- p - r v      or, with nesterov, p <- p - r (g + momentum v)

    learning_rate, weight_decay, clip_norm: as `Optimizer` has them. Raises ValueError for nesterov without momentum.
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
        """No velocity where there is no momentum."""
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


class Adam(Optimizer):
    """m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      p <- p - r m' / (sqrt(v') + eps)

    m' = m / (1 - b1^t), v' = v / (1 - b2^t), betas = (b1, b2).  Source: Kingma and Ba 2015, algorithm 1.
    learning_rate, weight_decay, clip_norm: as `Optimizer` has them. Raises ValueError for betas outside [0, 1) and a negative
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
        m_scale, v_scale = (1 - b1) / (1 - b1**step), math.sqrt((1 - b2) / (1 - b2**step))
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


class AdamW(Adam):
    """Adam, and p <- (1 - r weight_decay) p before it, in place of its penalty.

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


class RMSProp(Optimizer):
    """v <- alpha v + (1 - alpha) g^2      p <- p - r g / (sqrt(v) + eps)

    learning_rate, weight_decay, clip_norm: as `Optimizer` has them. Raises ValueError for alpha outside [0, 1) and a negative
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
        xp, (v,) = backend.xp, state
        d = xp.multiply(g, g, out=backend.scratch("update", p.shape, p.dtype))
        d -= v
        d *= 1 - float(self.alpha)
        v += d
        xp.sqrt(v, out=d)
        d += float(self.eps)
        xp.divide(g, d, out=d)
        d *= rate
        p -= d


def check_and_clip(model: "Sequential", clip_norm: float | None, halted: Any) -> None:
    """Refuse gradients that are not finite; scale them so that their Euclidean norm is at most `clip_norm` (None: any)."""
    backend = model.backend
    norm = backend.norm(model.grads)
    if halted is not None:
        backend.halt_unless_finite(norm, halted)
    elif not math.isfinite(norm):
        bad = next(name for name, g in model.named_grads().items() if not backend.xp.isfinite(g).all())
        raise NonFiniteError(
            f"the gradient of {bad} is not finite: nothing was updated; lower the learning rate, or scale inputs and targets"
        )
    if clip_norm is not None:
        backend.scale_to_norm(model.grads, norm, float(clip_norm))


def _blocks(places: list[slice], size: int) -> list[slice]:
    """The places cut into blocks of about equal length, of about `size` values at most."""
    blocks = list[slice]()
    for place in places:
        length = place.stop - place.start
        if length <= size:
            blocks.append(place)
            continue
        count = -(-length // size)
        count += count % _EVEN
        inner = [(place.start + length * i // count) // _LINE * _LINE for i in range(1, count)]
        bounds = [place.start, *inner, place.stop]
        blocks += [slice(*both) for both in pairwise(bounds)]
    return blocks
