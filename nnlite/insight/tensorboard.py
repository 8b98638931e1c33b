"""Training, for TensorBoard to show: numbers, histograms of weights and gradients, a confusion matrix, sample images."""

import io
import os
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from os import PathLike
from types import SimpleNamespace
from typing import Any

import numpy as np

from nnlite.arguments import flag, location, shortened, whole
from nnlite.atomic import shown
from nnlite.errors import DataError, FileError
from nnlite.insight import plots
from nnlite.insight.values import as_classes
from nnlite.metrics import ConfusionMatrix
from nnlite.metrics.base import to_host
from nnlite.training.callbacks import LogTo
from nnlite.training.hooks import Training
from nnlite.training.sources import as_source

_BINS = 64  # of a histogram
_DPI = 100
_BEGINS = 1  # SessionLog.START


class TensorBoard(LogTo):
    """Event files in a folder, which `tensorboard --logdir folder` shows; a resumed run goes on in it, no step twice.

    After each epoch: the row of the history; histograms of all parameters, "weights/0.W", and of the last step's gradients,
    "gradients/0.W"; with `data` the confusion matrix of the model on them, and the first images with their predictions.
    every: also "step/loss" and "step/learning_rate" after every so many steps; default None.
    histograms: default True.   data: (x, t) or a `nn.data.Dataset` of classes; default None.   images: how many; default 16.
    classes: their names; default: those of the data set.
    A new run in the folder hides what was there. Raises ImportError without tensorboardX, FileError for an address in place
    of a path; `fit` raises FileError before the first step if the folder cannot be written, DataError for data without labels.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        every: int | None = None,
        histograms: bool = True,
        data: Any = None,
        images: int = 16,
        classes: Any = None,
    ) -> None:
        super().__init__(self._write, every=every)
        self.folder, self.histograms, self.data = location("folder", folder), flag("histograms", histograms), data
        self.images, self.classes = whole("images", images), classes
        self.writer: Any = None
        self.close: Callable[[], Any] = bool  # the file, once
        _protocol()

    def check(self, trainer: Training, columns: Collection[str]) -> None:
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise FileError(f"no events can be written to the folder {shown(self.folder)}: {shortened(error)}") from error
        if not os.access(self.folder, os.W_OK):
            raise FileError(f"no events can be written to the folder {shown(self.folder)}: it is write-protected")
        if self.data is not None:
            source = as_source(self.data)
            if not hasattr(source, "labels"):
                raise DataError(f"data must be (x, t) or a nn.data.Dataset, not {shortened(self.data)}")
            z = trainer.predict(source.images[:1])
            ConfusionMatrix().update(np.broadcast_to(z, (len(source), *z.shape[1:])), source.labels[:])
            as_classes(self._names(source), max(2, z.shape[-1]))

    def on_fit_begin(self, trainer: Training) -> None:
        super().on_fit_begin(trainer)
        self.close()
        suffix = f".{trainer.steps:09d}.{os.getpid()}"  # of two files of one second the later one comes later
        self.writer = _protocol().EventsWriter(os.path.join(self.folder, "events"), suffix)
        self.close = weakref.finalize(self, self.writer.close)  # also of a run that failed
        self._event(self.logged[0] + 1, session_log={"status": _BEGINS})  # hides later ones

    def on_epoch_end(self, trainer: Training, row: Mapping[str, float]) -> None:
        is_new = (trainer.steps, trainer.epochs) > self.logged
        super().on_epoch_end(trainer, row)
        if is_new and self.histograms:
            self._write_histograms(trainer)
        if is_new and self.data is not None:
            self._write_pictures(trainer)
        self.writer.flush()

    def on_fit_end(self, trainer: Training) -> None:
        self.close()

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._event(step, summary={"value": [{"tag": name, "simple_value": value}]})
        self.writer.flush()

    def _write_histograms(self, trainer: Training) -> None:
        model = trainer.model
        kinds = {"weights": model.named_params()}
        if model.grads.any():  # they are zero where a run goes on between its last step and the end of the epoch
            kinds["gradients"] = model.named_grads()
        for kind, named in kinds.items():
            for name, view in named.items():
                values = to_host(view).ravel()
                values = values[np.isfinite(values)]
                if len(values):
                    self._event(trainer.steps, summary=_protocol().histogram(f"{kind}/{name}", values, _BINS))

    def _write_pictures(self, trainer: Training) -> None:
        source = as_source(self.data)
        z, matrix = trainer.predict(source), ConfusionMatrix()
        matrix.update(z, source.labels)
        names = self._names(source)
        self._picture("confusion_matrix", plots.confusion_matrix(matrix.result(), classes=names), trainer.steps)
        x = source.images[: self.images]
        if len(x) and x.ndim == 4 and x.shape[-1] in (1, 3):
            self._picture("samples", plots.samples(x, source.labels[: len(x)], z[: len(x)], classes=names), trainer.steps)

    def _names(self, source: Any) -> Any:
        return getattr(source, "classes", None) if self.classes is None else self.classes

    def _picture(self, name: str, ax: Any, step: int) -> None:
        file = io.BytesIO()
        ax.figure.savefig(file, format="png", dpi=_DPI)
        width, height = (round(_DPI * inches) for inches in ax.figure.get_size_inches())
        image = {"width": width, "height": height, "colorspace": 4, "encoded_image_string": file.getvalue()}
        self._event(step, summary={"value": [{"tag": name, "image": image}]})

    def _event(self, step: int, **what: Any) -> None:
        """Write it now: the queue of tensorboardX's own writer is lost when the process is killed."""
        self.writer.write_event(_protocol().Event(wall_time=time.time(), step=step, **what))


def _protocol() -> Any:
    """What of tensorboardX is used."""
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import histogram
    except ImportError as error:
        raise ImportError("TensorBoard needs tensorboardX: pip install 'nnlite-numpy[tensorboard]'") from error
    return SimpleNamespace(EventsWriter=EventsWriter, Event=Event, histogram=histogram)
