"""What `Trainer` and its `fit` refuse before the first step, while nothing is lost."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nnlite.arguments import shortened
from nnlite.callbacks import Callback
from nnlite.layers.base import Layer
from nnlite.losses import Loss
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.optim import Optimizer, ParameterGroups

if TYPE_CHECKING:
    from nnlite.train import Trainer

# ---- the parts of a trainer


def check_parts(trainer: "Trainer") -> None:
    """Raise ValueError for a part of another kind, for metrics whose names are taken, and for two activations at the end."""
    _refuse_others("model", trainer.model, Sequential, "nn.Sequential(...)")
    _refuse_others("loss", trainer.loss, Loss, "nn.CrossEntropy()")
    _refuse_others("optimizer", trainer.optimizer, (Optimizer, ParameterGroups), "nn.Adam()")
    for metric in trainer.metrics:
        _refuse_others("each of metrics", metric, Metric, "nn.Accuracy()")
    for callback in trainer.callbacks:
        _refuse_others("each of callbacks", callback, Callback, "nn.EarlyStopping()")
    trainer.model.named_params()  # refuses one without input_shape
    _refuse_taken_names(trainer.metrics)
    _refuse_probabilities(trainer.model, trainer.loss)


def listed(what: str, values: Any) -> list[Any]:
    """Metrics or callbacks as a list; raises ValueError for what is none."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{what} must be a list, such as [{shortened(values)}], not {shortened(values)} itself")
    return list(values)


def _refuse_others(what: str, value: Any, kinds: Any, example: str) -> None:
    if isinstance(value, kinds):
        return
    name, base = shortened(value), kinds[0] if isinstance(kinds, tuple) else kinds
    is_class = isinstance(value, type) and issubclass(value, kinds)
    remedy = f"write {name}(...)" if is_class else f"one of your own is a subclass of nn.{base.__name__}"
    raise ValueError(f"{what} must be an object such as {example}, not {'the class ' * is_class}{name}: {remedy}")


def _refuse_taken_names(metrics: Sequence[Metric]) -> None:
    taken = {"loss", "val_loss", "seconds", "samples_per_second"}
    for metric in metrics:
        name = getattr(metric, "name", None)
        if not isinstance(name, str):
            raise ValueError(f"{shortened(metric)} needs a name, the key in the history: a text, not {shortened(name)}")
        if name in taken:
            raise ValueError(f"the name {shortened(name)} of a metric is taken: give it another name, metric.name = ...")
        taken.add(name)


def _refuse_probabilities(model: Sequential, loss: Loss) -> None:
    last = _giver_of_values(model.layers)
    if loss.takes_logits and last.gives_probabilities:
        raise ValueError(
            f"{shortened(loss)} takes logits, but the model ends with {shortened(last)}, which gives probabilities: "
            f"leave {shortened(last)} out, the loss applies its function itself"
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


def check_callbacks(trainer: "Trainer", validated: bool) -> None:
    """Raise ValueError for two callbacks that set the final weights, and what the callbacks refuse."""
    names = ["loss", *(metric.name for metric in trainer.metrics)]
    columns = [*names, *(f"val_{name}" for name in names if validated), "seconds", "samples_per_second"]
    setting = [callback for callback in trainer.callbacks if callback.sets_weights]
    if len(setting) > 1:
        raise ValueError(
            f"{shortened(setting[0])} and {shortened(setting[1])} both set the weights that training ends with, "
            "the second would undo what the first did: keep one of them; EarlyStopping(restore_best=False) only stops"
        )
    for callback in trainer.callbacks:
        callback.check(trainer, columns)
