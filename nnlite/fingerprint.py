"""What must be the same for a checkpoint to go on to the same bits."""

import json
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.errors import StateError
from nnlite.layers.base import Layer
from nnlite.serialize import describe

if TYPE_CHECKING:
    from nnlite.train import Trainer

NO_NUMBERS = ("state", "groups", "_model")  # of an optimiser
_SAMPLED = (0, 1, 10, 100, 1_000, 10_000, 100_000)  # steps at which schedules without a name are compared


def fingerprint(trainer: "Trainer", source: Any, **settings: Any) -> dict[str, Any]:
    """What the bits of a run follow from: architecture, optimiser, loss, data, settings."""
    prints = {
        "model": describe(trainer.model),
        "optimizer": optimizer_print(trainer),
        "loss": _values(trainer.loss),
        "metrics": [metric.name for metric in trainer.metrics],
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "data": _data(source),
        **settings,
    }
    whole: dict[str, Any] = json.loads(json.dumps(prints))
    return whole


def optimizers(trainer: "Trainer") -> dict[str, Any]:
    """The optimiser, and those of its groups by their patterns."""
    return {"": trainer.optimizer, **getattr(trainer.optimizer, "groups", {})}


def optimizer_print(trainer: "Trainer") -> dict[str, Any]:
    """The values of the optimiser and of its groups."""
    return {name: _values(optimizer, {"steps", *NO_NUMBERS}) for name, optimizer in optimizers(trainer).items()}


def refuse_others(description: dict[str, Any], here: dict[str, Any], path: Any) -> None:
    """Raise StateError, naming what differs.

    The optimiser may be as it was when the run began, in a new process, or as when the checkpoint was written, in the same one.
    """
    kept = description["fingerprint"]
    if here["optimizer"] == description["optimizer"]:
        here = here | {"optimizer": kept["optimizer"]}
    different = list(_differences(kept, here))
    if different:
        raise StateError(f"the checkpoint in {path} is of another run: {'; '.join(different[:5])}")


def _differences(kept: Any, here: Any, name: str = "") -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(here, dict):
        for key in sorted(kept.keys() | here.keys()):
            yield from _differences(kept.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif isinstance(kept, list) and isinstance(here, list) and len(kept) == len(here):
        for i, (a, b) in enumerate(zip(kept, here, strict=True)):
            yield from _differences(a, b, f"{name}[{i}]")
    elif kept != here:
        yield f"{name} was {kept!r}, is {here!r}"


def _values(thing: Any, without: Container[str] = (), depth: int = 3) -> dict[str, Any]:
    """The class and the values of an object, those of objects inside it to a certain depth."""
    values = {name: value for name, value in vars(thing).items() if name not in without}
    prints = {name: _schedule(value) if name == "learning_rate" else plain(value, depth) for name, value in values.items()}
    return {"class": type(thing).__name__, **prints}


def plain(value: Any, depth: int = 3) -> Any:
    """As JSON can hold it: of functions and of what has no values only the name, and never an address."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, dict):
        return {str(key): plain(v, depth) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, depth) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(plain(v, depth)) for v in value)
    if isinstance(value, Layer):
        return describe(value)
    if hasattr(value, "__name__"):
        return value.__name__
    return _values(value, depth=depth - 1) if depth and hasattr(value, "__dict__") else type(value).__name__


def _schedule(rate: Any) -> Any:
    """Those of `nn.schedules` and objects by their fields, functions by some of their values."""
    if hasattr(rate, "_asdict"):
        return {"class": type(rate).__name__, **{name: _schedule(value) for name, value in rate._asdict().items()}}
    is_function = callable(rate) and (hasattr(rate, "__name__") or not getattr(rate, "__dict__", None))
    return [_sample(rate, step) for step in _SAMPLED] if is_function else plain(rate)


def _sample(schedule: Any, step: int) -> float | None:
    try:
        return float(schedule(step))
    except Exception:  # behind the end of a table
        return None


def _data(source: Any) -> dict[str, Any]:
    """Of a data set: its length, augmentations, and the hash of all values."""
    if not hasattr(source, "images"):
        return {"kind": type(source).__name__}
    import hashlib

    digest = hashlib.sha256()
    for array in (source.images, source.labels, source.weights):
        if array is not None:
            array = np.ascontiguousarray(array)
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(array.data.cast("B"))
    augmentations = [_values(augmentation) for augmentation in source.augmentations]
    return {"samples": len(source), "augmentations": augmentations, "sha256": digest.hexdigest()}
