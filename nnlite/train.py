"""The loop: epochs of batches, a loss, an optimiser, metrics; validation, history and progress."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.callbacks import Callback
from nnlite.errors import DataError, NonFiniteError
from nnlite.history import History
from nnlite.losses import Loss
from nnlite.metrics import Metric
from nnlite.model import Sequential

if TYPE_CHECKING:
    from nnlite.optim import Optimizer, ParameterGroups

_INFERENCE_BATCH = 1024


class Trainer:
    """Trains a model: `fit`, `evaluate`, `predict`.

    metrics: such as `nn.Accuracy()`; they are streamed over the outputs of training and of validation.
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
        self.epochs = self.steps = 0
        self.history = History()
        self._stopped = False

    def fit(
        self,
        data: Any,
        epochs: int = 1,
        batch_size: int = 32,
        validation: Any = None,
        shuffle: bool = True,
        seed: int = 0,
        progress: bool = True,
    ) -> History:
        """Train for `epochs` more epochs and return the history, of these and of earlier calls.

        data: (x, t), (x, t, w) with sample weights, a `nn.data.Dataset`, or any iterable of batches (x, t) or (x, t, w) that
        can be gone through once an epoch. validation: the same kinds; gives the columns val_loss, val_<metric>.
        batch_size, shuffle, seed: for arrays and data sets; the order follows from (seed, epoch). The short last batch is kept.
        progress: a bar on a terminal, a line an epoch elsewhere.
        Raises DataError for data that do not fit, NonFiniteError where the loss becomes NaN or infinite: the parameters
        are then those before that step.
        """
        if epochs < 0 or batch_size < 1:
            raise ValueError(f"epochs must not be negative and batch_size at least 1, got {epochs} and {batch_size}")
        source, held_out = _source(data), None if validation is None else _source(validation)
        self._stopped = False
        for callback in self.callbacks:
            callback.on_fit_begin(self)
        for _ in range(epochs):
            self._epoch(source, batch_size, held_out, shuffle, seed, _Progress(progress, self.epochs, epochs))
            if self._stopped:
                break
        for callback in self.callbacks:
            callback.on_fit_end(self)
        return self.history

    def evaluate(self, data: Any, batch_size: int = _INFERENCE_BATCH) -> dict[str, float]:
        """The loss and the metrics over all samples, by inference: {"loss": ..., "accuracy": ...}."""
        for metric in self.metrics:
            metric.reset()
        mean = _Mean()
        for x, t, w in _batches(_source(data), batch_size):
            z = self.model(x)
            mean.add(self.loss(z, t, sample_weight=w)[0], _weight_of(x, w))
            self._update_metrics(z, t, w)
        return {"loss": mean.result(), **self._results()}

    def predict(self, x: Any, batch_size: int = _INFERENCE_BATCH, augment: Sequence[Callable[[Any], Any]] = ()) -> Any:
        """The model's outputs for x (N, ...), as a host array.

        augment: views of a batch, such as `nn.data.views()`; the outputs for them are averaged (test-time averaging).
        """
        parts = [self._predict(x[start : start + batch_size], augment) for start in range(0, len(x), batch_size)]
        if not parts:
            raise DataError("there is nothing to predict: x is empty")
        return np.concatenate([self.model.backend.to_host(part) for part in parts])

    def _predict(self, x: Any, augment: Sequence[Callable[[Any], Any]]) -> Any:
        if not augment:
            return self.model(x)
        return sum(self.model(view(x)) for view in augment) / len(augment)

    def stop(self) -> None:
        """End training after this epoch."""
        self._stopped = True

    def _epoch(self, source: Any, batch_size: int, held_out: Any, shuffle: bool, seed: int, progress: "_Progress") -> None:
        for metric in self.metrics:
            metric.reset()
        mean, samples, start = _Mean(), 0, time.perf_counter()
        progress.begin(len(source) if _is_dataset(source) else None)
        for x, t, w in _batches(source, batch_size, self.epochs, seed, shuffle):
            mean.add(self._step(x, t, w), _weight_of(x, w))
            samples += len(x)
            progress.advance(len(x), lambda: {"loss": mean.result(), **self._shown()})
        if not samples:
            raise DataError("the training data gave no batch: an iterable must give its batches anew each epoch")
        seconds = time.perf_counter() - start
        row = {"loss": mean.result(), **self._results()}
        if held_out is not None:
            row |= {f"val_{name}": value for name, value in self.evaluate(held_out).items()}
        row |= {"seconds": seconds, "samples_per_second": samples / seconds}
        self.epochs += 1
        self.history.append(row)
        progress.end(row)
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)

    def _step(self, x: Any, t: Any, w: Any) -> float:
        z = self.model.backend.xp.empty((len(x), *self.model.out_shape), self.model.dtype) if self.metrics else None
        loss = self.model.loss_and_grad(x, t, self.loss, sample_weight=w, out=z)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} at step {self.steps} (epoch {self.epochs + 1}): "
                "look for NaN in the data, or lower the learning rate"
            )
        self.optimizer.step(self.model)
        self.steps += 1
        self._update_metrics(z, t, w)
        for callback in self.callbacks:
            callback.on_step_end(self)
        return loss

    def _update_metrics(self, z: Any, t: Any, w: Any) -> None:
        for metric in self.metrics:
            metric.update(z, t, w)

    def _results(self) -> dict[str, float]:
        return {metric.name: metric.result() for metric in self.metrics}

    def _shown(self) -> dict[str, float]:
        return {name: value for name, value in self._results().items() if isinstance(value, float)}


