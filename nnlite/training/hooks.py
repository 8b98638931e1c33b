"""What `Trainer.fit` calls while it trains, and what those that it calls see of the trainer."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from nnlite.arguments import Configured, shortened
from nnlite.losses import Loss
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.optim import Optimizer
from nnlite.optim.groups import ParameterGroups
from nnlite.training.history import History


class Callback(Configured):
    """Hooks that `Trainer.fit` calls; each may do nothing. `trainer.stop()` ends training after the epoch.

    `Trainer` raises ValueError for methods on_... that are none of these hooks.

    The order: `check` of all callbacks, before anything is done. Where a run goes on: model, optimiser, counters and history
    are put back, so that `trainer.epochs` says how many epochs are done. `on_fit_begin` of all, which may begin anew. Where a
    run goes on: `load_state` of those that were kept. Steps and epochs. `on_fit_end`.
    `sets_weights`: whether it gives the model other weights at the end of training; only one of a trainer's may.
    `is_done`: whether it still has a reason for having stopped training; a run that was stopped goes on without one.
    `must_match`: the attributes that a run must have had the same to go on.
    """

    sets_weights: bool = False
    is_done: bool = False
    must_match: tuple[str, ...] = ()

    def check(self, trainer: "Training", columns: Collection[str]) -> None:
        """Before anything is done: raise what would fail later. columns: those that the history of this `fit` will have."""

    def on_fit_begin(self, trainer: "Training") -> None:
        """Before the first step of this `fit`; where a run goes on, after its counters were put back."""

    def on_epoch_begin(self, trainer: "Training") -> None:
        """Before the first step of an epoch; not again where a run goes on in the middle of one."""

    def on_step_end(self, trainer: "Training") -> None:
        """After each step of the optimiser."""

    def on_epoch_end(self, trainer: "Training", row: Mapping[str, float]) -> None:
        """After each epoch and its validation; `row` is the new line of the history."""

    def on_fit_end(self, trainer: "Training") -> None:
        """After the last step; where a finished run is resumed, once more."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of it: a dict of numbers, text, arrays, and lists, tuples and dicts by text of them.

        A callback that writes this changes training: a run goes on only with all of those that it began with.
        """
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


class Training(Protocol):
    """A trainer, as callbacks and the loop see it: its parts, how far it is, and how good the model is. See `nn.Trainer`."""

    model: Sequential
    loss: Loss
    optimizer: Optimizer | ParameterGroups
    metrics: list[Metric]
    callbacks: list[Callback]
    epochs: int
    steps: int
    history: History
    stopped: bool
    is_counting: bool

    def stop(self) -> None:
        """End training after this epoch."""

    def evaluate(self, data: Any, batch_size: int = ..., steps: int | None = None) -> dict[str, Any]:
        """The loss and the metrics over all samples, or over so many batches."""

    def predict(self, x: Any, batch_size: int = ...) -> Any:
        """The model's outputs."""

    def greater_is_better(self, column: str) -> bool | None:
        """Whether more is better in this column of the history; None where nobody says so."""

    def results(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The metrics over what they have seen since their `reset`, except those of some names."""


def show_step(trainer: Training, z: Any, t: Any, w: Any, partial: list[str]) -> None:
    """Show a step to metrics and callbacks. Where one of them raises, all others see it, so that the step is whole.

    partial: receives the names of the metrics that have missed it.
    """
    errors = []
    for metric in trainer.metrics:
        try:
            metric.update(z, t, w)
        except Exception as error:
            partial.append(metric.name)
            errors.append(error)
    for callback in trainer.callbacks:
        try:
            callback.on_step_end(trainer)
        except Exception as error:
            errors.append(error)
    for other in errors[1:]:
        errors[0].add_note(f"then another one raised {shortened(other)}")
    if errors:
        raise errors[0]
