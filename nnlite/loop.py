"""One call of `Trainer.fit`: epochs of batches, interrupted and taken up again where checkpoints are kept."""

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

from nnlite.backend import Tally
from nnlite.checkpoint import Folder, HeldSignals, capture, fingerprint, refuse_others, restore
from nnlite.debug import locate
from nnlite.errors import DataError, NonFiniteError
from nnlite.history import numbers
from nnlite.losses import Loss, NoWeightError
from nnlite.progress import Progress, say, show
from nnlite.sources import Epochs, on_device

if TYPE_CHECKING:
    from nnlite.train import Trainer


class Counts:
    """What an epoch in the making has counted. first: the step that the tally began with."""

    def __init__(self, tally: Tally, first: int) -> None:
        self.tally, self.first = tally, first
        self.batches = self.samples = 0
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"batches": self.batches, "samples": self.samples, "seconds": self.seconds, "sums": self.tally.sums_so_far()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.batches, self.samples, self.seconds = state["batches"], state["samples"], state["seconds"]
        self.tally.go_on_from(*state["sums"])


class Weighed(Loss):
    """The same loss; `weight`: what it divided the batch by, which is what that batch counts for in the mean of an epoch."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, z: Any, t: Any, sample_weight: Any = None, total: float | None = None) -> tuple[float, Any]:
        return self.loss(z, t, sample_weight, total)

    def prepare(self, *batch: Any) -> tuple[Any, Any, float]:
        prepared = self.loss.prepare(*batch)
        self.weight = prepared[2]
        return prepared


class Fit:
    """Trains on `source`, checks on `held_out`, both data sets or iterables of batches, as `Trainer.fit` was asked to."""

    def __init__(
        self,
        trainer: "Trainer",
        source: Any,
        held_out: Any,
        progress: bool,
        nonfinite: str,
        folder: Folder | None = None,
        every: int | None = None,
        steps_per_epoch: int | None = None,
        **order: Any,
    ) -> None:
        self.trainer, self.progress, self.nonfinite = trainer, progress, nonfinite
        self.folder, self.every = folder, every
        self.fingerprint = fingerprint(trainer, source, steps_per_epoch=steps_per_epoch, **order) if folder else {}
        self.feed, self.held_out = Epochs(self._on_device(source), steps_per_epoch, **order), self._on_device(held_out)
        self.first, self.best, self.ended = trainer.epochs, math.inf, False
        self.signals = HeldSignals()

    def run(self, epochs: int, resume: bool) -> None:
        """Until `epochs` epochs are done since the first of them began."""
        if self.folder is not None and not resume:
            self._set_others_aside(self.folder)
        for callback in self.trainer.callbacks:
            callback.on_fit_begin(self.trainer)
        counts = self._resume() if resume else None
        if self.folder is None:
            self._run(epochs, counts)
        else:
            self.trainer.folders.add(self.folder.path.resolve())
            with self.signals:
                self._run(epochs, counts)

    def _run(self, epochs: int, counts: Counts | None) -> None:
        trainer = self.trainer
        # An epoch that was interrupted after `stop` is brought to its end.
        while trainer.epochs < self.first + epochs and (counts is not None or not trainer.stopped):
            self.ended = False
            self._epoch(counts)
            counts = None
        if not self.ended:
            self.ended = True
            self._checkpoint()  # before callbacks set average or best weights: more epochs go on from the last ones
        for callback in trainer.callbacks:
            callback.on_fit_end(trainer)

    # ---- an epoch

    def _epoch(self, counts: Counts | None) -> None:
        trainer = self.trainer
        if counts is None:
            counts = self._new_counts()
            for metric in trainer.metrics:
                metric.reset()
        bar = Progress()
        if self.progress:
            bar = show(trainer.epochs + 1, *self.feed.total(), counts.batches, counts.samples)
        try:
            self._steps(counts, bar)
        except BaseException:
            bar.close()
            raise
        if not counts.samples:
            raise DataError("the training data gave no batch: an iterable must give its batches anew each epoch")
        loss = self._mean_loss(counts)
        if math.isnan(loss) and not counts.tally.count:
            raise DataError("nothing to train on: the weights of all samples are zero")
        if math.isnan(loss):
            raise NonFiniteError(f"every step of epoch {trainer.epochs + 1} was skipped: no loss was finite")
        row = {"loss": loss, **numbers(trainer.results())}
        if self.held_out is not None:
            row |= {f"val_{name}": value for name, value in numbers(trainer.evaluate(self.held_out)).items()}
        row |= {"seconds": counts.seconds, "samples_per_second": counts.samples / counts.seconds}
        trainer.epochs += 1
        trainer.history.append(row)
        bar.end(row)
        for callback in trainer.callbacks:
            callback.on_epoch_end(trainer, row)
        loss = row.get("val_loss", loss)
        is_best = loss < self.best
        if is_best:
            self.best = loss
        self._checkpoint(best=is_best)
        self.signals.let_through()

    def _steps(self, counts: Counts, bar: Progress) -> None:
        """The steps that are left of an epoch."""
        trainer, start, before = self.trainer, time.perf_counter(), counts.seconds
        for x, t, w in self.feed.epoch(trainer.epochs, counts.batches, self.first):
            self._step(x, t, w, counts)
            counts.batches += 1
            counts.samples += len(x)
            counts.seconds = before + time.perf_counter() - start
            bar.advance(len(x), lambda: self._shown(counts))
            if self.signals.waiting is not None:
                self._checkpoint(counts)
                self.signals.let_through()
            elif self.every and trainer.steps % self.every == 0:
                self._checkpoint(counts)
        self._mean_loss(counts)  # waits for a device
        counts.seconds = before + time.perf_counter() - start

    def _step(self, x: Any, t: Any, w: Any, counts: Counts) -> None:
        trainer, model, tally = self.trainer, self.trainer.model, counts.tally
        z = model.backend.xp.empty((len(x), *model.out_shape), model.dtype) if trainer.metrics else None
        criterion = Weighed(trainer.loss)
        try:
            loss = model.loss_and_grad(x, t, criterion, sample_weight=w, out=z)
        except NoWeightError:
            return
        tally.add(loss, criterion.weight)
        if tally.is_bad:
            self._refuse(loss, x)
            return
        if tally.halted is None:
            trainer.optimizer.step(model)
        else:  # the device stops by itself after a bad loss; that is found out when the mean is asked for
            trainer.optimizer.step(model, halted=tally.halted)
        trainer.steps += 1
        trainer.update_metrics(z, t, w)
        for callback in trainer.callbacks:
            callback.on_step_end(trainer)

    def _refuse(self, loss: float, x: Any) -> None:
        trainer = self.trainer
        text = f"the loss is {loss} at step {trainer.steps} (epoch {trainer.epochs + 1}): {locate(trainer.model, x)}"
        if self.nonfinite == "raise":
            raise NonFiniteError(text)
        warnings.warn(f"step skipped: {text}", RuntimeWarning, stacklevel=2)

    def _mean_loss(self, counts: Counts) -> float:
        """The mean loss of the epoch so far; raises NonFiniteError where one was not finite."""
        loss, bad = counts.tally.read()
        if bad:
            trainer = self.trainer
            trainer.steps = counts.first + bad - 1
            raise NonFiniteError(
                f"the loss is not finite ({loss}) at step {trainer.steps} (epoch {trainer.epochs + 1}): "
                "look for NaN in the data, or lower the learning rate"
            )
        return loss

    def _shown(self, counts: Counts) -> dict[str, float]:
        """What the bar shows; there may be nothing to show yet."""
        loss = self._mean_loss(counts)
        return {} if math.isnan(loss) else {"loss": loss, **numbers(self.trainer.results())}

    def _new_counts(self) -> Counts:
        return Counts(self.trainer.model.backend.tally(skip=self.nonfinite == "skip"), self.trainer.steps)

    def _on_device(self, source: Any) -> Any:
        return on_device(source, self.trainer.model.backend)

    # ---- checkpoints

    def _set_others_aside(self, folder: Folder) -> None:
        if folder.files() and folder.path.resolve() not in self.trainer.folders:
            self._say(f"the checkpoints of another run in {folder.path} are now in {folder.set_aside()}")

    def _checkpoint(self, counts: Counts | None = None, best: bool = False) -> None:
        if self.folder is None:
            return
        if counts is not None:
            self._mean_loss(counts)  # nothing is kept that came after a bad loss
        progress = {
            "first": self.first,
            "best": self.best,
            "ended": self.ended,
            "stopped": self.trainer.stopped,
            "counts": None if counts is None else counts.state(),
        }
        kept, model = capture(self.trainer, progress, self.fingerprint), self.trainer.model
        self.folder.save(self.trainer.steps, *kept, best=model if best else None)

    def _resume(self) -> Counts | None:
        """Take up the newest checkpoint; what an epoch had counted, where it stands in the middle of one."""
        assert self.folder is not None
        kept, trainer = self.folder.load(), self.trainer
        if kept is None:
            self._say(f"no checkpoint in {self.folder.path}: starting afresh")
            return None
        refuse_others(kept[1], self.fingerprint, self.folder.path)
        progress = restore(trainer, *kept)
        self.fingerprint = kept[1]["fingerprint"]
        self.first, self.best, self.ended = progress["first"], progress["best"], progress["ended"]
        trainer.stopped = progress["stopped"]
        self._say(f"going on from step {trainer.steps} (epoch {trainer.epochs + (not self.ended)})")
        if progress["counts"] is None:
            return None
        counts = self._new_counts()
        counts.load_state(progress["counts"])
        return counts

    def _say(self, text: str) -> None:
        if self.progress:
            say(text)
