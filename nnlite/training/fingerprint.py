"""What must be the same for a checkpoint to resume with the same bits, and for processes to train together."""

import json
import zlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from nnlite.arguments import shortened
from nnlite.errors import StateError
from nnlite.layers.base import Layer
from nnlite.model import Sequential
from nnlite.serialize import describe
from nnlite.training.hooks import Callback, Training

Print = dict[str, Any]
_NOT_SET = {"state_vectors", "steps", "missed", "groups", "_model", "_tally"}  # optimiser attributes: not settings
_LONG = 1000
_SAMPLED = (0, 1, 10, 100, 1_000, 10_000, 100_000)  # steps at which unnamed schedules are compared
_SHOWN, _LENGTH = 3, 120  # differences in a message, and characters of each


def fingerprint_of(trainer: Training, source: Any, **settings: Any) -> Print:
    """What determines the bits of a run: architecture, kernels, frozen parts, optimiser, loss, callbacks, data, order."""
    callbacks = stateful(trainer.callbacks)
    return _as_json(
        {
            "model": describe(trainer.model),
            "kernels": trainer.model.kernels,
            "loss": _values(trainer.loss),
            "callbacks": {name: {key: _plain(getattr(c, key)) for key in c.must_match} for name, c in callbacks.items()},
            "data": _data(source),
            **settings,
            **changing(trainer),
        }
    )


def changing(trainer: Training) -> Print:
    """What may change while training: what is frozen, and the values of the optimiser and of its groups."""
    vectors = trainer.model.vectors
    frozen = {slot.name: slot.frozen for slot in vectors.trained} | {slot.name: True for slot in vectors.kept if slot.frozen}
    optimizers = {"": trainer.optimizer, **getattr(trainer.optimizer, "groups", {})}
    return _as_json({"frozen": frozen, "optimizer": {name: _settings(each) for name, each in optimizers.items()}})


def _settings(optimizer: Any) -> Print:
    """The optimiser's settings without its state; long arrays of a subclass count as state."""
    arrays = {name for name, value in vars(optimizer).items() if isinstance(value, np.ndarray) and value.size > _LONG}
    return _values(optimizer, _NOT_SET | arrays)


def stateful(callbacks: Iterable[Callback]) -> dict[str, Callback]:
    """The callbacks that have a state, by class name, numbered from the second of a class on."""
    kept = [callback for callback in callbacks if type(callback).state is not Callback.state]
    return dict(zip(numbered(type(callback).__name__ for callback in kept), kept, strict=True))


def numbered(names: Iterable[str]) -> list[str]:
    """The names, numbered from the second occurrence on."""
    seen = list[str]()
    for name in names:
        again = sum(other.split(" ")[0] == name for other in seen)
        seen.append(f"{name} {again + 1}" if again else name)
    return seen


def refuse_others(kept: Print, later: Iterable[Print], here: Print, path: Any) -> None:
    """Raise StateError, naming what differs between the run of a checkpoint, `kept`, and the one that resumes it.

    later: what may change while training, as it was later in that run: `here` may have that (in the same process) as well as
    what the run began with (in a new one).
    """
    if "kernels" not in kept:  # earlier versions did not store them
        here = {part: value for part, value in here.items() if part != "kernels"}
    for now in later:
        here = here | {part: kept[part] for part, value in now.items() if part in kept and here[part] == value}
    different = [_told(*difference) for difference in _differences(kept, here)]
    if different:
        more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        shown = "; ".join(different[:_SHOWN]) + more
        raise StateError(
            f"the checkpoint in {shortened(str(path))} is of another run: {shown}; without resume=True a new run begins"
        )


