"""A step that fails changes nothing; one whose loss or gradient is not finite is refused or skipped."""

import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from nnlite.errors import NonFiniteError
from nnlite.losses import NoWeightError
from nnlite.tools.debug import locate
from nnlite.training.counts import Counts
from nnlite.training.hooks import Training


class Guard:
    """`with guard: ...` around each step of an epoch; `made` says afterwards whether the step was applied or skipped.

    skip: whether a bad step is skipped, with a warning; otherwise NonFiniteError is raised.
    halted: what the optimiser is told of bad steps before.
    rows: returns the places in the data set of the samples of a batch, by epoch and batch number; None if unknown.
    """

    def __init__(self, trainer: Training, counts: Counts, skip: bool, rows: Callable[[int, int], Any]) -> None:
        self.trainer, self.counts, self.skip, self.rows = trainer, counts, skip, rows
        # A device halts by itself after a bad step; the host finds out when it reads the mean.
        self.halted = {} if counts.tally.halted is None else {"halted": counts.tally.halted}

    def __enter__(self) -> None:
        self.passes, self.made = self.trainer.model.passes, False
        self.loss: Any = None

    def check(self, loss: Any, total: float, batch: tuple[Any, Any, Any]) -> None:
        """Between the pass and the update: count the loss; raise NonFiniteError, saying where it comes from, if it is bad."""
        self.counts.tally.add(loss, total)
        reason = self._located(batch) if self.counts.tally.is_bad else None
        self.loss = loss  # from here on a step that fails is incomplete
        if reason is not None:
            raise NonFiniteError(reason)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            self.trainer.steps += 1
            self.made = True
        elif not isinstance(error, Exception):
            return False
        elif self.loss is None:
            self.trainer.model.passes = self.passes  # the batch may come again
            return isinstance(error, NoWeightError)
        elif isinstance(error, NonFiniteError):
            self._refuse(error)
        else:
            self.counts.broken = True
            return False
        return True

    def _located(self, batch: tuple[Any, Any, Any]) -> str:
        """Where in a batch the first value is not finite."""
        return locate(self.trainer.model, *batch, self.rows(self.trainer.epochs, self.counts.batches))

    def _refuse(self, error: NonFiniteError) -> None:
        trainer = self.trainer
        text = f"the loss is {self.loss} at step {trainer.steps} (epoch {trainer.epochs + 1}): {error}"
        if not self.skip:
            raise NonFiniteError(text) from None
        warnings.warn(f"step skipped: {text}", RuntimeWarning, stacklevel=3)
