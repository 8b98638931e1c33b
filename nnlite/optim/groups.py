"""Several optimisers for one model."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from nnlite.arguments import Configured, listing, number, shortened
from nnlite.layers.base import Slot
from nnlite.optim.optimizer import Optimizer, Trainable, check_and_clip
from nnlite.state import attributes


class ParameterGroups(Configured):
    """Optimisers by name pattern: each parameter belongs to the first pattern that its name matches.

        nn.ParameterGroups({"*.b": nn.SGD(0.1), "0.*": nn.Adam(1e-4), "*": nn.Adam(1e-3)})

    Patterns are those of `fnmatch`; a parameter that none matches is not updated. clip_norm: over all groups together.
    Raises ValueError for a pattern that matches nothing, anything but an optimiser, and a group with its own clip_norm.
    """

    def __init__(self, groups: Mapping[str, Optimizer], *, clip_norm: float | None = None) -> None:
        if not isinstance(groups, Mapping) or not all(isinstance(optimizer, Optimizer) for optimizer in groups.values()):
            raise ValueError(f'groups must be optimisers by pattern, such as {{"*": nn.Adam()}}, not {shortened(groups)}')
        if any(optimizer.clip_norm is not None for optimizer in groups.values()):
            raise ValueError("clip_norm belongs to the ParameterGroups: the norm is that of all gradients together")
        self.groups = groups
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, above=0)

    def step(self, model: Trainable, halted: Any = None) -> None:
        """One step of every group; see `Optimizer.step`."""
        self._refuse_idle_patterns([slot.name for slot in model.vectors.trained])
        if halted is None and model.backend.waits_for_reads:
            halted = next(iter(self.groups.values()))._halted_by_hand(model)
        with model.updating():
            check_and_clip(model, self.clip_norm, halted)
            for pattern, optimizer in self.groups.items():
                optimizer.update_slots(model, partial(self._is_in, pattern), halted)

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps: `clip_norm`, and the states of the groups."""
        states = {pattern: optimizer.state() for pattern, optimizer in self.groups.items()}
        return attributes(self, without=("groups",)) | {"groups": states}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for pattern, optimizer in self.groups.items():
            optimizer.load_state(state["groups"][pattern])
        vars(self).update({**state, "groups": self.groups})

    def _is_in(self, pattern: str, slot: Slot) -> bool:
        return self._group_of(slot.name) == pattern

    def _group_of(self, name: str) -> str | None:
        return next((pattern for pattern in self.groups if fnmatchcase(name, pattern)), None)

    def _refuse_idle_patterns(self, names: list[str]) -> None:
        for pattern in self.groups:
            if not any(self._group_of(name) == pattern for name in names):
                raise ValueError(f"no parameter falls to the group {shortened(pattern)}: the names are {listing(names)}")


def by_column(optimizer: Optimizer | ParameterGroups) -> dict[str, Optimizer]:
    """The optimisers, by the columns of the history that show their learning rates."""
    if isinstance(optimizer, ParameterGroups):
        return {f"learning_rate_{pattern}": group for pattern, group in optimizer.groups.items()}
    return {"learning_rate": optimizer}


def last_rates(optimizer: Optimizer | ParameterGroups) -> dict[str, float]:
    """The learning rates of the last step, by the columns of the history."""
    return {column: group.rate_at(max(0, group.steps - 1)) for column, group in by_column(optimizer).items()}
