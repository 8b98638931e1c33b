"""One call of `Trainer.fit`: epochs of batches, interrupted and taken up again where checkpoints are kept."""

import math
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nnlite.arguments import shortened
from nnlite.check import check_callbacks, check_parts, check_training, check_validation, columns_of
from nnlite.checkpoint import Folder
from nnlite.debug import locate
from nnlite.errors import DataError, NonFiniteError
from nnlite.history import numbers
from nnlite.keeper import Counts, Keeper
from nnlite.losses import Loss, NoWeightError
from nnlite.optim.groups import last_rates
from nnlite.progress import Progress, say, show
from nnlite.sources import Epochs, apart, is_dataset, on_device

if TYPE_CHECKING:
    from nnlite.train import Trainer


class Weighed(Loss):
    """The same loss; `weight`: what it divided the batch by, which is what that batch counts for in the mean of an epoch."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def of_rows(self, *rows: Any) -> tuple[float, Any]:
        return self.loss.of_rows(*rows)

    def prepare(self, *batch: Any) -> tuple[Any, Any, float]:
        prepared = self.loss.prepare(*batch)
        self.weight = prepared[2]
        return prepared


class Fit:
    """Trains on `source`, a data set or an iterable of batches, and validates, as `Trainer.fit` was asked to."""

    def __init__(
        self,
        trainer: "Trainer",
        source: Any,
        validation: Any,
        progress: bool,
        nonfinite: str,
        folder: Folder | None = None,
        every: int | None = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        monitor: str | None = None,
        **order: Any,
    ) -> None:
        self.trainer, self.progress, self.nonfinite = trainer, progress, nonfinite
        self.steps_per_epoch, self.validation_steps, self.order = steps_per_epoch, validation_steps, order
        self.source, self.held_out, self.places = apart(source, validation, order["seed"])
        self.keeper = Keeper(trainer, self.source, folder, every, monitor, self._say)

    def run(self, epochs: int, resume: bool) -> None:
        """Until `epochs` epochs are done since the first of them began."""
        self._check(epochs)
        progress = self.keeper.begin(resume)
        source = on_device(self.source, self.trainer.model.backend)
        self.feed = Epochs(source, self.steps_per_epoch, self.keeper.placed, **self.order)
        counts = self._go_on(progress, epochs)
        with self.keeper.keeping():
            self._run(epochs, counts)

    def _check(self, epochs: int) -> None:
        """Refuse what would fail later, before anything is done."""
        trainer = self.trainer
        check_parts(trainer)
        columns = columns_of(trainer, self.held_out is not None)
        check_callbacks(trainer, columns)
        check_training(trainer, self.source)
        if self.held_out is not None:
            self.held_out = check_validation(trainer, self.held_out, epochs, self.validation_steps is not None)
            self.held_out = on_device(self.held_out, trainer.model.backend)
        self.keeper.check(columns, steps_per_epoch=self.steps_per_epoch, **self.order)

    def _run(self, epochs: int, counts: Counts | None) -> None:
        trainer, keeper = self.trainer, self.keeper
        # An epoch that was interrupted after `stop` is brought to its end.
        while trainer.epochs < keeper.first + epochs and (counts is not None or not trainer.stopped):
            keeper.ended = False
            self._epoch(counts)
            counts = None
        keeper.after_run()
        for callback in trainer.callbacks:
            callback.on_fit_end(trainer)

    def _go_on(self, progress: dict[str, Any] | None, epochs: int) -> Counts | None:
        """What the epoch of a run that goes on had counted, where it stands in the middle of one."""
        trainer, keeper = self.trainer, self.keeper
        if progress is None:
            return None
        self._say(f"going on from step {trainer.steps} (epoch {trainer.epochs + (not keeper.ended)})")
        counts = None
        if progress["counts"] is not None:
            counts = self._new_counts()
            counts.load_state(progress["counts"])
        if trainer.epochs < keeper.first + epochs:
            self._say_what_is_left(counts)
        return counts

    def _say_what_is_left(self, counts: Counts | None) -> None:
        trainer, first = self.trainer, self.keeper.first
        if trainer.stopped and counts is None:
            by = [shortened(callback) for callback in trainer.callbacks if callback.is_done] or ["trainer.stop()"]
            self._say(f"nothing is left to do: training was stopped after epoch {trainer.epochs} by {by[0]}")
        elif not is_dataset(self.source) and not self.keeper.placed:
            skipped = self.feed.done(trainer.epochs, 0 if counts is None or counts.complete else counts.batches, first)
            warnings.warn(
                f"training goes on with batches of {shortened(type(self.source))}: nothing checks that they are those of before"
                + f", the first {skipped} are skipped by iterating over them" * bool(skipped)
                + "; give it state() and load_state(state), then it goes on from its own place",
                UserWarning,
                stacklevel=5,
            )

    # ---- an epoch

    def _epoch(self, counts: Counts | None) -> None:
        trainer, keeper = self.trainer, self.keeper
        if counts is None:
            for callback in trainer.callbacks:
                callback.on_epoch_begin(trainer)
            counts = self._new_counts()
            for metric in trainer.metrics:
                metric.reset()
        bar = Progress()
        if self.progress:
            bar = show(trainer.epochs + 1, *self.feed.total(), counts.batches, counts.samples)
        try:
            self._steps(counts, bar)
        except BaseException as error:
            bar.close()
            self._keep_what_is_done(counts, error)
            raise
        loss = self._loss_of_epoch(counts)
        if trainer.metrics or trainer.callbacks or self.held_out is not None:
            self._keep(counts)  # before code of others runs, which may fail
        row = self._row(loss, counts)
        trainer.epochs += 1
        trainer.history.append(row)
        bar.end(row)
        for callback in trainer.callbacks:
            callback.on_epoch_end(trainer, row)
        keeper.after_epoch(row)

    def _steps(self, counts: Counts, bar: Progress) -> None:
        """The steps that are left of an epoch."""
        trainer, start, before = self.trainer, time.perf_counter(), counts.seconds
        trainer.is_counting = True
        try:
            for x, t, w in () if counts.complete else self.feed.epoch(trainer.epochs, counts.batches, self.keeper.first):
                z = self._room_for_outputs(len(x))
                is_made = self._step(x, t, w, z, counts)
                counts.batches += 1
                counts.samples += len(x)
                if is_made:
                    self._show(z, t, w, counts)
                counts.seconds = before + time.perf_counter() - start
                bar.advance(len(x), lambda: self._shown(counts))
                self.keeper.after_step(counts)
            counts.complete = True
            counts.mean_loss(trainer)  # waits for a device
            counts.seconds = before + time.perf_counter() - start
        finally:
            trainer.is_counting = False

    def _room_for_outputs(self, n: int) -> Any:
        model = self.trainer.model
        return model.backend.xp.empty((n, *model.out_shape), model.dtype) if self.trainer.metrics else None

    def _step(self, x: Any, t: Any, w: Any, z: Any, counts: Counts) -> bool:
        """Update the model by a batch, its outputs go to z; returns whether it did."""
        trainer, model, tally = self.trainer, self.trainer.model, counts.tally
        criterion, passes = Weighed(trainer.loss), model.passes
        try:
            loss = model.loss_and_grad(x, t, criterion, sample_weight=w, out=z)
        except NoWeightError:
            return False
        except Exception:
            model.passes = passes  # the batch may come again
            raise
        tally.add(loss, criterion.weight)
        if tally.is_bad:
            self._refuse(loss, self._located((x, t, w), counts))
            return False
        try:
            if tally.halted is None:
                trainer.optimizer.step(model)
            else:  # the device stops by itself after a bad step; that is found out when the mean is asked for
                trainer.optimizer.step(model, halted=tally.halted)
        except NonFiniteError as error:
            self._refuse(loss, str(error))
            return False
        except Exception:
            counts.broken = True
            raise
        trainer.steps += 1
        return True

    def _show(self, z: Any, t: Any, w: Any, counts: Counts) -> None:
        """Show metrics and callbacks the step. Where one of them raises, all others see it, so that the step is whole."""
        errors = []
        for metric in self.trainer.metrics:
            try:
                metric.update(z, t, w)
            except Exception as error:
                counts.partial.append(metric.name)
                errors.append(error)
        for callback in self.trainer.callbacks:
            try:
                callback.on_step_end(self.trainer)
            except Exception as error:
                errors.append(error)
        for other in errors[1:]:
            errors[0].add_note(f"then another one raised {shortened(other)}")
        if errors:
            raise errors[0]

    def _keep_what_is_done(self, counts: Counts, error: BaseException) -> None:
        """Write a checkpoint of the last whole step, unless a bad loss or a second signal has ended training."""
        if isinstance(error, Exception) and not isinstance(error, NonFiniteError) and not counts.broken:
            with suppress(NonFiniteError):
                self._keep(counts)

    def _keep(self, counts: Counts) -> None:
        if counts.kept != (counts.batches, counts.complete):
            self.keeper.save(counts)

    def _located(self, batch: tuple[Any, Any, Any], counts: Counts) -> str:
        """Where in a batch the first value is not finite, by the rows of the data set where that says them."""
        rows = self.feed.rows(self.trainer.epochs, counts.batches)
        return locate(self.trainer.model, *batch, rows if self.places is None else self.places[rows])

    def _refuse(self, loss: float, reason: str) -> None:
        trainer = self.trainer
        text = f"the loss is {loss} at step {trainer.steps} (epoch {trainer.epochs + 1}): {reason}"
        if self.nonfinite == "raise":
            raise NonFiniteError(text)
        warnings.warn(f"step skipped: {text}", RuntimeWarning, stacklevel=2)

    def _loss_of_epoch(self, counts: Counts) -> float:
        """Its mean loss; raises DataError and NonFiniteError where there is none."""
        if not counts.samples:
            raise DataError("the training data gave no batch: an iterable must give its batches anew each epoch")
        loss = counts.mean_loss(self.trainer)
        if math.isnan(loss) and not counts.tally.count:
            raise DataError("nothing to train on: the weights of all samples are zero")
        if math.isnan(loss):
            raise NonFiniteError(f"every step of epoch {self.trainer.epochs + 1} was skipped: no loss was finite")
        return loss

    def _row(self, loss: float, counts: Counts) -> dict[str, float]:
        """The epoch's line of the history. A metric that has not seen all of it has no value, and NaN in its column."""
        trainer = self.trainer
        row = {"loss": loss, **numbers(trainer.results(without=counts.partial))}
        for metric in trainer.metrics:
            if metric.name in counts.partial and metric.greater_is_better is not None:
                row |= dict.fromkeys(metric.columns(trainer.model.out_shape), math.nan)
        if self.held_out is not None:
            results = trainer.evaluate(self.held_out, steps=self.validation_steps)
            row |= {f"val_{name}": value for name, value in numbers(results).items()}
        row |= last_rates(trainer.optimizer)
        return row | {"seconds": counts.seconds, "samples_per_second": counts.samples / counts.seconds}

    def _shown(self, counts: Counts) -> dict[str, float]:
        """What the bar shows; there may be nothing to show yet."""
        loss = counts.mean_loss(self.trainer)
        return {} if math.isnan(loss) else {"loss": loss, **numbers(self.trainer.results(without=counts.partial))}

    def _new_counts(self) -> Counts:
        return Counts(self.trainer.model.backend.tally(skip=self.nonfinite == "skip"), self.trainer.steps)

    def _say(self, text: str) -> None:
        if self.progress:
            say(text)
