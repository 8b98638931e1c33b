"""Checkpoints: all that training needs to go on to the same bits, one file each.

A checkpoint is a safetensors file, `step-<steps>.safetensors`: parameters, buffers, the optimiser's state and the arrays of
callbacks as tensors, the rest as JSON in the metadata key `nnlite`, with a digest of both. `best.safetensors` is the model
after the epoch with the lowest validation loss (without validation: training loss), as `Sequential.save` writes it.
"""

import itertools
import json
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.errors import FileError, StateError
from nnlite.serialize import describe, read_tensors, write_whole

if TYPE_CHECKING:
    from nnlite.model import Sequential
    from nnlite.train import Trainer

FORMAT = 1
Arrays = dict[str, Any]
_SAMPLED = (0, 1, 10, 100, 1_000, 10_000, 100_000)  # steps at which schedules without a name are compared


class Folder:
    """The checkpoints in a folder, the last `keep` of them, and the best model."""

    def __init__(self, path: str | PathLike[str], keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.path, self.keep = Path(path), keep

    def save(self, steps: int, arrays: Arrays, description: dict[str, Any], best: "Sequential | None" = None) -> None:
        """Write a checkpoint, and a model that is the best so far.

        Where that fails (a full disk), say so and leave the older ones as they are.
        """
        from safetensors.numpy import save

        text = json.dumps({"format": FORMAT, **description})
        metadata = {"nnlite": json.dumps({"digest": _digest(arrays, text), "state": text})}
        data = save(arrays, metadata)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if best is not None:  # first: the checkpoint says that it is there
                best.save(self.path / "best.safetensors")
            write_whole(self.path / f"step-{steps:09d}.safetensors", data)
        except OSError as error:
            last = self.files()[-1:]
            left = f"the last one is {last[0].name}" if last else "there is none yet"
            warnings.warn(f"no checkpoint could be written to {self.path}: {error}; {left}", RuntimeWarning, stacklevel=2)
            return
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None where there is none; raises FileError where all are damaged."""
        for stray in self.path.glob(".step-*"):  # half written when the process was killed
            stray.unlink(missing_ok=True)
        files = self.files()
        for path in reversed(files):
            try:
                return read(path)
            except FileError as error:
                warnings.warn(f"{error}: trying the one before it", RuntimeWarning, stacklevel=2)
        if files:
            raise FileError(f"none of the {len(files)} checkpoints in {self.path} can be read")
        return None

    def set_aside(self) -> Path:
        """Move the checkpoints and the best model to a new folder inside this one, whose path is returned."""
        aside = next(path for n in itertools.count(1) if not (path := self.path / f"earlier-{n}").exists())
        aside.mkdir()
        for file in (*self.files(), *self.path.glob("best.safetensors")):
            file.rename(aside / file.name)
        return aside

    def files(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(self.path.glob("step-*.safetensors"))


def read(path: str | PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """A checkpoint's tensors and description; raises FileError for a damaged file and for other formats."""
    arrays, whole = read_tensors(path, "a checkpoint")
    try:
        digest, text = whole["digest"], whole["state"]
        if digest != _digest(arrays, text):
            raise FileError(f"{path}: the checkpoint is damaged: its digest does not fit")
        description: dict[str, Any] = json.loads(text)
        if description["format"] != FORMAT:
            raise FileError(f"{path}: format {description['format']}, this nnlite reads format {FORMAT}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: not a checkpoint, or damaged: {error!r}") from error
    return arrays, description


def _digest(arrays: Arrays, text: str) -> str:
    import hashlib

    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# ---- what is kept of a trainer


def capture(trainer: "Trainer", progress: dict[str, Any], fingerprint: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Everything, as host arrays and JSON. progress: where in which epoch training stands."""
    model, to_host = trainer.model, trainer.model.backend.to_host
    arrays: Arrays = {"params": to_host(model.params).copy(), "buffers": to_host(model.buffers).copy()}
    optimizers = {}
    for name, optimizer in _optimizers(trainer.optimizer).items():
        optimizers[name] = optimizer.steps
        arrays |= {f"optimizer {name} {key}": to_host(vector).copy() for key, vector in optimizer.state.items()}
    callbacks = [_take_out(c.state(), f"callback {i}", arrays, to_host) for i, c in enumerate(trainer.callbacks)]
    description = {
        "fingerprint": fingerprint,
        "progress": progress,
        "epochs": trainer.epochs,
        "steps": trainer.steps,
        "passes": model.passes,
        "frozen": sorted(slot.name for slot in model.vectors.trained if slot.frozen),
        "optimizers": optimizers,
        "metrics": [metric.state() for metric in trainer.metrics],
        "callbacks": callbacks,
        "history": dict(trainer.history),
    }
    return arrays, description


def restore(trainer: "Trainer", arrays: Arrays, description: dict[str, Any]) -> dict[str, Any]:
    """Put everything back; returns the progress. Raises FileError where it does not fit this trainer."""
    try:
        return _restore(trainer, arrays, description)
    except FileError:
        raise
    except Exception as error:  # a description from anywhere can hold anything
        raise FileError(f"the checkpoint does not fit this trainer: {error!r}") from error


def _restore(trainer: "Trainer", arrays: Arrays, description: dict[str, Any]) -> dict[str, Any]:
    from nnlite.history import History

    model = trainer.model
    for name, vector in (("params", model.params), ("buffers", model.buffers)):
        if arrays[name].shape != vector.shape:
            raise FileError(f"the checkpoint has {name} of shape {arrays[name].shape}, the model {vector.shape}")
    history = {str(name): [float(value) for value in column] for name, column in description["history"].items()}
    epochs, steps, passes = (int(description[name]) for name in ("epochs", "steps", "passes"))
    model.restore((arrays["params"], arrays["buffers"]))
    model.passes = passes
    if len(model.params):
        model.unfreeze("*")
    for name in description["frozen"]:
        model.freeze(name)
    for name, optimizer in _optimizers(trainer.optimizer).items():
        optimizer.steps, start = int(description["optimizers"][name]), f"optimizer {name} "
        optimizer.state = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
    for metric, state in zip(trainer.metrics, description["metrics"], strict=True):
        metric.load_state(state)
    for callback, state in zip(trainer.callbacks, description["callbacks"], strict=True):
        callback.load_state(_put_in(state, arrays, model.backend.asarray))
    trainer.epochs, trainer.steps, trainer.history = epochs, steps, History(history)
    progress: dict[str, Any] = description["progress"]
    return progress


def _optimizers(optimizer: Any) -> dict[str, Any]:
    """One optimiser, or those of groups by their patterns."""
    groups: dict[str, Any] = getattr(optimizer, "groups", {"": optimizer})
    return groups


def _take_out(value: Any, name: str, arrays: Arrays, to_host: Any) -> Any:
    """`value` with its arrays replaced by references to `arrays`, where they are put."""
    if isinstance(value, dict):
        return {key: _take_out(v, f"{name} {key}", arrays, to_host) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out(v, f"{name} {i}", arrays, to_host) for i, v in enumerate(value)]
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        arrays[name] = np.array(to_host(value))
        return {"array": name}
    return value


def _put_in(value: Any, arrays: Arrays, asarray: Any) -> Any:
    """The reverse."""
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return asarray(arrays[value["array"]])
        return {key: _put_in(v, arrays, asarray) for key, v in value.items()}
    return [_put_in(v, arrays, asarray) for v in value] if isinstance(value, list) else value


# ---- what must be the same to go on


def fingerprint(trainer: "Trainer", source: Any, **settings: Any) -> dict[str, Any]:
    """What the bits of a run follow from: architecture, optimiser, loss, data, settings."""
    optimizers = {name: _values(o, {"steps", "state", "_model"}) for name, o in _optimizers(trainer.optimizer).items()}
    prints = {
        "model": describe(trainer.model),
        "optimizer": optimizers,
        "clip_norm": getattr(trainer.optimizer, "clip_norm", None),
        "loss": _values(trainer.loss),
        "metrics": [metric.name for metric in trainer.metrics],
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "data": _data(source),
        **settings,
    }
    whole: dict[str, Any] = json.loads(json.dumps(prints))
    return whole


def refuse_others(kept: dict[str, Any], here: dict[str, Any], path: Any) -> None:
    """Raise StateError, naming what differs."""
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


def _values(thing: Any, without: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """The class and the values of an object."""
    values = {name: _plain(value) for name, value in vars(thing).items() if name not in without}
    return {"class": type(thing).__name__, **values}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "_asdict") or isinstance(value, np.generic):  # the schedules of nn.schedules
        return repr(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if callable(value) and not vars(value):
        return [float(value(step)) for step in _SAMPLED]
    return _values(value)


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


# ---- Ctrl-C and SIGTERM


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are put into the list that this gives; when the block ends, the first takes its usual course.

    A second one takes it at once. Does nothing on threads other than the main one, which alone receives signals.
    """
    received = list[int]()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    usual: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        if received:
            signal.signal(number, usual[number])
            signal.raise_signal(number)
        received.append(number)

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        usual[number] = signal.signal(number, hold)
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
