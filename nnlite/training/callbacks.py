"""Callbacks: early stopping, learning rates reduced on a plateau, weight averaging, logs kept by other programs."""

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from nnlite.arguments import choice, flag, number, shortened, whole
from nnlite.atomic import shown, write_whole
from nnlite.errors import FileError
from nnlite.model import Sequential
from nnlite.optim.groups import by_column, last_rates
from nnlite.training.checkpoint import LOGGED
from nnlite.training.hooks import Callback, Mode, Monitor, Training

_LEAST_REDUCTION = 1e-8  # smaller reductions are skipped, as in PyTorch


class EarlyStopping(Callback):
    """Stop when `monitor` has not improved by more than `min_delta` for `patience` epochs; restore the best weights.

    restore_best: whether training ends with the best parameters and buffers, or with the last.
    mode: "min" or "max": whether smaller or larger is better; default: as the metric of this name says, for a loss "min".
    `fit` raises DataError for a name that the history will not have, and ValueError where no metric says what is better.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode = None,
        restore_best: bool = True,
    ) -> None:
        self.monitor, self.patience = monitor, whole("patience", patience, 1)
        self.min_delta = number("min_delta", min_delta, least=0)
        self.mode, self.restore_best = choice("mode", mode, "min", "max", None), flag("restore_best", restore_best)
        self.best, self.waited, self.best_epoch = math.inf, 0, 0  # best: of values whose sign is changed where larger is better
        self.snapshot: Any = None

    must_match = ("monitor", "mode", "restore_best")

    @property
    def is_done(self) -> bool:  # type: ignore[override]
        """Whether `patience` epochs have passed without an improvement."""
        return self.waited >= self.patience

    @property
    def sets_weights(self) -> bool:  # type: ignore[override]
        """Whether it restores the best weights."""
        return self.restore_best

    @property
    def _watched(self) -> Monitor:
        return Monitor("EarlyStopping", self.monitor, self.mode)

    def check(self, trainer: Training, columns: Collection[str]) -> None:
        self._watched.check(trainer, columns)

    def on_fit_begin(self, trainer: Training) -> None:
        self.best, self.waited, self.snapshot = math.inf, 0, None

    def on_epoch_end(self, trainer: Training, row: Mapping[str, float]) -> None:
        cost = self._watched.cost(trainer, row)
        if cost < self.best - self.min_delta:
            self.best, self.waited, self.best_epoch = cost, 0, trainer.epochs
            self.snapshot = trainer.model.snapshot() if self.restore_best else None
            return
        self.waited += 1
        if self.is_done:
            trainer.stop()

    def on_fit_end(self, trainer: Training) -> None:
        if self.snapshot is not None:
            trainer.model.restore(self.snapshot)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "waited", "best_epoch", "snapshot")}


class ReduceOnPlateau(Callback):
    """r <- max(factor r, min_learning_rate) after more than `patience` epochs in which `monitor` did not improve.

    r: the learning rate, or that of each group of `nn.ParameterGroups`; a number, not a schedule.
    A value v improves on the best so far, b, where v < b (1 - threshold), or, if larger is better, v > b (1 + threshold). With
    threshold_mode="abs", for values that may be negative: v < b - threshold, v > b + threshold.
    cooldown: number of epochs after a reduction that do not count.
    mode: "min" or "max": whether smaller or larger is better; default: as the metric of this name says, for a loss "min".
    It starts afresh with each `fit`. Raises ValueError for arguments out of range. `fit` raises ValueError for a schedule and
    where no metric says what is better, DataError for a name that the history will not have.
    Source: PyTorch's ReduceLROnPlateau. (Keras's reduces one epoch earlier, and its threshold is absolute.)
    """

    must_match = ("monitor", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_learning_rate", "mode")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        *,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_learning_rate: float = 0.0,
        mode: Mode = None,
    ) -> None:
        self.monitor, self.factor = monitor, number("factor", factor, above=0, below=1)
        self.patience, self.cooldown = whole("patience", patience), whole("cooldown", cooldown)
        self.threshold = number("threshold", threshold, least=0)
        self.threshold_mode = choice("threshold_mode", threshold_mode, "rel", "abs")
        self.min_learning_rate = number("min_learning_rate", min_learning_rate, least=0)
        self.mode = choice("mode", mode, "min", "max", None)
        self.best, self.waited, self.cooling = math.inf, 0, 0  # best: of values whose sign is changed where larger is better

    @property
    def _watched(self) -> Monitor:
        return Monitor("ReduceOnPlateau", self.monitor, self.mode)

    def check(self, trainer: Training, columns: Collection[str]) -> None:
        self._watched.check(trainer, columns)
        for name, optimizer in by_column(trainer.optimizer).items():
            if callable(optimizer.learning_rate):
                raise ValueError(
                    f"ReduceOnPlateau scales a constant learning rate, but {shortened(name)} is the schedule "
                    f"{shortened(optimizer.learning_rate)}, which sets the rate at each step: give a number instead"
                )

    def on_fit_begin(self, trainer: Training) -> None:
        self.best, self.waited, self.cooling = math.inf, 0, 0

    def on_epoch_end(self, trainer: Training, row: Mapping[str, float]) -> None:
        cost = self._watched.cost(trainer, row)
        self.waited += 1
        if cost < self._bound(trainer):
            self.best, self.waited = cost, 0
        if self.cooling:
            self.cooling, self.waited = self.cooling - 1, 0
        if self.waited > self.patience:
            self._reduce(trainer)
            self.cooling, self.waited = int(self.cooldown), 0

    def _bound(self, trainer: Training) -> float:
        """The value that an improvement must be below."""
        if self.threshold_mode == "abs":
            return self.best - self.threshold
        return self.best * (1 - self._watched.sign(trainer) * self.threshold)

    def _reduce(self, trainer: Training) -> None:
        for optimizer in by_column(trainer.optimizer).values():
            reduced = float(max(optimizer.rate * self.factor, self.min_learning_rate))
            if optimizer.rate - reduced > _LEAST_REDUCTION:
                optimizer.learning_rate = reduced

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "cooling": self.cooling}


class WeightAverage(Callback):
    """average <- average + w (values - average) after each step, over parameters and buffers; training ends with it.

    The average is kept in float64: in float32 it would stop changing where w (values - average) is below half its last digit.
    It continues in a second `fit` of the same model and starts afresh with another.
    decay: w = 1 - decay, larger in the first steps, so that they count equally; None: w = 1 / steps, the plain mean.
    start: number of first steps to leave out.  `with average.applied(model):` uses it before the end.
    Sources: Polyak and Juditsky 1992; Izmailov et al. 2018, Averaging Weights Leads to Wider Optima.
    Raises ValueError for a decay outside [0, 1).
    """

    sets_weights, must_match = True, ("decay", "start")

    def __init__(self, decay: float | None = 0.999, *, start: int = 0) -> None:
        self.decay = None if decay is None else number("decay", decay, least=0, below=1)
        self.start = whole("start", start)
        self.count = 0
        self.average: Any = None
        self.model: Any = None  # whose average it is

    def on_fit_begin(self, trainer: Training) -> None:
        if self.model is not trainer.model:
            self.model, self.count, self.average = trainer.model, 0, None

    def on_step_end(self, trainer: Training) -> None:
        if trainer.steps <= self.start:
            return
        values = trainer.model.params, trainer.model.buffers
        self.count += 1
        weight = max(1 / self.count, 0 if self.decay is None else 1 - float(self.decay))
        if self.average is None:
            self.average = tuple(value.astype("float64") for value in values)
        for average, value in zip(self.average, values, strict=True):
            trainer.model.backend.lerp(average, value.astype("float64"), weight)

    @contextmanager
    def applied(self, model: Sequential) -> Iterator[None]:
        """Give the model the average inside the block; its own values are restored afterwards."""
        own = model.snapshot()
        if self.average is not None:
            model.restore(self.average)
        try:
            yield
        finally:
            model.restore(own)

    def on_fit_end(self, trainer: Training) -> None:
        if self.average is not None:
            trainer.model.restore(self.average)

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "average": self.average}


class LogTo(Callback):
    """log(values, step=trainer.steps) after each epoch, with its row of the history; no value twice in a run.

    log: any function of a dict of numbers by name and step=: `wandb.log`, `trackio.log`, `mlflow.log_metrics`.
    every: also log "step/loss" and "step/learning_rate", those of the step itself, after every so many steps; default None.
    A run with checkpoints stores how far its logs are beside them, in `logged.txt`, so that what is done again after an
    interruption is not logged again, in a new process neither. That is written before `log` is called: if the process is
    killed in between, these values are in no log. What `log` raises ends training as in any callback; a row of an epoch is
    then logged when the run is resumed.
    Raises ValueError for what is not a function, FileError for a damaged `logged.txt`.
    """

    only_first = True

    def __init__(self, log: Callable[..., Any], *, every: int | None = None) -> None:
        if not callable(log) or isinstance(log, type) or not _takes_step(log):
            raise ValueError(f"log must be a function of a dict and step=, such as wandb.log, not {shortened(log)}")
        self.log, self.every = log, None if every is None else whole("every", every, 1)
        self.logged = (0, 0)  # the steps and epochs at the last call

    def on_fit_begin(self, trainer: Training) -> None:
        note = None if trainer.checkpoints is None else trainer.checkpoints / LOGGED
        if not trainer.steps:
            self.logged = (0, 0)
            if note is not None:
                note.unlink(missing_ok=True)
        elif note is not None and note.exists():
            self.logged = _read(note)

    def on_step_end(self, trainer: Training) -> None:
        if self.every and trainer.steps % self.every == 0:
            values = {"loss": float(trainer.last_loss), **last_rates(trainer.optimizer)}
            self._once(trainer, {f"step/{name}": value for name, value in values.items()})

    def on_epoch_end(self, trainer: Training, row: Mapping[str, float]) -> None:
        self._once(trainer, dict(row))

    def _once(self, trainer: Training, values: dict[str, float]) -> None:
        here, before = (trainer.steps, trainer.epochs), self.logged
        if here <= before:
            return
        self._note(trainer, here)
        try:
            self.log(values, step=trainer.steps)
        except Exception:
            self._note(trainer, before)
            raise

    def _note(self, trainer: Training, here: tuple[int, int]) -> None:
        self.logged = here
        if trainer.checkpoints is not None:
            try:
                write_whole(trainer.checkpoints / LOGGED, "{} {}\n".format(*here).encode())
            except FileError as error:
                warnings.warn(f"{error}; training continues", RuntimeWarning, stacklevel=2)


def _takes_step(log: Callable[..., Any]) -> bool:
    """Whether it can be called as log(values, step=...), as far as its signature says."""
    try:
        inspect.signature(log).bind({}, step=0)
    except TypeError:
        return False
    except ValueError:  # it has none
        return True
    return True


def _read(note: Path) -> tuple[int, int]:
    try:
        steps, epochs = map(int, note.read_text().split())
    except (OSError, ValueError) as error:
        raise FileError(f"{shown(note)} does not say how far a run is in its logs: {shortened(error)}; remove it") from error
    return steps, epochs
