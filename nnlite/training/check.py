"""What `Trainer` and its `fit` refuse before the first step, while nothing is lost."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from nnlite.arguments import listing, shortened
from nnlite.backend import length
from nnlite.engine.exchange import Communicator
from nnlite.errors import DataError
from nnlite.layers.base import Layer
from nnlite.losses import Loss, NoWeightError
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.optim import Optimizer
from nnlite.optim.groups import ParameterGroups, by_column
from nnlite.training.hooks import Callback, Training
from nnlite.training.sources import batches, gives_once, is_dataset, items, said_of

_BATCH = 1024  # samples whose targets are checked together

_HOOKS_ELSEWHERE = {  # in Keras, Lightning, skorch, Transformers
    **dict.fromkeys(("on_train_begin", "on_train_start", "on_fit_start"), "on_fit_begin"),
    **dict.fromkeys(("on_epoch_start", "on_train_epoch_start"), "on_epoch_begin"),
    **dict.fromkeys(("on_batch_end", "on_train_batch_end"), "on_step_end"),
    **dict.fromkeys(("on_train_epoch_end", "on_test_end", "on_validation_end", "on_evaluate"), "on_epoch_end"),
    "on_train_end": "on_fit_end",
}

# ---- the parts of a trainer


def check_parts(trainer: Training) -> None:
    """Raise ValueError for a part of the wrong type, for metrics whose names are taken, and for two activations at the end."""
    _refuse_others("model", trainer.model, Sequential, "nn.Sequential(...)")
    _refuse_others("loss", trainer.loss, Loss, "nn.CrossEntropy()")
    _refuse_others("optimizer", trainer.optimizer, (Optimizer, ParameterGroups), "nn.Adam()")
    if trainer.communicator is not None:
        _refuse_others("communicator", trainer.communicator, Communicator, "nn.distributed.mpi()")
    for metric in trainer.metrics:
        _refuse_others("each of metrics", metric, Metric, "nn.Accuracy()")
    for callback in trainer.callbacks:
        _refuse_others("each of callbacks", callback, Callback, "nn.EarlyStopping()")
        _refuse_other_hooks(callback)
    trainer.model.named_params()  # refuses one without input_shape
    _refuse_taken_names(trainer)
    _refuse_probabilities(trainer.model, trainer.loss)


def listed(what: str, values: Any) -> list[Any]:
    """Metrics or callbacks as a list; raises ValueError for anything else."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{what} must be a list, such as [{shortened(values)}], not {shortened(values)} itself")
    return list(values)


def _refuse_others(what: str, value: Any, kinds: Any, example: str) -> None:
    if isinstance(value, kinds):
        return
    name, base = shortened(value), kinds[0] if isinstance(kinds, tuple) else kinds
    is_class = isinstance(value, type) and issubclass(value, kinds)
    remedy = f"write {name}(...)" if is_class else f"a custom one is a subclass of nn.{base.__name__}"
    raise ValueError(f"{what} must be an object such as {example}, not {'the class ' * is_class}{name}: {remedy}")


def _refuse_other_hooks(callback: Callback) -> None:
    """Raise ValueError for hooks that would never be called."""
    kind, hooks = type(callback), [name for name in vars(Callback) if name.startswith("on_")]
    others = [name for name in dir(kind) if name.startswith("on_") and name not in hooks and callable(getattr(kind, name))]
    if others:
        known = [f"{name} is {_HOOKS_ELSEWHERE[name]} here" for name in others if name in _HOOKS_ELSEWHERE]
        raise ValueError(
            f"{shortened(callback)} has {listing(others, most=4)}, which nnlite does not call: "
            + "".join(f"{text}; " for text in known[:4])
            + f"the hooks are {', '.join(hooks)}"
        )


def _refuse_taken_names(trainer: Training) -> None:
    taken = {"loss", "val_loss", *by_column(trainer.optimizer), "seconds", "samples_per_second"}
    for metric in trainer.metrics:
        name = getattr(metric, "name", None)
        if not isinstance(name, str):
            raise ValueError(f"{shortened(metric)} needs a name, the key in the history: a text, not {shortened(name)}")
        names = {name, *metric.columns(trainer.model.out_shape)}
        names |= {f"val_{each}" for each in names}
        if again := names & taken:
            raise ValueError(f"the name {shortened(min(again))} of a metric is taken: give it another name, metric.name = ...")
        taken |= names


def _refuse_probabilities(model: Sequential, loss: Loss) -> None:
    last = _giver_of_values(model.layers)
    if loss.takes_logits and last.gives_probabilities:
        raise ValueError(
            f"{shortened(loss)} takes logits, but the model ends with {shortened(last)}, which gives probabilities: "
            f"leave {shortened(last)} out, the loss applies its function itself (interop.onnx.load does with logits=True)"
        )


