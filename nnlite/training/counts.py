"""The running counts of an epoch in progress."""

import math
import time
from collections.abc import Mapping
from typing import Any

from nnlite.errors import DataError, NonFiniteError
from nnlite.state import faults_of_the_file
from nnlite.training.history import numbers
from nnlite.training.hooks import Training

_KEPT = ("batches", "samples", "seconds", "partial", "complete")


class Counts:
    """Batches, samples, losses and time of an epoch. skip: whether losses that are not finite are left out.

    partial: the metrics that have not seen all batches. complete: no batch is left. broken: a step failed halfway.
    kept: the number of batches in the last checkpoint, and whether it records that none is left.
    """

    def __init__(self, trainer: Training, skip: bool = False) -> None:
        self.trainer, self.first = trainer, trainer.steps
        self.tally = trainer.model.backend.tally(skip=skip)
        self.batches = self.samples = 0
        self.kept = (0, False)
        self.begun = self.earlier = 0.0
        self.partial: list[str] = []
        self.complete = self.broken = False

    def begin(self) -> None:
        """Called before the first step, or the first since the run was interrupted."""
        self.begun = time.perf_counter()

    def end(self) -> float:
        """No batch is left. Returns the seconds that the steps took; raises NonFiniteError where a loss was not finite."""
        self.complete = True
        self.mean_loss()  # waits for a device
        return self.seconds

    @property
    def seconds(self) -> float:
        """Seconds since the first step, without the time between an interruption and resuming."""
        return self.earlier + time.perf_counter() - self.begun

    def mean_loss(self) -> float:
        """The mean loss so far, NaN if there is none; raises NonFiniteError where a loss was not finite."""
        loss, bad = self.tally.read()
        if bad:
            trainer = self.trainer
            trainer.steps = self.first + bad - 1
            raise NonFiniteError(
                f"the loss ({loss}) or a gradient is not finite at step {trainer.steps} (epoch {trainer.epochs + 1}): "
                "look for NaN in the data, lower the learning rate, or scale inputs and targets"
            )
        return loss

    def loss_of_epoch(self) -> float:
        """The mean loss of the whole epoch; raises DataError or NonFiniteError if there is none."""
        if not self.samples:
            raise DataError("the training data gave no batch: an iterable must give its batches anew each epoch")
        loss = self.mean_loss()
        if math.isnan(loss) and not self.tally.count:
            raise DataError("nothing to train on: the weights of all samples are zero")
        if math.isnan(loss):
            raise NonFiniteError(f"every step of epoch {self.trainer.epochs + 1} was skipped: no loss was finite")
        return loss

    def shown(self) -> dict[str, float]:
        """Loss and metrics so far; may be empty."""
        loss = self.mean_loss()
        return {} if math.isnan(loss) else {"loss": loss, **numbers(self.trainer.results(without=self.partial))}

    def scores(self) -> dict[str, float]:
        """The metrics of the epoch, by column. One that has not seen all batches has NaN in its columns."""
        scores = numbers(self.trainer.results(without=self.partial))
        for metric in self.trainer.metrics:
            if metric.name in self.partial and metric.greater_is_better is not None:
                scores |= dict.fromkeys(metric.columns(self.trainer.model.out_shape), math.nan)
        return scores

    def state(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {name: getattr(self, name) for name in _KEPT} | self.tally.state()

    @faults_of_the_file()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; raises FileError for anything else."""
        self.batches, self.samples, self.earlier = int(state["batches"]), int(state["samples"]), float(state["seconds"])
        self.partial, self.complete = [str(name) for name in state["partial"]], bool(state["complete"])
        self.kept = (self.batches, self.complete)
        self.tally.load_state(state)
