"""The checkpoints of one call of `fit`: when they are written, and how a run goes on from one."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nnlite.backend import Tally
from nnlite.checkpoint import (
    Folder,
    capture,
    faults_of_the_file,
    keeps_its_place,
    refuse_what_cannot_be_kept,
    restore,
    restore_callbacks,
)
from nnlite.errors import NonFiniteError
from nnlite.fingerprint import Print, changing, fingerprint, refuse_others
from nnlite.formats import FORMAT, known_to
from nnlite.monitor import Monitor
from nnlite.signals import HeldSignals
from nnlite.state import Arrays

if TYPE_CHECKING:
    from nnlite.train import Trainer


class Counts:
    """What an epoch in the making has counted.

    first: the step that the tally began with. partial: the metrics that have not seen all batches. complete: no batch is left.
    kept: the batches that a checkpoint knows of, and whether it knows that no more are left. broken: a step is half made.
    """

    def __init__(self, tally: Tally, first: int) -> None:
        self.tally, self.first = tally, first
        self.batches = self.samples = 0
        self.kept = (0, False)
        self.seconds = 0.0
        self.partial: list[str] = []
        self.complete = self.broken = False

    def mean_loss(self, trainer: "Trainer") -> float:
        """The mean loss so far, NaN where there is none; raises NonFiniteError where a loss was not finite."""
        loss, bad = self.tally.read()
        if bad:
            trainer.steps = self.first + bad - 1
            raise NonFiniteError(
                f"the loss ({loss}) or a gradient is not finite at step {trainer.steps} (epoch {trainer.epochs + 1}): "
                "look for NaN in the data, lower the learning rate, or scale inputs and targets"
            )
        return loss

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        names = ("batches", "samples", "seconds", "partial", "complete")
        return {name: getattr(self, name) for name in names} | {"sums": self.tally.sums_so_far()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; raises FileError where that is something else."""
        with faults_of_the_file():
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        self.batches = int(state["batches"])
        self.samples, self.seconds = int(state["samples"]), float(state["seconds"])
        self.partial, self.complete = [str(name) for name in state["partial"]], bool(state["complete"])
        self.kept = (self.batches, self.complete)
        self.tally.go_on_from(*map(float, state["sums"]))


class Keeper:
    """Keeps training on `source` in a folder; without one it does nothing.

    monitor: the column of the history that the best epoch is judged by, None for the loss.
    Of the run, which may have begun before this call of `fit`: first, the number of epochs before it; best, its lowest cost,
    as `Monitor` has it; ended, whether all of its epochs are done. placed: whether the source itself has found its place again.
    """

    def __init__(
        self,
        trainer: "Trainer",
        source: Any,
        folder: Folder | None,
        every: int | None,
        monitor: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.trainer, self.source, self.folder, self.every, self.say = trainer, source, folder, every, say
        self.column = monitor
        self.first, self.best, self.ended, self.placed = trainer.epochs, math.inf, False, False
        self.signals = HeldSignals()

    def check(self, columns: Collection[str], **settings: Any) -> None:
        """Before anything is done: raise where nothing can be written or compared, StateError for what cannot be kept."""
        if self.folder is not None:
            default = "val_loss" if "val_loss" in columns else "loss"
            self.monitor = Monitor("fit", default if self.column is None else self.column)
            self.monitor.check(self.trainer, columns)
            other = None if self.monitor.column == default else self.monitor.column
            self.fingerprint = fingerprint(self.trainer, self.source, monitor=other, **settings)
            refuse_what_cannot_be_kept(self.trainer, self.source)
            self.folder.check()

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """Take up the newest checkpoint, or set those of another run aside, and let the callbacks begin.

        Returns the progress of the run that goes on; None where one begins.
        """
        trainer, kept = self.trainer, None if self.folder is None else self._open(self.folder, resume)
        progress = None if kept is None else self._restore(*kept)
        for callback in trainer.callbacks:
            callback.on_fit_begin(trainer)
        if kept is not None and progress is not None:
            restore_callbacks(trainer, *kept)
            trainer.stopped = progress["stopped"] or self._is_done()
        return progress

    def _open(self, folder: Folder, resume: bool) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest checkpoint of the run that goes on, refusing that of another; None where a run begins."""
        kept, left = folder.load() if resume else None, self.trainer.folders.get(folder.path.resolve())
        if kept is not None:
            self._refuse_another_run(folder, kept[1], left or {})
        elif resume:
            self.say(f"no checkpoint in {folder.path}: starting afresh")
        elif folder.files() and left is None:
            self.say(f"the checkpoints of another run in {folder.path} are now in {folder.set_aside()}")
        return kept

    def _refuse_another_run(self, folder: Folder, description: dict[str, Any], left: Print) -> None:
        with faults_of_the_file():
            kept, here = description["fingerprint"], known_to(description, self.fingerprint)
            refuse_others(kept, [description["now"], left], here, folder.path)
        if description["format"] == FORMAT:
            self.fingerprint = kept  # as the run began

    def _restore(self, arrays: Arrays, description: dict[str, Any]) -> dict[str, Any]:
        """Put back all but the callbacks' states."""
        progress = restore(self.trainer, self.source, arrays, description)
        with faults_of_the_file():
            self.first, self.best, self.ended = int(progress["first"]), float(progress["best"]), bool(progress["ended"])
            self.placed = description["source"] is not None and keeps_its_place(self.source)
        return progress

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM wait for the end of a step. Afterwards the trainer knows the folder, and how it was left."""
        if self.folder is None:
            yield
            return
        try:
            with self.signals:
                yield
        finally:
            self.trainer.folders[self.folder.path.resolve()] = changing(self.trainer)

    def after_step(self, counts: Counts) -> None:
        """Write a checkpoint where one is due; let a signal that waits take its course."""
        if self.signals.waiting is not None:
            self.save(counts)
            self.signals.let_through()
        elif self.every and self.trainer.steps % self.every == 0:
            self.save(counts)

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Write a checkpoint, and the model where it is the best."""
        if self.folder is None:
            return
        cost = self.monitor.cost(self.trainer, row)
        is_best = cost < self.best
        if is_best:
            self.best = cost
        self.save(best=is_best)
        self.signals.let_through()

    def after_run(self) -> None:
        """Write the last checkpoint, before callbacks give the model other weights: more epochs go on from these."""
        if not self.ended:
            self.ended = True
            self.save()

    def save(self, counts: Counts | None = None, best: bool = False) -> None:
        """Write a checkpoint. counts: of the epoch that is under way."""
        if self.folder is None:
            return
        if counts is not None:
            counts.mean_loss(self.trainer)  # nothing is kept that came after a bad loss
        progress = {
            "first": self.first,
            "best": self.best,
            "ended": self.ended,
            "stopped": self.trainer.stopped and not self._is_done(),
            "counts": None if counts is None else counts.state(),
        }
        kept, model = capture(self.trainer, self.source, progress, self.fingerprint), self.trainer.model
        self.folder.save(self.trainer.steps, *kept, best=model if best else None)
        if counts is not None:
            counts.kept = (counts.batches, counts.complete)

    def _is_done(self) -> bool:
        return any(callback.is_done for callback in self.trainer.callbacks)
