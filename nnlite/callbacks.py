"""What happens around training: four hooks; early stopping and weight averaging built on them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from nnlite.errors import DataError

if TYPE_CHECKING:
    from nnlite.model import Sequential
    from nnlite.train import Trainer


class Callback:
    """Four hooks that `Trainer.fit` calls; each may do nothing. `trainer.stop()` ends training after the epoch."""

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Before the first step."""

    def on_step_end(self, trainer: "Trainer") -> None:
        """After each step of the optimiser."""

    def on_epoch_end(self, trainer: "Trainer", row: Mapping[str, float]) -> None:
        """After each epoch and its validation; `row` is the new line of the history."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step; where a finished run is resumed, once more."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of it: a dict of arrays and of what JSON can hold, nested as you like."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


class EarlyStopping(Callback):
    """Stop when `monitor` has not improved by more than `min_delta` for `patience` epochs; take the best weights back.

    restore_best: whether training ends with the best parameters and buffers, or with the last.
    mode: "min" or "max"; default: "max" for names that hold accuracy, precision, recall or f1, else "min".
    Raises DataError for a name that the history has not.
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
        grows = any(word in monitor for word in ("accuracy", "precision", "recall", "f1"))
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.sign = -1 if (mode or ("max" if grows else "min")) == "max" else 1
        self.restore_best = restore_best
        self.best, self.waited, self.best_epoch = math.inf, 0, 0
        self.snapshot: Any = None

    def on_fit_begin(self, trainer: "Trainer") -> None:
        self.best, self.waited, self.snapshot = math.inf, 0, None

    def on_epoch_end(self, trainer: "Trainer", row: Mapping[str, float]) -> None:
        if self.monitor not in row:
            raise DataError(f"EarlyStopping watches {self.monitor!r}, the history has {', '.join(row)}")
        value = self.sign * row[self.monitor]
        if value < self.best - self.min_delta:
            self.best, self.waited, self.best_epoch = value, 0, trainer.epochs
            self.snapshot = trainer.model.snapshot() if self.restore_best else None
            return
        self.waited += 1
        if self.waited >= self.patience:
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

    The average is kept in float64: in float32 it would stand still where w (values - average) is below half its last digit.
    It goes on in a second `fit` of the same model and begins anew with another.
    decay: w = 1 - decay, larger in the first steps, so that they count alike; None: w = 1 / steps, the plain mean.
    start: the first steps that are left out.  `with average.applied(model):` shows it before the end.
    Sources: Polyak and Juditsky 1992; Izmailov et al. 2018, Averaging Weights Leads to Wider Optima.
    Raises ValueError for a decay outside [0, 1).
    """

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
            self.average = tuple(value.astype("float64") for value in values)
        for average, value in zip(self.average, values, strict=True):
            change = value.astype("float64")
            change -= average
            change *= weight
            average += change

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
