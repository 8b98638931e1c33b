"""The trainer: a model, a loss, an optimiser, metrics and callbacks; the loop that it runs is in `loop.py`."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnlite.arguments import as_call, choice, flag, shortened, whole
from nnlite.engine.exchange import Communicator
from nnlite.errors import DataError
from nnlite.losses import Loss, NoWeightError
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.optim import Optimizer
from nnlite.optim.groups import ParameterGroups
from nnlite.training.ahead import read_ahead
from nnlite.training.check import check_fit, check_parts, listed
from nnlite.training.checkpoint import Folder
from nnlite.training.counts import Counts
from nnlite.training.fingerprint import Print, refuse_other_ranks
from nnlite.training.history import History
from nnlite.training.hooks import Callback
from nnlite.training.keeper import Checkpoints, Keeper
from nnlite.training.loop import Loop
from nnlite.training.progress import say
from nnlite.training.ranks import Ranks
from nnlite.training.sources import Epochs, apart, as_source, batches, gives_once, inputs, is_dataset, on_device

_INFERENCE_BATCH = 1024


class Trainer:
    """Trains a model: `fit`, `evaluate`, `predict`.

    loss: such as `nn.CrossEntropy()`.   optimizer: such as `nn.Adam()`, or `nn.ParameterGroups`.
    metrics: such as `nn.Accuracy()`, each with a unique name; they are streamed over the outputs of training and of
    validation. A vector, such as that of `nn.Recall(average=None)`, has a column in the history for each value, `recall_0`,
    `recall_1`, ...; a matrix, such as that of `nn.ConfusionMatrix()`, has none: `evaluate` returns it.
    callbacks: called around training, see `nn.Callback`.
    communicator: such as `nn.distributed.mpi()`: `fit` shares each batch, and the validation data, among the processes; see
    docs/distributed.md.
    Raises ValueError for a part of the wrong type, for a metric's name that is taken, and for a model that ends with
    probabilities where the loss takes logits.
    `epochs` and `steps` are counted over all calls of `fit`; `history` has one row an epoch.
    """

    __repr__ = as_call

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer | ParameterGroups,
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
        communicator: Communicator | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.metrics, self.callbacks = listed("metrics", metrics), listed("callbacks", callbacks)
        self.communicator = communicator
        check_parts(self)
        self.ranks = Ranks(communicator)
        self.callbacks = [callback for callback in self.callbacks if self.ranks.is_first or not callback.only_first]
        self.epochs = self.steps = 0
        self.history = History()
        self.stopped = self.is_counting = False  # is_counting: the metrics count the batches of an epoch
        self.last_loss: Any = math.nan  # of the last step, on the model's device
        self.checkpoints: Path | None = None  # the folder of this call of `fit`
        # By folder of checkpoints: the values that may change in training, as a call of `fit` left them.
        self.folders: dict[Path, Print] = {}

    def fit(
        self,
        data: Any,
        epochs: int = 1,
        batch_size: int = 32,
        validation: Any = None,
        shuffle: bool = True,
        seed: int = 0,
        progress: bool = True,
        nonfinite: Literal["raise", "skip"] = "raise",
        checkpoint: str | PathLike[str] | None = None,
        every: int | None = None,
        keep: int = 2,
        resume: bool = False,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        monitor: str | None = None,
    ) -> History:
        """Train for `epochs` more epochs and return the history of these and all earlier epochs.

        data: (x, t), (x, t, w) with sample weights, a `nn.data.Dataset`, or any iterable of batches (x, t) or (x, t, w) that
        can be iterated once an epoch; batches by number, `data[0]` to `data[len(data) - 1]`, work too. x, t and w: arrays,
        lists, data frames. Memory-mapped arrays and other samples in files stay there; a thread reads batches ahead.
        validation: the same kinds, or a share of the samples, such as 0.1: that many are drawn at random, by the seed,
        and not trained on. It gives the columns val_loss, val_<metric>.
        batch_size, shuffle, seed: for arrays and data sets; the order follows from (seed, epoch). The short last batch is kept.
        steps_per_epoch: number of batches in an epoch; the next epoch continues after them, and data that end start again. For
        endless data, and for an iterator that must last for several epochs. Default: an epoch is all data, once.
        validation_steps: number of batches to validate on; for endless data, and an iterator that continues each epoch.
        progress: a bar on a terminal and in a notebook, a line an epoch elsewhere; while the length of an epoch of an iterable
        is unknown, also lines after 1, 2, 4, 8, ... seconds.
        nonfinite: what to do if the loss of a step is NaN or infinite: "raise" NonFiniteError, which says where it comes
        from, or "skip" the step, with a warning. Parameters and statistics stay as they were before it.
        What would fail later is refused before the first step: names that the history will not have, targets and validation
        that do not fit (DataError, ShapeError), two callbacks that both set the final weights (ValueError).

        checkpoint: a folder; after each epoch, and after every `every` steps, all that training needs is written to it.
        The last `keep` of them are kept, and `best.safetensors`, which `nn.load` reads: the model after the best epoch. Without
        `resume`, those of an earlier run are moved to a subfolder `earlier-1`. Ctrl-C and SIGTERM finish the step and write
        a checkpoint before they end the process, or before a custom handler is called: if that returns, training
        continues. Exceptions leave a checkpoint of the last complete step, except NonFiniteError. Raises FileError for a
        folder that cannot be written, StateError for a state that cannot be stored; see docs/checkpoints.md.
        monitor: the column of the history that decides which epoch is the best, such as "val_accuracy"; the metric says whether
        larger is better. Default: "val_loss", or "loss" without validation. Raises DataError for a name that the history will
        not have, ValueError if no metric says what is better.
        resume: continue from the newest checkpoint, in the middle of an epoch if need be, until `epochs` are done in all,
        with the same bits as without the interruption; without a checkpoint, start afresh. Raises StateError, naming the
        difference, for those of another model, optimiser, data set or setting, and FileError if all are damaged. Warns if the
        data are an iterable without state() and load_state(state): nothing checks that its batches are the same as before.

        A batch whose weights are all zero is skipped: no step is taken. Raises DataError for data that do not fit.
        """
        source = as_source(data)
        choice("nonfinite", nonfinite, "raise", "skip")
        for name, value in (("shuffle", shuffle), ("progress", progress), ("resume", resume)):
            flag(name, value)
        epochs, batch_size = int(whole("epochs", epochs)), int(whole("batch_size", batch_size, 1))
        seed = int(whole("seed", seed))
        if checkpoint is None and (resume or every is not None or monitor is not None):
            raise ValueError("resume, every and monitor need checkpoint=, the folder of the checkpoints")
        every = None if every is None else int(whole("every", every, 1))
        steps = None if steps_per_epoch is None else int(whole("steps_per_epoch", steps_per_epoch, 1))
        if epochs > 1 and steps is None and gives_once(source):
            raise DataError(
                f"the training data, a {type(source).__name__}, can be iterated once: for {epochs} epochs give "
                "steps_per_epoch=, or an iterable that begins anew, such as a list"
            )
        validation_steps = None if validation_steps is None else int(whole("validation_steps", validation_steps, 1))
        self.stopped, self.checkpoints = False, None if checkpoint is None else Path(checkpoint)
        order: dict[str, Any] = {"batch_size": batch_size, "shuffle": bool(shuffle), "seed": seed}
        source, held_out, places = apart(source, validation, seed)
        keeper, progress, backend = Keeper(self), progress and self.ranks.is_first, self.model.backend
        if checkpoint is not None:
            tell = say if progress else lambda text: None
            keeper = Checkpoints(self, source, Folder(checkpoint, keep), self.folders, every, monitor, tell)

        def check() -> Any:
            self.ranks.check(self.model, batch_size)
            columns, checked = check_fit(self, source, held_out, epochs, goes_on=validation_steps is not None)
            keeper.check(columns, steps_per_epoch=steps, **order)
            return on_device(checked, backend)

        checked = self.ranks.all_do(check)
        samples = len(checked) if hasattr(checked, "__len__") else None
        validated = None if checked is None else {"samples": samples, "steps": validation_steps}
        kept_as = None if checkpoint is None else {"every": every, "resume": bool(resume)}
        settings = {"epochs": epochs, "steps_per_epoch": steps, "validation": validated, "checkpoint": kept_as}
        refuse_other_ranks(self, source, nonfinite=nonfinite, **settings, **order)
        kept = keeper.begin(resume)
        part = self.ranks.part_for(self.model)
        feed = Epochs(on_device(source, backend), steps, keeper.first, keeper.placed, places, part, **order)
        loop = Loop(self, feed, keeper, checked, validation_steps, nonfinite == "skip", progress)
        with self.ranks.training(self.model):
            self._train(loop, keeper.first + epochs, kept)
        return self.history

    def _train(self, loop: Loop, last: int, kept: dict[str, Any] | None) -> None:
        """Train until `last` epochs are done, counted from the start of the run. kept: the progress of a resumed run."""
        counts = None
        if kept is not None and kept["counts"] is not None:
            counts = Counts(self, loop.skip)
            counts.load_state(kept["counts"])
        if kept is not None and self.epochs < last:
            self._say_what_is_left(loop, counts)
        self.ranks.begin(self.model)
        if self.ranks.size > 1:
            processes = self.ranks.introduce()
            if loop.shows:
                say(processes)
        with loop.keeper.keeping(), closing(loop.feed):
            loop.run(last, counts)
            loop.keeper.after_run()
            for callback in self.callbacks:
                callback.on_fit_end(self)

    def _say_what_is_left(self, loop: Loop, counts: Counts | None) -> None:
        """On resuming: say that nothing is left to do, or warn that the batches cannot be compared."""
        feed = loop.feed
        if self.stopped and counts is None:
            by = [shortened(callback) for callback in self.callbacks if callback.is_done] or ["trainer.stop()"]
            if loop.shows:
                say(f"nothing is left to do: training was stopped after epoch {self.epochs} by {by[0]}")
        elif not is_dataset(feed.source) and not feed.placed:
            skipped = feed.done(self.epochs, 0 if counts is None or counts.complete else counts.batches)
            warnings.warn(
                f"training continues with batches of {shortened(type(feed.source))}: nothing checks that they are those "
                "of before"
                + f", the first {skipped} are skipped by iterating over them" * bool(skipped)
                + "; give it state() and load_state(state), then it continues from its own position",
                UserWarning,
                stacklevel=4,
            )

    def evaluate(self, data: Any, batch_size: int = _INFERENCE_BATCH, steps: int | None = None) -> dict[str, Any]:
        """The loss and the metrics over all samples, by inference: {"loss": ..., "accuracy": ...}.

        data: as `fit` takes them; an iterator is read to its end.  steps: number of batches (default: all).
        The metrics of an epoch in progress are not disturbed.
        """
        source, backend = as_source(data), self.model.backend
        batch_size, tally = int(whole("batch_size", batch_size, 1)), backend.tally()
        steps = None if steps is None else int(whole("steps", steps, 1))
        x = None
        part = self.ranks.part_of_outputs(self.model)
        given = itertools.islice(batches(on_device(source, backend), batch_size, part=part), steps)
        with self._metrics_anew(), read_ahead(source, given) as read:
            for x, t, w in self.ranks.in_step(read) if self.ranks.sharing and not is_dataset(source) else read:
                z = self.ranks.outputs(self.model, x, t)
                with suppress(NoWeightError):
                    prepared = self.loss.prepare(z.shape, z.dtype, t, w, backend)
                    tally.add(self.loss.of_rows(backend, z, *prepared)[0], prepared[2])
                for metric in self.metrics:
                    metric.update(z, t, w)
            if not tally.count:
                nothing = "the data gave no batch: an iterable must begin anew each time"
                raise DataError(f"nothing to evaluate: {nothing if x is None else 'the weights of all samples are zero'}")
            return {"loss": tally.read()[0], **self.results()}

    @contextmanager
    def _metrics_anew(self) -> Iterator[None]:
        """Reset the metrics for the block; those of an epoch in progress continue from their states afterwards."""
        states = copy.deepcopy([metric.state() for metric in self.metrics]) if self.is_counting else None
        for metric in self.metrics:
            metric.reset()
        try:
            yield
        finally:
            for metric, state in zip(self.metrics, states or (), strict=states is not None):
                metric.reset()
                metric.load_state(state)

    def predict(self, x: Any, batch_size: int = _INFERENCE_BATCH, augment: Iterable[Callable[[Any], Any]] = ()) -> Any:
        """The model's outputs for x (N, ...) as a host array, or for the x of any data that `fit` and `evaluate` take.

        A tuple is (x, t) or (x, t, w); targets and weights are ignored. An iterable gives batches x, (x, t) or (x, t, w); one
        that is an iterator is read to its end. A list is x itself, unless it is nested deeper than x has axes: then it is one
        of batches. Raises DataError for data that do not fit.
        augment: views of a batch, such as `nn.data.views()`; the outputs for them are averaged (test-time averaging).
        """
        batch_size, augment = int(whole("batch_size", batch_size, 1)), list(augment)
        with read_ahead(x, inputs(x, batch_size, len(self.model.in_shape))) as read:
            parts = [self._predict(batch, augment) for batch in read]
        if not parts:
            raise DataError("there is nothing to predict: x is empty")
        return np.concatenate([self.model.backend.to_host(part) for part in parts])

    def _predict(self, x: Any, augment: list[Callable[[Any], Any]]) -> Any:
        if not augment:
            return self.model(x)
        return sum(self.model(view(x)) for view in augment) / len(augment)

    def loss_and_grad(self, x: Any, t: Any, w: Any, z: Any) -> tuple[Any, float]:
        """The loss of a batch, and what it was divided by; fills the model's `grads`, and z, if given, with the outputs.

        A subclass may fill them otherwise.
        """
        x, t, w, total = self.model.prepare_batch(x, t, self.loss, w, z)
        return self.model.loss_and_grad(x, t, self.loss, w, z, total=total), total

    def stop(self) -> None:
        """End training after this epoch."""
        self.stopped = True

    def greater_is_better(self, column: str) -> bool | None:
        """Whether more is better in this column of the history; None if unknown."""
        said: dict[str, bool | None] = {"loss": False}
        for metric in self.metrics:
            said |= dict.fromkeys(metric.columns(self.model.out_shape), metric.greater_is_better)
        return said.get(column, said.get(column.removeprefix("val_")))

    def results(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The results of the metrics since their `reset`, except those named in `without`."""
        return {metric.name: metric.result() for metric in self.metrics if metric.name not in without}