def _giver_of_values(layers: Sequence[Layer]) -> Layer:
    """The layer whose values are the outputs: the last one that does more than summarise or reshape them."""
    last = layers[-1]
    for layer in reversed(layers):
        last = _giver_of_values(layer.layers) if isinstance(layer, Sequential) else layer
        if last.gives_probabilities is not None:
            break
    return last


# ---- a call of fit


def check_fit(trainer: Training, source: Any, held_out: Any, epochs: int, goes_on: bool) -> tuple[list[str], Any]:
    """Refuse what would fail later. Returns the columns that the history will have, and the validation data to use.

    held_out: validation data, None for none; goes_on: whether an iterator of them continues in the next epoch.
    Raises ShapeError or DataError for targets and weights that do not fit, of arrays and data sets that hold arrays.
    """
    check_parts(trainer)
    columns = _columns_of(trainer, held_out is not None)
    _check_callbacks(trainer, columns)
    if _holds_labels(source):
        with said_of("the training data"):
            _check_labels(trainer, source)
    return columns, None if held_out is None else _check_validation(trainer, held_out, epochs, goes_on)


def _columns_of(trainer: Training, validated: bool) -> list[str]:
    """The columns that the history will have."""
    names = ["loss", *(name for metric in trainer.metrics for name in metric.columns(trainer.model.out_shape))]
    columns = [*names, *(f"val_{name}" for name in names if validated), *by_column(trainer.optimizer)]
    return [*columns, "seconds", "samples_per_second"]


def _check_callbacks(trainer: Training, columns: Collection[str]) -> None:
    """Raise ValueError for two callbacks that set the final weights, and let each callback check its arguments."""
    setting = [callback for callback in trainer.callbacks if callback.sets_weights]
    if len(setting) > 1:
        raise ValueError(
            f"{shortened(setting[0])} and {shortened(setting[1])} both set the weights that training ends with, "
            "the second would undo what the first did: keep one of them; EarlyStopping(restore_best=False) only stops"
        )
    for callback in trainer.callbacks:
        callback.check(trainer, columns)


def _check_validation(trainer: Training, held_out: Any, epochs: int, goes_on: bool) -> Any:
    """Raise ShapeError or DataError for inputs, targets and weights that do not fit, and for what cannot restart each epoch.

    Of an iterable only the first batch is checked; the returned source yields that batch again.
    """
    if epochs > 1 and not goes_on and gives_once(held_out):
        raise DataError(
            f"validation: a {type(held_out).__name__} is spent after the first epoch, and {epochs} epochs each go through the "
            "validation data: give validation_steps=, arrays, or an iterable that begins anew, such as a list of its batches"
        )
    with said_of("validation"):
        held_out = held_out if is_dataset(held_out) else _Begun(held_out)
        given = held_out if is_dataset(held_out) else held_out.first
        x, t, w = next(batches(given, _BATCH), (None, None, None))
        if x is None:
            raise DataError("the data gave no batch")
        trainer.model(x[:1])
        _check_targets(trainer, length(x), t, w)
        if _holds_labels(held_out):
            _check_labels(trainer, held_out)
    return held_out


class _Begun:
    """An iterable whose first batch was checked: the first pass over it, already started, yields that batch again."""

    def __init__(self, source: Any) -> None:
        self.source, self.rest = source, items(source)
        self.first = list(itertools.islice(self.rest, 1))

    def __iter__(self) -> Iterator[Any]:
        first, self.first = self.first, []
        return itertools.chain(first, self._rest()) if first else items(self.source)

    def _rest(self) -> Iterator[Any]:
        with suppress(StopIteration):
            while True:
                yield next(self.rest)  # a custom iterator may restart when `iter` is called on it


def _holds_labels(source: Any) -> bool:
    return is_dataset(source) and hasattr(source, "labels")


def _check_labels(trainer: Training, source: Any) -> None:
    """The targets and weights of a data set; its images, which may be in files, are not read."""
    for start in range(0, len(source), _BATCH):
        rows = slice(start, start + _BATCH)
        t, w = source.labels[rows], None if source.weights is None else source.weights[rows]
        _check_targets(trainer, len(t), t, w)


def _check_targets(trainer: Training, n: int, t: Any, w: Any) -> None:
    model = trainer.model
    with suppress(NoWeightError):
        trainer.loss.prepare((n, *model.out_shape), model.params.dtype, t, w, model.backend)
