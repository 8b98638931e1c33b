"""The trainer: a model, a loss, an optimiser, metrics and callbacks; what it does in an epoch stands in `loop.py`."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nnlite.arguments import choice, flag, whole
from nnlite.callbacks import Callback
from nnlite.checkpoint import Folder
from nnlite.errors import DataError
from nnlite.history import History
from nnlite.loop import Fit, as_source, batches, on_device
from nnlite.losses import Loss, NoWeightError
from nnlite.metrics import Metric
from nnlite.model import Sequential

if TYPE_CHECKING:
    from nnlite.optim import Optimizer, ParameterGroups

_INFERENCE_BATCH = 1024


class Trainer:
    """Trains a model: `fit`, `evaluate`, `predict`.

    loss: such as `nn.CrossEntropy()`.   optimizer: such as `nn.Adam()`, or `nn.ParameterGroups`.
    metrics: such as `nn.Accuracy()`, each with a name of its own; they are streamed over the outputs of training and of
    validation. Those whose result is no number, such as `nn.ConfusionMatrix()`, are given by `evaluate`, the history has no
    column of them. Raises ValueError for what is no metric and for a name that is taken.
    callbacks: called around training, see `nn.Callback`.
    `epochs` and `steps` count what was done, over all calls of `fit`; `history` has one row an epoch.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: "Optimizer | ParameterGroups",
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.metrics, self.callbacks = list(metrics), list(callbacks)
        self._check_metrics()
        self.epochs = self.steps = 0
        self.history = History()
        self.stopped = False
        self.folders: set[Path] = set()  # where its checkpoints lie

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
    ) -> History:
        """Train for `epochs` more epochs and return the history, of these and of earlier calls.

        data: (x, t), (x, t, w) with sample weights, a `nn.data.Dataset`, or any iterable of batches (x, t) or (x, t, w) that
        can be gone through once an epoch. validation: the same kinds; gives the columns val_loss, val_<metric>.
        batch_size, shuffle, seed: for arrays and data sets; the order follows from (seed, epoch). The short last batch is kept.
        progress: a bar on a terminal, a line an epoch elsewhere.
        nonfinite: what to do where the loss of a step is NaN or infinite: "raise" NonFiniteError, which says where it comes
        from, or "skip" the step, with a warning. Parameters and statistics are then those before it.

        checkpoint: a folder; after each epoch, and after every `every` steps, all that training needs goes into a file there.
        The last `keep` of them stay, and `best.safetensors`, which `nn.load` reads: the model after the epoch with the lowest
        validation loss. Those of another run, which `resume` would go on with, are moved to a folder `earlier-1` inside. Ctrl-C
        and SIGTERM then finish the step and write one before they end the process, or before a handler of your own is called:
        if that returns, training goes on.
        resume: go on from the newest, in the middle of an epoch if need be, until `epochs` epochs are done in all, to the same
        bits as without the interruption; without any checkpoint start afresh. Raises StateError, naming the difference, for
        those of another model, optimiser, data set or setting, and FileError where all are damaged.

        A batch whose weights are all zero is left out: no step is made. Raises DataError for data that do not fit.
        """
        source, held_out = as_source(data), None if validation is None else as_source(validation)
        choice("nonfinite", nonfinite, "raise", "skip")
        for name, value in (("shuffle", shuffle), ("progress", progress), ("resume", resume)):
            flag(name, value)
        epochs, batch_size = int(whole("epochs", epochs)), int(whole("batch_size", batch_size, 1))
        seed = int(whole("seed", seed))
        if checkpoint is None and (resume or every is not None):
            raise ValueError("resume and every need checkpoint=, the folder of the checkpoints")
        every = None if every is None else int(whole("every", every, 1))
        self.stopped = False
        folder = None if checkpoint is None else Folder(checkpoint, keep)
        settings = {"batch_size": batch_size, "shuffle": bool(shuffle), "seed": seed}
        Fit(self, source, held_out, progress, nonfinite, folder, every, **settings).run(epochs, resume)
        return self.history

    def evaluate(self, data: Any, batch_size: int = _INFERENCE_BATCH) -> dict[str, Any]:
        """The loss and the metrics over all samples, by inference: {"loss": ..., "accuracy": ...}.

        data: as `fit` takes them. The metrics of an epoch that is under way go on undisturbed.
        """
        source, backend, metrics = as_source(data), self.model.backend, copy.deepcopy(self.metrics)
        batch_size = int(whole("batch_size", batch_size, 1))
        for metric in metrics:
            metric.reset()
        tally = backend.tally()
        for x, t, w in batches(on_device(source, backend), batch_size):
            z = self.model(x)
            with suppress(NoWeightError):
                prepared = self.loss.prepare(z.shape, z.dtype, t, w, backend)
                tally.add(self.loss(z, *prepared)[0], prepared[2])
            for metric in metrics:
                metric.update(z, t, w)
        if not tally.count:
            raise DataError("nothing to evaluate: the data gave no batch, or the weights of all samples are zero")
        return {"loss": tally.read()[0], **{metric.name: metric.result() for metric in metrics}}

    def predict(self, x: Any, batch_size: int = _INFERENCE_BATCH, augment: Iterable[Callable[[Any], Any]] = ()) -> Any:
        """The model's outputs for x (N, ...), or for the images of a data set, as a host array.

        augment: views of a batch, such as `nn.data.views()`; the outputs for them are averaged (test-time averaging).
        """
        x, augment, batch_size = getattr(x, "images", x), list(augment), int(whole("batch_size", batch_size, 1))
        x = x if hasattr(x, "shape") else np.asarray(x)
        parts = [self._predict(x[start : start + batch_size], augment) for start in range(0, len(x), batch_size)]
        if not parts:
            raise DataError("there is nothing to predict: x is empty")
        return np.concatenate([self.model.backend.to_host(part) for part in parts])

    def _predict(self, x: Any, augment: list[Callable[[Any], Any]]) -> Any:
        if not augment:
            return self.model(x)
        return sum(self.model(view(x)) for view in augment) / len(augment)

    def stop(self) -> None:
        """End training after this epoch."""
        self.stopped = True

    def update_metrics(self, z: Any, t: Any, w: Any) -> None:
        """Show all metrics a batch of outputs, targets and weights."""
        for metric in self.metrics:
            metric.update(z, t, w)

    def results(self) -> dict[str, Any]:
        """The metrics over what they have seen since their `reset`."""
        return {metric.name: metric.result() for metric in self.metrics}

    def _check_metrics(self) -> None:
        taken = {"loss", "val_loss", "seconds", "samples_per_second"}
        for metric in self.metrics:
            if not isinstance(metric, Metric):
                raise ValueError(f"metrics must be objects such as nn.Accuracy(), not {metric!r}")
            if metric.name in taken:
                raise ValueError(f"the name {metric.name!r} of a metric is taken: give it another name, metric.name = ...")
            taken.add(metric.name)
