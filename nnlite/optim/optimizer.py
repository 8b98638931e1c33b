"""The base of optimisers: rates, state vectors, clocks, clipping, and the sweep over the parameters in blocks."""

import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, Protocol

from nnlite.arguments import Configured, number
from nnlite.backend import Array, Backend, backend_of
from nnlite.errors import NonFiniteError, StateError
from nnlite.layers.base import Slot
from nnlite.state import attributes

Rate = float | Callable[[int], float]
_WORTH_THREADS = 1 << 16  # values of a block: with fewer, waking a thread takes longer than its work
_LINE = 16  # values of a cache line, where blocks begin
_EVEN = 2  # the number of blocks of a long vector is a multiple of this, so that 2 threads end together
_LOOKS = 64  # steps between checks of a hand-written loop for bad gradients on a device: each check waits for it


class Places(Protocol):
    """Where the parameters of a model are in its flat vectors."""

    trained: list[Slot]
    frozen: list[Slot]

    def select(self, wanted: Callable[[Slot], bool] | None = None) -> list[slice]:
        """The places of the wanted (None: all), unfrozen parameters, neighbours as one slice."""

    def stretches(self, key: Callable[[Slot], Any]) -> dict[Any, list[slice]]:
        """The places of the unfrozen parameters, by `key(slot)`, neighbours as one slice."""


class Trainable(Protocol):
    """What an optimiser updates: a `Sequential`, or anything with these attributes."""

    backend: Backend
    params: Array
    grads: Array

    @property
    def vectors(self) -> Places:
        """The places of the parameters."""

    def named_grads(self) -> dict[str, Array]:
        """Views of `grads` by the names of the parameters."""

    def updating(self) -> AbstractContextManager[None]:
        """Block inference while the parameters change."""


class Optimizer(Configured):
    """The base of optimisers: the rate, the state vectors, clipping, and the sweep over the parameters in blocks.

    learning_rate: a number, or a schedule, a function of the step (from 0); assignable at any time.
    weight_decay: of an L2 penalty; it is added to the gradient as weight_decay p.
    clip_norm: if the norm of all gradients is larger, they are scaled down to it (Pascanu et al. 2013, algorithm 1).
    Raises ValueError for a negative rate or decay, a clip_norm that is not positive, and anything but a number. An optimiser
    with state vectors belongs to one model: `step` raises StateError for another.
    `steps` counts the steps made, `missed` those in which a parameter was frozen: the parameter's own count is the difference.
    A subclass names its state vectors in `state_names` and writes `update`.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, learning_rate: Rate, *, weight_decay: float = 0.0, clip_norm: float | None = None) -> None:
        if isinstance(learning_rate, type) or not callable(learning_rate):
            number("learning_rate, unless it is a schedule,", learning_rate, least=0)
        self.learning_rate, self.weight_decay = learning_rate, number("weight_decay", weight_decay, least=0)
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, above=0)
        self.steps = 0
        self.missed: dict[str, int] = {}
        self.state_vectors: dict[str, Array] = {}
        self._model: Any = None  # a weak reference to the model of the state
        self._tally: Any = None  # of a hand-written loop on a device

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_tally": None}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the attributes, including state vectors, steps and numbers, but no schedule.

        Raises StateError for an attribute of a subclass that no checkpoint can keep.
        """
        return attributes(self, without=("_model", "_tally"))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        vars(self).update(state)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.rate_at(self.steps)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return float(self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate)

    def step(self, model: Trainable, halted: Any = None) -> None:
        """Update the model's parameters, except the frozen ones, from its gradients.

        Raises NonFiniteError, naming the first of them, if a gradient is not finite; nothing is changed then. On a device,
        where checking would wait, nothing is updated from then on, and a hand-written loop gets the error within 64 steps.
        halted: of a device's tally of losses: nothing is updated after a loss that is not finite.
        """
        if halted is None and model.backend.waits_for_reads:
            halted = self._halted_by_hand(model)
        with model.updating():
            check_and_clip(model, self.clip_norm, halted)
            self.update_slots(model, halted=halted)

    def update_slots(self, model: Trainable, wanted: Callable[[Slot], bool] | None = None, halted: Any = None) -> None:
        """One step for the wanted (None: all), unfrozen parameters."""
        vectors, rate = [model.params, *self._state_of(model)], self.rate
        model.backend.unless_halted(halted, vectors, lambda: self._sweep(model, wanted, vectors, rate))
        self.steps += 1

    def _sweep(self, model: Trainable, wanted: Callable[[Slot], bool] | None, vectors: list[Array], rate: float) -> None:
        """`update` for each stretch of parameters with the same clock, in blocks."""
        for step, places in self._clocks(model, wanted):
            self._walk(model, vectors, _blocks(places, model.backend.sweep_values), rate, step)

    def _walk(self, model: Trainable, vectors: list[Array], blocks: list[slice], rate: float, step: int) -> None:
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

    def _clocks(self, model: Trainable, wanted: Callable[[Slot], bool] | None) -> list[tuple[int, list[slice]]]:
        """The stretches to update, by the number of updates of their parameters: frozen ones miss a step."""
        for slot in model.vectors.frozen:
            if wanted is None or wanted(slot):
                self.missed[slot.name] = self.missed.get(slot.name, 0) + 1
        if not self.missed:
            return [(self.steps + 1, model.vectors.select(wanted))]
        stretches = model.vectors.stretches(lambda slot: self._clock(slot) if wanted is None or wanted(slot) else 0)
        return [(clock, places) for clock, places in sorted(stretches.items()) if clock]

    def _clock(self, slot: Slot) -> int:
        """The number, from 1, of this step for a parameter."""
        return self.steps + 1 - self.missed.get(slot.name, 0)

    decouples_decay = False

    def update(self, backend: Backend, p: Array, g: Array, *state: Array, rate: float, step: int) -> None:
        """Write one update into p and the state; g is only read.  step: of these parameters, from 1."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _halted_by_hand(self, model: Trainable) -> Any:
        if self._tally is None:
            self._tally = model.backend.tally()
        if self.steps % _LOOKS == 0 and self._tally.read()[1]:
            raise NonFiniteError(f"a gradient was not finite in one of the last {_LOOKS} steps: nothing was updated since")
        return self._tally.halted

    def _state_of(self, model: Trainable) -> list[Array]:
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


def check_and_clip(model: Trainable, clip_norm: float | None, halted: Any) -> None:
    """Refuse gradients that are not finite; scale them to a Euclidean norm of at most `clip_norm` (None: no limit)."""
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
    """The places cut into blocks of about equal length, of at most about `size` values."""
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
