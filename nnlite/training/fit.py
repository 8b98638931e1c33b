"""One call of `Trainer.fit`: the checks before it, and how a run begins, resumes and ends."""

import warnings
from pathlib import Path
from typing import Any

from nnlite.arguments import shortened
from nnlite.training.check import check_callbacks, check_parts, check_training, check_validation, columns_of
from nnlite.training.checkpoint import Folder
from nnlite.training.counts import Counts
from nnlite.training.fingerprint import Print
from nnlite.training.hooks import Training
from nnlite.training.keeper import Checkpoints, Keeper
from nnlite.training.loop import Loop
from nnlite.training.progress import say
from nnlite.training.sources import Epochs, apart, is_dataset, on_device


class Fit:
    """Trains on `source`, a data set or an iterable of batches, and validates, with the options of `Trainer.fit`."""

    def __init__(
        self,
        trainer: Training,
        source: Any,
        validation: Any,
        order: dict[str, Any],
        progress: bool,
        nonfinite: str,
        folder: Folder | None,
        left: dict[Path, Print],
        every: int | None,
        steps_per_epoch: int | None,
        validation_steps: int | None,
        monitor: str | None,
    ) -> None:
        self.trainer, self.progress, self.skip = trainer, progress, nonfinite == "skip"
        self.steps_per_epoch, self.validation_steps, self.order = steps_per_epoch, validation_steps, order
        self.source, self.held_out, self.places = apart(source, validation, order["seed"])
        self.keeper = Keeper(trainer)
        if folder is not None:
            self.keeper = Checkpoints(trainer, self.source, folder, left, every, monitor, self._say)

    def run(self, epochs: int, resume: bool) -> None:
        """Train until `epochs` epochs are done, counted from the start of the run."""
        trainer, keeper = self.trainer, self.keeper
        self._check(epochs)
        progress = keeper.begin(resume)
        last, source = keeper.first + epochs, on_device(self.source, trainer.model.backend)
        feed = Epochs(source, self.steps_per_epoch, keeper.first, keeper.placed, self.places, **self.order)
        counts = None
        if progress is not None and progress["counts"] is not None:
            counts = Counts(trainer, self.skip)
            counts.load_state(progress["counts"])
        if progress is not None and trainer.epochs < last:
            self._say_what_is_left(feed, counts)
        with keeper.keeping():
            Loop(trainer, feed, keeper, self.held_out, self.validation_steps, self.skip, self.progress).run(last, counts)
            keeper.after_run()
            for callback in trainer.callbacks:
                callback.on_fit_end(trainer)

    def _check(self, epochs: int) -> None:
        """Refuse what would fail later, before training starts."""
        trainer = self.trainer
        check_parts(trainer)
        columns = columns_of(trainer, self.held_out is not None)
        check_callbacks(trainer, columns)
        check_training(trainer, self.source)
        if self.held_out is not None:
            self.held_out = check_validation(trainer, self.held_out, epochs, self.validation_steps is not None)
            self.held_out = on_device(self.held_out, trainer.model.backend)
        self.keeper.check(columns, steps_per_epoch=self.steps_per_epoch, **self.order)

    def _say_what_is_left(self, feed: Epochs, counts: Counts | None) -> None:
        """On resuming: say that nothing is left to do, or warn that the batches cannot be compared."""
        trainer = self.trainer
        if trainer.stopped and counts is None:
            by = [shortened(callback) for callback in trainer.callbacks if callback.is_done] or ["trainer.stop()"]
            self._say(f"nothing is left to do: training was stopped after epoch {trainer.epochs} by {by[0]}")
        elif not is_dataset(self.source) and not feed.placed:
            skipped = feed.done(trainer.epochs, 0 if counts is None or counts.complete else counts.batches)
            warnings.warn(
                f"training continues with batches of {shortened(type(self.source))}: nothing checks that they are those "
                "of before"
                + f", the first {skipped} are skipped by iterating over them" * bool(skipped)
                + "; give it state() and load_state(state), then it continues from its own position",
                UserWarning,
                stacklevel=4,
            )

    def _say(self, text: str) -> None:
        if self.progress:
            say(text)
