"""The hooks that `Trainer.fit` calls, the trainer as callbacks see it, and the column of the history that they watch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from nnlite.arguments import Configured, listing, shortened
from nnlite.engine.exchange import Communicator
from nnlite.errors import DataError
from nnlite.losses import Loss
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.optim import Optimizer
from nnlite.optim.groups import ParameterGroups
from nnlite.training.history import History
from nnlite.training.ranks import Ranks

Mode = Literal["min", "max"] | None


class Callback(Configured):
    """Hooks that `Trainer.fit` calls; each may do nothing. `trainer.stop()` ends training after the epoch.

    `Trainer` raises ValueError for methods named on_... that are not one of these hooks.

    The order: `check` of all callbacks, before training starts. On resuming: model, optimiser, counters and history are
    restored, so that `trainer.epochs` is the number of completed epochs. `on_fit_begin` of all, which may reset them. On
    resuming: `load_state` of those with a state. Steps and epochs. `on_fit_end`.
    `sets_weights`: whether it gives the model other weights at the end of training; only one callback of a trainer may.
    `is_done`: whether its reason for stopping training still holds; a stopped run continues if it does not.
    `must_match`: the attributes that must be the same for a run to be resumed.
    `only_first`: whether, of several processes that train together, only the first calls it: a callback that writes or shows.
    """

    sets_weights: bool = False
    is_done: bool = False
    must_match: tuple[str, ...] = ()
    only_first: bool = False

    def check(self, trainer: "Training", columns: Collection[str]) -> None:
        """Before training starts: raise what would fail later. columns: those that the history of this `fit` will have."""

    def on_fit_begin(self, trainer: "Training") -> None:
        """Before the first step of this `fit`; on resuming, after the counters are restored."""

    def on_epoch_begin(self, trainer: "Training") -> None:
        """Before the first step of an epoch; not again when a run resumes in the middle of one."""

    def on_step_end(self, trainer: "Training") -> None:
        """After each step of the optimiser."""

    def on_epoch_end(self, trainer: "Training", row: Mapping[str, float]) -> None:
        """After each epoch and its validation; `row` is the new row of the history."""

    def on_fit_end(self, trainer: "Training") -> None:
        """After the last step; called again when a finished run is resumed."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must store of it: a dict of numbers, text, arrays, and lists, tuples and dicts by text of them.

        A callback that overrides this affects training: a run resumes only with all such callbacks that it began with.
        """
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned: attributes of these names."""
        vars(self).update(state)


class Training(Protocol):
    """A trainer, as callbacks and the loop see it: its parts, its counters and its evaluation. See `nn.Trainer`."""

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
    last_loss: Any
    checkpoints: Path | None
    communicator: Communicator | None
    ranks: Ranks

    def loss_and_grad(self, x: Any, t: Any, w: Any, z: Any) -> tuple[Any, float]:
        """The loss of a batch, and what it was divided by; fills the model's `grads`, and z, if given, with the outputs."""

    def stop(self) -> None:
        """End training after this epoch."""

    def evaluate(self, data: Any, batch_size: int = ..., steps: int | None = None) -> dict[str, Any]:
        """The loss and the metrics over all samples, or over the first `steps` batches."""

    def predict(self, x: Any, batch_size: int = ...) -> Any:
        """The model's outputs."""

    def greater_is_better(self, column: str) -> bool | None:
        """Whether more is better in this column of the history; None if unknown."""

    def results(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The results of the metrics since their `reset`, except those named in `without`."""


class Monitor(NamedTuple):
    """The column of the history that epochs are compared by, and whether larger is better.

    column: its name in the history   who: the watcher's name, for messages
    mode: "min" or "max": whether smaller or larger is better; None: as the metric of this name says, for a loss "min".
    """

    who: str
    column: str
    mode: Mode = None

    def check(self, trainer: Training, columns: Collection[str]) -> None:
        """Raise DataError for a name that the history will not have, ValueError where no metric says what is better."""
        if self.column not in columns:
            raise DataError(
                f"{self.who} watches {shortened(self.column)}, the history will have {listing(columns)}"
                + ("" if "val_loss" in columns else ": columns val_... need validation=")
            )
        self.sign(trainer)

    def sign(self, trainer: Training) -> int:
        """1 where smaller is better, -1 where larger is."""
        if self.mode is not None:
            return -1 if self.mode == "max" else 1
        greater_is_better = trainer.greater_is_better(self.column)
        if greater_is_better is None:
            own = "" if self.who == "fit" else f'{self.who} mode="max" or "min", or '
            raise ValueError(
                f"{self.who} watches {shortened(self.column)}, and no metric says whether more of it is better: "
                f"give {own}the metric greater_is_better = True or False"
            )
        return -1 if greater_is_better else 1

    def cost(self, trainer: Training, row: Mapping[str, float]) -> float:
        """The value of an epoch, negated where larger is better, so that smaller is always better."""
        if self.column not in row:
            raise DataError(f"{self.who} watches {shortened(self.column)}, the history has {listing(row)}")
        return self.sign(trainer) * row[self.column]


def show_step(trainer: Training, z: Any, t: Any, w: Any, partial: list[str]) -> None:
    """Show a step to metrics and callbacks. If one of them raises, all others still see it, so that the step is complete.

    z: None where there is nothing to measure.  partial: receives the names of the metrics that missed it.
    """
    errors = []
    for metric in trainer.metrics if z is not None else ():
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
