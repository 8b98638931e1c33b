"""Keepers of one call of `fit`: one that does nothing, and one that writes checkpoints and resumes from them.

Ctrl-C and SIGTERM wait for the end of a step, so that a checkpoint is written first.
"""

import math
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from nnlite.state import Arrays, faults_of_the_file, is_stateful
from nnlite.training.checkpoint import FORMAT, Folder, capture, known_to, refuse_what_cannot_be_kept, restore, restore_callbacks
from nnlite.training.counts import Counts
from nnlite.training.fingerprint import Print, changing, fingerprint_of, refuse_others
from nnlite.training.hooks import Monitor, Training


class Keeper:
    """Keeps nothing.

    first: the number of epochs before the run, which may have begun before this call of `fit`.
    placed: whether the source has restored its own position.
    """

    def __init__(self, trainer: Training) -> None:
        self.trainer, self.first, self.placed = trainer, trainer.epochs, False

    def check(self, columns: Collection[str], **settings: Any) -> None:
        """Before training starts: raise what would fail later."""

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """Let the callbacks begin. Returns the progress of a resumed run; None for a new one."""
        for callback in self.trainer.callbacks:
            callback.on_fit_begin(self.trainer)
        return None

    def keeping(self) -> AbstractContextManager[None]:
        """Around the epochs and the end of training."""
        return nullcontext()

    def after_step(self, counts: Counts) -> None:
        """Called after each step."""

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Called after each epoch, with its row in the history."""

    def after_run(self) -> None:
        """Called after the last epoch, before callbacks may change the weights: more epochs continue from these."""

    def keep(self, counts: Counts, together: bool = True) -> None:
        """Save the state in the middle of an epoch. together: whether all processes do so now."""


class Checkpoints(Keeper):
    """Keeps training on `source` in a folder: after each epoch, after `every` steps, before a signal ends it.

    monitor: the column of the history that the best epoch is judged by, None for the loss.
    left: by folder, the values that may change in training, as earlier calls of `fit` left them.
    Of the run: best, its lowest cost, as `Monitor` defines it; ended, whether all of its epochs are done.
    """

    def __init__(
        self,
        trainer: Training,
        source: Any,
        folder: Folder,
        left: dict[Path, Print],
        every: int | None,
        monitor: str | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(trainer)
        self.source, self.folder, self.every, self.column, self.say = source, folder, every, monitor, say
        self.left, self.place = left, folder.path.resolve()
        self.best, self.ended = math.inf, False
        self.signals = HeldSignals()

    def check(self, columns: Collection[str], **settings: Any) -> None:
        """Raise if the folder cannot be written or the run not compared; StateError for what cannot be stored."""
        default = "val_loss" if "val_loss" in columns else "loss"
        self.monitor = Monitor("fit", default if self.column is None else self.column)
        self.monitor.check(self.trainer, columns)
        other = None if self.monitor.column == default else self.monitor.column
        refuse_what_cannot_be_kept(self.trainer, self.source)
        if self.trainer.ranks.is_first:  # which alone reads all data, to hash them
            with self.trainer.ranks.working():
                self.fingerprint = fingerprint_of(self.trainer, self.source, monitor=other, **settings)
            self.folder.check()

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """Resume from the newest checkpoint, or set those of another run aside, and let the callbacks begin."""
        kept = self.trainer.ranks.first_does(lambda: self._open(resume))
        progress = None if kept is None else self._restore(*kept)
        super().begin(resume)
        if kept is not None and progress is not None:
            restore_callbacks(self.trainer, *kept)
            self.trainer.stopped = progress["stopped"] or self._is_done()
            self.say(f"going on from step {self.trainer.steps} (epoch {self.trainer.epochs + (not self.ended)})")
        return progress

    def _open(self, resume: bool) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest checkpoint of this run, refusing that of another; None for a new run."""
        folder, left = self.folder, self.left.get(self.place)
        kept = folder.load() if resume else None
        if kept is not None:
            self._refuse_another_run(kept[1], left or {})
        elif resume:
            self.say(f"no checkpoint in {folder.path}: starting afresh")
        elif folder.files() and left is None:
            self.say(f"the checkpoints of another run in {folder.path} are now in {folder.set_aside()}")
        return kept

    @faults_of_the_file()
    def _refuse_another_run(self, description: dict[str, Any], left: Print) -> None:
        kept, here = description["fingerprint"], known_to(description, self.fingerprint)
        refuse_others(kept, [description["now"], left], here, self.folder.path)
        if description["format"] == FORMAT:
            self.fingerprint = kept  # as the run began

    @faults_of_the_file()
    def _restore(self, arrays: Arrays, description: dict[str, Any]) -> dict[str, Any]:
        """Restore all except the callbacks' states."""
        progress = restore(self.trainer, self.source, arrays, description)
        self.first, self.best, self.ended = int(progress["first"]), float(progress["best"]), bool(progress["ended"])
        self.placed = description["source"] is not None and is_stateful(self.source)
        return progress

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Delay Ctrl-C and SIGTERM to the end of a step; afterwards record how this call left the folder."""
        try:
            with self.signals:
                yield
        finally:
            self.left[self.place] = changing(self.trainer)

    def after_step(self, counts: Counts) -> None:
        """Write a checkpoint if one is due; deliver a waiting signal."""
        if self.trainer.ranks.any_asks(self.signals.waiting is not None):
            self._save(counts)
            self.signals.let_through()
        elif self.every and self.trainer.steps % self.every == 0:
            self._save(counts)

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Write a checkpoint, and the model if it is the best."""
        cost = self.monitor.cost(self.trainer, row)
        is_best = cost < self.best
        self.best, self.ended = min(self.best, cost), False
        self._save(best=is_best)
        self.signals.let_through()

    def after_run(self) -> None:
        if not self.ended:
            self.ended = True
            self._save()

    def keep(self, counts: Counts, together: bool = True) -> None:
        if counts.kept != (counts.batches, counts.complete):
            self._save(counts, together=together)

    def _save(self, counts: Counts | None = None, best: bool = False, together: bool = True) -> None:
        """Write a checkpoint. counts: those of the epoch in progress. together: whether all processes do so now."""
        if counts is not None:
            counts.mean_loss()  # raises after a bad loss, so that nothing after it is saved
        progress = {
            "first": self.first,
            "best": self.best,
            "ended": self.ended and counts is None,
            "stopped": self.trainer.stopped and not self._is_done(),
            "counts": None if counts is None else counts.state(),
        }
        self._write(progress, best, together)
        if counts is not None:
            counts.kept = (counts.batches, counts.complete)

    def _write(self, progress: dict[str, Any], best: bool, together: bool) -> None:
        """By the first of several processes, whose parameters must be equal."""
        trainer, ranks = self.trainer, self.trainer.ranks

        def write() -> None:
            kept = capture(trainer, self.source, progress, self.fingerprint)
            self.folder.save(trainer.steps, *kept, best=trainer.model if best else None)

        if together:
            ranks.compare(trainer.model)
            ranks.first_does(write)
        elif ranks.is_first:
            write()

    def _is_done(self) -> bool:
        return any(callback.is_done for callback in self.trainer.callbacks)


class HeldSignals:
    """In a `with` block, delay Ctrl-C and SIGTERM until `let_through`; a second one and the end of the block do not wait.

    Ignored signals stay ignored. Does nothing on threads other than the main one, which alone receives signals.
    """

    def __init__(self) -> None:
        self.waiting: int | None = None
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (int(signal.SIGINT), int(signal.SIGTERM)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    self.usual[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        if self.waiting is not None:
            signal.raise_signal(self.waiting)

    def _hold(self, number: int, frame: Any) -> None:
        is_second, self.waiting = self.waiting is not None, number
        if is_second:
            self.let_through()

    def let_through(self) -> None:
        """Deliver the waiting signal. That ends training, unless a custom handler returns."""
        number, self.waiting = self.waiting, None
        if number is not None:
            signal.signal(number, self.usual[number])
            signal.raise_signal(number)
            signal.signal(number, self._hold)
