"""The training loop: epochs of batches, forward and backward pass and update, then validation; a guard around each step."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from nnlite.errors import NonFiniteError
from nnlite.losses import NoWeightError
from nnlite.optim.groups import last_rates
from nnlite.training.counts import Counts
from nnlite.training.history import numbers
from nnlite.training.hooks import Training, show_step
from nnlite.training.keeper import Keeper
from nnlite.training.progress import Progress, show
from nnlite.training.ranks import DivergedError
from nnlite.training.sources import Epochs, is_dataset

_UNSAVED = NonFiniteError, DivergedError  # after these nothing is worth saving


class Loop:
    """Trains and validates.     feed: the batches   keeper: saves checkpoints   shows: whether progress is shown

    held_out: validation data, None for none; only the first `validation_steps` batches are used.
    skip: whether a step whose loss or gradient is not finite is skipped, with a warning; otherwise it ends training.
    """

    def __init__(
        self,
        trainer: Training,
        feed: Epochs,
        keeper: Keeper,
        held_out: Any,
        validation_steps: int | None,
        skip: bool,
        shows: bool,
    ) -> None:
        self.trainer, self.feed, self.keeper, self.skip, self.shows = trainer, feed, keeper, skip, shows
        self.held_out, self.validation_steps = held_out, validation_steps

    def run(self, epochs: int, counts: Counts | None) -> None:
        """Train until `epochs` epochs are done. counts: those of an epoch in progress, which is finished even after `stop`."""
        trainer, model, keeper, ranks = self.trainer, self.trainer.model, self.keeper, self.trainer.ranks
        while trainer.epochs < epochs and (counts is not None or not trainer.stopped):
            counts = self._begin_epoch() if counts is None else counts
            guard = Guard(trainer, counts, self.skip, self.feed.rows)
            given = () if counts.complete else self.feed.epoch(trainer.epochs, counts.batches)
            with self._under_way(counts) as bar:
                for x, t, w in given if ranks.size == 1 or is_dataset(self.feed.source) else ranks.in_step(given):
                    n = ranks.samples(x, t)
                    z = model.backend.xp.empty((n, *model.out_shape), model.dtype) if trainer.metrics and n else None
                    with guard:
                        loss, total = trainer.loss_and_grad(x, t, w, z)
                        guard.check(loss, total, (x, t, w))
                        trainer.optimizer.step(model, **guard.halted)
                    counts.batches += 1
                    counts.samples += n
                    if guard.made:
                        show_step(trainer, z, t, w, counts.partial)  # to metrics and callbacks
                    bar.advance(n, counts.shown)
                    keeper.after_step(counts)
                seconds = counts.end()
            ranks.compare(model)
            row = {"loss": counts.loss_of_epoch()}
            if trainer.metrics or trainer.callbacks or self.held_out is not None:
                keeper.keep(counts)  # before user code runs, which may fail
            row |= counts.scores() | self._validate() | last_rates(trainer.optimizer)
            row = ranks.gather(row | {"seconds": seconds, "samples_per_second": counts.samples / seconds})[0]
            trainer.epochs += 1
            trainer.history.append(row)
            bar.end(row)
            with ranks.working():
                for callback in trainer.callbacks:
                    callback.on_epoch_end(trainer, row)
            trainer.stopped = any(ranks.gather(trainer.stopped))
            keeper.after_epoch(row)
            counts = None

    def _begin_epoch(self) -> Counts:
        for callback in self.trainer.callbacks:
            callback.on_epoch_begin(self.trainer)
        for metric in self.trainer.metrics:
            metric.reset()
        return Counts(self.trainer, self.skip)

    @contextmanager
    def _under_way(self, counts: Counts) -> Iterator[Progress]:
        """Around the steps of an epoch: if one fails, those before it are saved, except after a bad loss or a second signal."""
        trainer = self.trainer
        bar = show(trainer.epochs + 1, *self.feed.total(), counts.batches, counts.samples) if self.shows else Progress()
        counts.begin()
        trainer.is_counting = True
        try:
            yield bar
        except BaseException as error:
            bar.close()
            if isinstance(error, Exception) and not isinstance(error, _UNSAVED) and not counts.broken:
                with suppress(NonFiniteError):
                    self.keeper.keep(counts, together=False)
            raise
        finally:
            trainer.is_counting = False

    def _validate(self) -> dict[str, float]:
        """The columns val_...; empty without validation data."""
        if self.held_out is None:
            return {}
        ranks = self.trainer.ranks
        ranks.sharing = True
        try:
            results = self.trainer.evaluate(self.held_out, steps=self.validation_steps)
        finally:
            ranks.sharing = False
        return {f"val_{name}": value for name, value in numbers(results).items()}


class Guard:
    """A step that fails changes nothing; one whose loss or gradient is not finite is refused or skipped.

    `with guard: ...` around each step of an epoch; `made` says afterwards whether the step was applied or skipped.

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
        self.loss = self.trainer.last_loss = loss  # from here on a step that fails is incomplete
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
        trainer = self.trainer
        return trainer.ranks.locate(trainer.model, *batch, self.rows(trainer.epochs, self.counts.batches))

    def _refuse(self, error: NonFiniteError) -> None:
        trainer = self.trainer
        text = f"the loss is {self.loss} at step {trainer.steps} (epoch {trainer.epochs + 1}): {error}"
        if not self.skip:
            raise NonFiniteError(text) from None
        warnings.warn(f"step skipped: {text}", RuntimeWarning, stacklevel=3)
