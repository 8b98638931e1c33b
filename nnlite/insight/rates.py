"""Which learning rate to begin with: train for a moment with ever larger rates, and watch the loss."""

import copy
import math
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnlite.arguments import number, shortened, whole
from nnlite.errors import NonFiniteError, StateError
from nnlite.optim.groups import by_column
from nnlite.training.sources import Epochs, as_source, on_device
from nnlite.training.trainer import Trainer

_FIRST, _TOO_MUCH = 10, 1.5  # the smoothed loss diverges when it is 1.5 times the mean of the first 10
_SMOOTH = 0.9  # how much of the mean stays in each step


class Found(NamedTuple):
    """rates: (steps,)   losses: (steps,) of the batches trained with them   suggestion: NaN if the loss never fell"""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    suggestion: float

    def smoothed(self) -> NDArray[np.float64]:
        """The mean loss so far, in which a step counts for 0.9 of the next one."""
        return _smoothed(self.losses)


def find_learning_rate(
    trainer: Trainer,
    data: Any,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    seed: int = 0,
) -> Found:
    """Train a copy of the model with rates from `low` to `high`, and suggest the one where the loss falls fastest.

    r_i = low (high / low)^(i / (steps - 1)), one batch each, until the loss diverges. The suggestion is the rate of the
    steepest descent of the smoothed loss over log r, below that of the lowest loss: the middle of the ten rates over which it
    falls most; NaN if it never falls.
    data, batch_size, seed: as `Trainer.fit` takes them; an iterator is read, and needs `steps` batches. Of
    `nn.ParameterGroups` the rates stay in proportion, and r is that of the fastest group.
    The trainer, its model and its optimiser keep every bit: copies are trained. Raises ValueError for rates that are not
    positive and rising, DataError for data that do not fit, NonFiniteError where the first loss is not finite, StateError
    for a model without a parameter that is trained.
    Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks.
    """
    if not isinstance(trainer, Trainer):
        raise ValueError(f"find_learning_rate takes the nn.Trainer that will train, not {shortened(trainer)}")
    if all(slot.frozen for slot in trainer.model.vectors.trained):
        raise StateError("no parameter of the model is trained: the loss does not depend on the rate")
    number("low", low, above=0)
    number("high", high, above=low)
    rates = np.geomspace(low, high, int(whole("steps", steps, 3 * _FIRST)))
    source = on_device(as_source(data), trainer.model.backend)
    batch_size, seed = int(whole("batch_size", batch_size, 1)), int(whole("seed", seed))
    feed = Epochs(source, len(rates), 0, False, None, batch_size=batch_size, shuffle=True, seed=seed)
    losses = _losses(trainer, feed, rates)
    if not len(losses):
        raise NonFiniteError("the loss of the first batch, before any update, is not finite: no rate can mend that")
    return Found(rates[: len(losses)], losses, _steepest(rates[: len(losses)], _smoothed(losses)))


def _losses(trainer: Trainer, feed: Epochs, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    model, optimizer = copy.deepcopy((trainer.model, trainer.optimizer))
    groups = by_column(optimizer).values()
    own = [group.rate_at(group.steps) for group in groups]
    losses: list[float] = []
    with closing(feed):
        for rate, (x, t, w) in zip(rates, feed.epoch(0, 0), strict=True):
            for group, share in zip(groups, own, strict=True):
                group.learning_rate = float(rate * share / max(own)) if max(own) else float(rate)
            losses.append(float(model.loss_and_grad(x, t, trainer.loss, w)))
            if not math.isfinite(losses[-1]) or _smoothed(losses)[-1] > _TOO_MUCH * np.mean(losses[:_FIRST]):
                break
            try:
                optimizer.step(model)
            except NonFiniteError:
                break
    return np.array([loss for loss in losses if math.isfinite(loss)])


def _smoothed(losses: Any) -> NDArray[np.float64]:
    mean, smooth = 0.0, []
    for i, loss in enumerate(losses, start=1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        smooth.append(mean / (1 - _SMOOTH**i))
    return np.array(smooth)


def _steepest(rates: NDArray[np.float64], smooth: NDArray[np.float64]) -> float:
    """The middle of the ten rates over which the loss falls most before it is lowest; the first are left out, as noise."""
    rest = smooth[_FIRST:]
    down = rest[: int(rest.argmin()) + 1] if len(rest) else rest
    falls = down[:-_FIRST] - down[_FIRST:]
    return float(rates[_FIRST + falls.argmax() + _FIRST // 2]) if len(falls) and falls.max() > 0 else math.nan
