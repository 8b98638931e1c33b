"""One call of `Trainer.fit`: epochs of batches, interrupted and taken up again where checkpoints are kept."""

import itertools
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nnlite.backend import Tally
from nnlite.check import check_callbacks
from nnlite.checkpoint import Folder, capture, restore
from nnlite.debug import locate
from nnlite.errors import DataError, NonFiniteError
from nnlite.fingerprint import fingerprint, refuse_others
from nnlite.history import numbers
from nnlite.losses import Loss, NoWeightError
from nnlite.signals import HeldSignals

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
        **settings: Any,
    ) -> None:
        self.trainer, self.progress, self.nonfinite, self.settings = trainer, progress, nonfinite, settings
        self.folder, self.every = folder, every
        self.fingerprint = fingerprint(trainer, source, **settings) if folder else {}
        self.source, self.held_out = self._on_device(source), self._on_device(held_out)
        self.first, self.best, self.ended = trainer.epochs, math.inf, False
        self.signals = HeldSignals()

    def run(self, epochs: int, resume: bool) -> None:
        """Until `epochs` epochs are done since the first of them began."""
        check_callbacks(self.trainer, self.held_out is not None)
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
        bar = _Progress(self.progress, trainer.epochs)
        bar.begin(len(self.source) if is_dataset(self.source) else None, counts.samples)
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

    def _steps(self, counts: Counts, bar: "_Progress") -> None:
        """The steps that are left of an epoch."""
        trainer, start, before = self.trainer, time.perf_counter(), counts.seconds
        settings = self.settings | {"epoch": trainer.epochs, "start": counts.batches}
        for x, t, w in batches(self.source, **settings):
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
            print(text, flush=True)


class _Progress:
    """The live bar of one epoch, or a line at its end where the output is no terminal."""

    def __init__(self, wanted: bool, done: int) -> None:
        self.wanted, self.live = wanted, wanted and sys.stderr.isatty()
        self.title = f"epoch {done + 1}"
        self.bar: Any = None
        self.shown = 0.0

    def begin(self, samples: int | None, done: int) -> None:
        if self.live:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=samples, initial=done, desc=self.title, unit="sample", unit_scale=False, leave=True)

    def advance(self, samples: int, values: Any) -> None:
        if self.bar is None:
            return
        self.bar.update(samples)
        if (now := time.monotonic()) - self.shown > 0.2:
            self.shown = now
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in values().items()}, refresh=False)

    def close(self) -> None:
        """The epoch ends in its middle."""
        if self.bar is not None:
            self.bar.close()

    def end(self, row: dict[str, float]) -> None:
        text = {name: f"{v:.4f}" for name, v in row.items() if isinstance(v, float) and "second" not in name}
        if self.bar is not None:
            self.bar.set_postfix(text)
            self.bar.close()
        elif self.wanted:
            rest = "  ".join(f"{name} {value}" for name, value in text.items())
            print(f"{self.title}  {rest}  {row['samples_per_second']:,.0f} samples/s", flush=True)


def as_source(data: Any) -> Any:
    """Arrays as a Dataset; data sets and iterables of batches as they are."""
    if is_dataset(data):
        return data
    if isinstance(data, tuple):
        if len(data) not in (2, 3):
            raise DataError(f"data must be (x, t) or (x, t, weights), got a tuple of {len(data)}")
        from nnlite.data import Dataset

        return Dataset(data[0], data[1], weights=data[2] if len(data) == 3 else None)
    if hasattr(data, "ndim"):
        raise DataError("inputs and targets are given as one tuple: (x, t)")
    if not isinstance(data, Iterable):
        raise DataError(f"data must be (x, t), a nn.data.Dataset or an iterable of batches, not {type(data).__name__}")
    return data


def is_dataset(data: Any) -> bool:
    """A `nn.data.Dataset`, or whatever gives seeded batches as it does."""
    return callable(getattr(data, "batches", None))


def on_device(source: Any, backend: Any) -> Any:
    """A data set in the memory of the device, where that has room; else as it is."""
    fits = backend.device != "cpu" and hasattr(source, "on") and backend.has_room(source.nbytes)
    return source.on(backend) if fits else source


def batches(
    source: Any, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = False, start: int = 0
) -> Iterator[tuple[Any, Any, Any]]:
    """Batches (x, t, w), w None where there are no weights, from batch `start` on."""
    if is_dataset(source):
        given = source.batches(batch_size, epoch=epoch, seed=seed, shuffle=shuffle, start=start)
    else:
        given = itertools.islice(source, start, None)
    for batch in given:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise DataError(f"a batch must be (x, t) or (x, t, weights), got {type(batch).__name__}")
        x, t, w = itertools.islice(itertools.chain(batch, [None]), 3)
        yield x, t, w