def _told(name: str, kept: Any, here: Any) -> str:
    text = f"{name} was {shortened(kept)}, is {shortened(here)}"
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def refuse_other_ranks(trainer: Training, source: Any, **settings: Any) -> None:
    """Raise StateError, naming a process and what differs, where another process trains something else."""
    ranks, model, communicator = trainer.ranks, trainer.model, trainer.communicator
    if communicator is None:
        return
    every = ranks.gather(
        _as_json(
            {
                "model": _architecture(model),
                "kernels": model.kernels,
                "the number of samples": len(source) if hasattr(source, "__len__") else None,
                "the checksum of labels and weights": _checksum(source),
                "augmentations": [_values(augmentation) for augmentation in getattr(source, "augmentations", ())],
                "epochs, steps and passes so far": [trainer.epochs, trainer.steps, model.passes],
                "loss": _values(trainer.loss),
                "metrics": [metric.name for metric in trainer.metrics],
                "deterministic of the communicator": communicator.deterministic,
                "sync_batch_norm of the communicator": communicator.sync_batch_norm,
                **changing(trainer),
                "fit": settings,
            }
        )
    )
    for rank, theirs in enumerate(every):
        for part in theirs:
            for name, first, other in _differences(every[0][part], theirs[part], part):
                values = f"{shortened(other)} and {shortened(first)}"
                raise StateError(f"rank {rank} of {ranks.size} and rank 0 differ in {name}: {values}")


def _architecture(model: Sequential) -> Any:
    try:
        return describe(model)
    except StateError:  # a custom layer that cannot be saved
        layers = [type(step.layer).__name__ for run in model.plan.training for step in run.steps]
        values = {**model.named_params(), **model.named_buffers()}
        return {"layers": layers, "shapes": {name: value.shape for name, value in values.items()}, "seed": model.seed}


def _checksum(source: Any) -> int:
    """Of the labels and weights that are in memory, all of which each process has."""
    arrays = [getattr(source, name, None) for name in ("labels", "weights")]
    return zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays if isinstance(array, np.ndarray)))


def _differences(kept: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs, by its path, and both values."""
    if isinstance(kept, dict) and isinstance(here, dict):
        for key in sorted(kept.keys() | here.keys()):
            yield from _differences(kept.get(key), here.get(key), ".".join(filter(None, (name, key))))
    elif isinstance(kept, list) and isinstance(here, list) and len(kept) == len(here):
        for i, (a, b) in enumerate(zip(kept, here, strict=True)):
            yield from _differences(a, b, f"{name}[{i}]")
    elif kept != here:
        yield name, kept, here


def _as_json(value: Print) -> Print:
    """The value as it is after a round trip through JSON."""
    return dict(json.loads(json.dumps(value)))


def _values(thing: Any, without: Container[str] = (), depth: int = 3) -> Print:
    """The class and the values of an object, those of objects inside it to a certain depth."""
    values = {name: value for name, value in vars(thing).items() if name not in without}
    prints = {name: _schedule(value) if name == "learning_rate" else _plain(value, depth) for name, value in values.items()}
    return {"class": type(thing).__name__, **prints}


def _plain(value: Any, depth: int = 3) -> Any:
    """The value as JSON: of functions and objects without values only the name, never an address."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(v, depth) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(v, depth)) for v in value)
    if isinstance(value, Layer):
        return describe(value)
    if hasattr(value, "__name__"):
        return value.__name__
    return _values(value, depth=depth - 1) if depth and hasattr(value, "__dict__") else type(value).__name__


def _schedule(rate: Any) -> Any:
    """Schedules of `nn.schedules` and objects by their fields, functions by sampled values."""
    if is_dataclass(rate):
        return {"class": type(rate).__name__, **{name: _schedule(value) for name, value in vars(rate).items()}}
    is_function = callable(rate) and (hasattr(rate, "__name__") or not getattr(rate, "__dict__", None))
    return [_sample(rate, step) for step in _SAMPLED] if is_function else _plain(rate)


def _sample(schedule: Any, step: int) -> float | None:
    try:
        return float(schedule(step))
    except Exception:  # past the end of a table
        return None


def _data(source: Any) -> Print:
    """The length of a data set, its augmentations, and the hash of all values."""
    if not hasattr(source, "digest"):
        return {"kind": type(source).__name__}
    augmentations = [_values(augmentation) for augmentation in source.augmentations]
    return {"samples": len(source), "augmentations": augmentations, "sha256": source.digest()}
