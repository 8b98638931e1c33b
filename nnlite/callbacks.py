"""What happens around training: hooks; early stopping and weight averaging built on them."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from nnlite.arguments import as_call, listing, shortened
from nnlite.errors import DataError

if TYPE_CHECKING:
    from nnlite.model import Sequential
    from nnlite.train import Trainer


class Callback:
    """Hooks that `Trainer.fit` calls; each may do nothing. `trainer.stop()` ends training after the epoch.

    The order: `on_check` of all callbacks, before anything is done. Where a run goes on: model, optimiser, counters and history
    are put back, so that `trainer.epochs` says how many epochs are done. `on_fit_begin` of all, which may begin anew. Where a
    run goes on: `load_state` of those that were kept. Steps and epochs. `on_fit_end`.
    `sets_weights`: whether it gives the model other weights at the end of training; only one of a trainer's may.
    `stops_training`: whether it still has a reason for having stopped training; a run that was stopped goes on without one.
    `must_match`: the attributes that a run must have had the same to go on.
    """

    sets_weights: bool = False
    stops_training: bool = False
    must_match: tuple[str, ...] = ()

    __repr__ = as_call

    def on_check(self, trainer: "Trainer", columns: Collection[str]) -> None:
        """Before anything is done: raise what would fail later. columns: those that the history of this `fit` will have."""

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Before the first step of this `fit`; where a run goes on, after its counters were put back."""

    def on_step_end(self, trainer: "Trainer") -> None:
        """After each step of the optimiser."""

    def on_epoch_end(self, trainer: "Trainer", row: Mapping[str, float]) -> None:
        """After each epoch and its validation; `row` is the new line of the history."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step; where a finished run is resumed, once more."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of it: a dict of numbers, text, arrays, and lists, tuples and dicts by text of them.

        A callback that writes this changes training: a run goes on only with all of those that it began with.
        """
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


class EarlyStopping(Callback):
    """Stop when `monitor` has not improved by more than `min_delta` for `patience` epochs; take the best weights back.

    restore_best: whether training ends with the best parameters and buffers, or with the last.
    mode: "min" or "max": whether smaller or larger is better; default: as the metric of this name says, for a loss "min".
    `fit` raises DataError for a name that the history will not have, and ValueError where no metric says what is better.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, not {patience}")
        if mode not in (None, "min", "max"):
            raise ValueError(f'mode must be "min" or "max", not {mode!r}')
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.mode, self.restore_best = mode, restore_best
        self.best, self.waited, self.best_epoch = math.inf, 0, 0  # best: of values whose sign is changed where larger is better
        self.snapshot: Any = None

    must_match = ("monitor", "mode", "restore_best")

    @property
    def stops_training(self) -> bool:  # type: ignore[override]
        """Without an improvement for `patience` epochs."""
        return self.waited >= self.patience

    @property
    def sets_weights(self) -> bool:  # type: ignore[override]
        """It restores the best ones."""
        return self.restore_best

    def on_check(self, trainer: "Trainer", columns: Collection[str]) -> None:
        if self.monitor not in columns:
            raise DataError(
                f"EarlyStopping watches {shortened(self.monitor)}, the history will have {listing(columns)}"
                + ("" if "val_loss" in columns else ": columns val_... need validation=")
            )
        self._sign(trainer)

    def _sign(self, trainer: "Trainer") -> int:
        """1 where smaller is better, -1 where larger is."""
        if self.mode is not None:
            return -1 if self.mode == "max" else 1
        greater_is_better = trainer.greater_is_better(self.monitor)
        if greater_is_better is None:
            raise ValueError(
                f"EarlyStopping watches {shortened(self.monitor)}, and no metric says whether more of it is better: "
                'give EarlyStopping mode="max" or "min", or the metric greater_is_better = True or False'
            )
        return -1 if greater_is_better else 1

    def on_fit_begin(self, trainer: "Trainer") -> None:
        self.best, self.waited, self.snapshot = math.inf, 0, None

    def on_epoch_end(self, trainer: "Trainer", row: Mapping[str, float]) -> None:
        if self.monitor not in row:
            raise DataError(f"EarlyStopping watches {shortened(self.monitor)}, the history has {listing(row)}")
        value = self._sign(trainer) * row[self.monitor]
        if value < self.best - self.min_delta:
            self.best, self.waited, self.best_epoch = value, 0, trainer.epochs
            self.snapshot = trainer.model.snapshot() if self.restore_best else None
            return
        self.waited += 1
        if self.stops_training:
            trainer.stop()

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self.snapshot is not None:
            trainer.model.restore(self.snapshot)

    def state(self) -> dict[str, Any]:
        names = ("best", "waited", "best_epoch", "snapshot")
        return {name: getattr(self, name) for name in names}

    def load_state(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class WeightAverage(Callback):
    """average <- average + w (values - average) after each step, over parameters and buffers; the model has it after training.

    It goes on in a second `fit` of the same model and begins anew with another.
    decay: w = 1 - decay, larger in the first steps, so that they count alike; None: w = 1 / steps, the plain mean.
    start: the first steps that are left out.  `with average.applied(model):` shows it before the end.
    Sources: Polyak and Juditsky 1992; Izmailov et al. 2018, Averaging Weights Leads to Wider Optima.
    Raises ValueError for a decay outside [0, 1).
    """

    sets_weights, must_match = True, ("decay", "start")

    def __init__(self, decay: float | None = 0.999, start: int = 0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay, self.start = decay, start
        self.count = 0
        self.average: Any = None
        self.model: Any = None  # whose average it is

    def on_fit_begin(self, trainer: "Trainer") -> None:
        if self.model is not trainer.model:
            self.model, self.count, self.average = trainer.model, 0, None

    def on_step_end(self, trainer: "Trainer") -> None:
        if trainer.steps <= self.start:
            return
        values = trainer.model.params, trainer.model.buffers
        self.count += 1
        weight = max(1 / self.count, 0 if self.decay is None else 1 - self.decay)
        if self.average is None:
            self.average = trainer.model.snapshot()
        for average, value in zip(self.average, values, strict=True):
            average += weight * (value - average)

    @contextmanager
    def applied(self, model: "Sequential") -> Iterator[None]:
        """The model with the average; it has its own values back afterwards."""
        own = model.snapshot()
        if self.average is not None:
            model.restore(self.average)
        try:
            yield
        finally:
            model.restore(own)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self.average is not None:
            trainer.model.restore(self.average)

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "average": self.average}

    def load_state(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