class _Mean:
    """A weighted mean, streamed."""

    def __init__(self) -> None:
        self.sum = self.weight = 0.0

    def add(self, value: float, weight: float) -> None:
        self.sum += value * weight
        self.weight += weight

    def result(self) -> float:
        return self.sum / self.weight if self.weight else math.nan


class _Progress:
    """The live bar of one epoch, or a line at its end where the output is no terminal."""

    def __init__(self, wanted: bool, done: int, epochs: int) -> None:
        self.wanted, self.live = wanted, wanted and sys.stderr.isatty()
        self.title = f"epoch {done + 1}"
        self.bar: Any = None
        self.shown = 0.0

    def begin(self, samples: int | None) -> None:
        if self.live:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=samples, desc=self.title, unit="img", unit_scale=False, leave=True)

    def advance(self, samples: int, values: Any) -> None:
        if self.bar is None:
            return
        self.bar.update(samples)
        if (now := time.monotonic()) - self.shown > 0.2:
            self.shown = now
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in values().items()}, refresh=False)

    def end(self, row: dict[str, float]) -> None:
        text = {name: f"{v:.4f}" for name, v in row.items() if isinstance(v, float) and "second" not in name}
        if self.bar is not None:
            self.bar.set_postfix(text)
            self.bar.close()
        elif self.wanted:
            rest = "  ".join(f"{name} {value}" for name, value in text.items())
            print(f"{self.title}  {rest}  {row['samples_per_second']:,.0f} samples/s", flush=True)


def _source(data: Any) -> Any:
    """Arrays as a Dataset; data sets and iterables of batches as they are."""
    if _is_dataset(data):
        return data
    if isinstance(data, tuple):
        if len(data) not in (2, 3):
            raise DataError(f"data must be (x, t) or (x, t, weights), got a tuple of {len(data)}")
        from nnlite.data import Dataset

        return Dataset(data[0], data[1], weights=data[2] if len(data) == 3 else None)
    if not isinstance(data, Iterable):
        raise DataError(f"data must be (x, t), a nn.data.Dataset or an iterable of batches, not {type(data).__name__}")
    return data


def _is_dataset(data: Any) -> bool:
    """A `nn.data.Dataset`, or whatever gives seeded batches as it does."""
    return hasattr(data, "batches")


def _batches(
    source: Any, batch_size: int, epoch: int = 0, seed: int = 0, shuffle: bool = False
) -> Iterator[tuple[Any, Any, Any]]:
    batches = source.batches(batch_size, epoch=epoch, seed=seed, shuffle=shuffle) if _is_dataset(source) else source
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise DataError(f"a batch must be (x, t) or (x, t, weights), got {type(batch).__name__}")
        x, t, w = itertools.islice(itertools.chain(batch, [None]), 3)
        yield x, t, w


def _weight_of(x: Any, w: Any) -> float:
    return float(len(x)) if w is None else float(w.sum())
