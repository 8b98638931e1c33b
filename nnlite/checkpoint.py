"""Checkpoints: all that training needs to go on to the same bits, one file each.

A checkpoint is a safetensors file, `step-<steps>.safetensors`: parameters, buffers, the optimiser's state and the arrays of
callbacks and metrics as tensors, the rest as JSON in the metadata key `nnlite`, with a digest of both. `best.safetensors`
is the model after the epoch with the lowest validation loss (without validation: training loss), as `Sequential.save`
writes it.
"""

import itertools
import json
import signal
import threading
import warnings
from collections.abc import Container, Iterator
from dataclasses import is_dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.arguments import whole
from nnlite.backend import backend_of
from nnlite.errors import FileError, StateError
from nnlite.layers.base import Layer
from nnlite.serialize import describe, read_tensors, write_whole

if TYPE_CHECKING:
    from nnlite.model import Sequential
    from nnlite.train import Trainer

FORMAT = 2
Arrays = dict[str, Any]
_NO_NUMBERS = ("state", "groups", "_model")  # of an optimiser
_SAMPLED = (0, 1, 10, 100, 1_000, 10_000, 100_000)  # steps at which schedules without a name are compared


class Folder:
    """The checkpoints in a folder, the last `keep` of them, and the best model."""

    def __init__(self, path: str | PathLike[str], keep: int) -> None:
        self.path, self.keep = Path(path), int(whole("keep", keep, 1))

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
    for name, optimizer in _optimizers(trainer).items():
        state = getattr(optimizer, "state", {})
        arrays |= {f"optimizer {name} {key}": to_host(vector).copy() for key, vector in state.items()}
    callbacks = [_take_out(c.state(), f"callback {i}", arrays) for i, c in enumerate(trainer.callbacks)]
    metrics = [_take_out(m.state(), f"metric {i}", arrays) for i, m in enumerate(trainer.metrics)]
    description = {
        "fingerprint": fingerprint,
        "optimizer": _optimizer_print(trainer),
        "progress": progress,
        "epochs": trainer.epochs,
        "steps": trainer.steps,
        "passes": model.passes,
        "frozen": sorted(slot.name for slot in model.vectors.trained if slot.frozen),
        "numbers": {name: _numbers(optimizer) for name, optimizer in _optimizers(trainer).items()},
        "metrics": metrics,
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
    for name, optimizer in _optimizers(trainer).items():
        for key, value in description["numbers"][name].items():
            vars(optimizer)[key] = tuple(value) if isinstance(value, list) else value
        if hasattr(optimizer, "state"):
            start = f"optimizer {name} "
            optimizer.state = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
    for metric, state in zip(trainer.metrics, description["metrics"], strict=True):
        metric.load_state(_put_in(state, arrays, np.asarray))  # they count on the host
    for callback, state in zip(trainer.callbacks, description["callbacks"], strict=True):
        callback.load_state(_put_in(state, arrays, model.backend.asarray))
    trainer.epochs, trainer.steps, trainer.history = epochs, steps, History(history)
    progress: dict[str, Any] = description["progress"]
    return progress


def _optimizers(trainer: "Trainer") -> dict[str, Any]:
    """The optimiser, and those of its groups by their patterns."""
    return {"": trainer.optimizer, **getattr(trainer.optimizer, "groups", {})}


def _numbers(optimizer: Any) -> dict[str, Any]:
    """Its attributes that are numbers, tuples of them or None: the rate, too, where it is no schedule."""
    values = {name: value for name, value in vars(optimizer).items() if name not in _NO_NUMBERS and not callable(value)}
    return {name: _plain(v) for name, v in values.items() if isinstance(v, int | float | np.generic | tuple | None)}


def _take_out(value: Any, name: str, arrays: Arrays) -> Any:
    """`value` with its arrays replaced by references to `arrays`, where they are put."""
    if isinstance(value, dict):
        return {key: _take_out(v, f"{name} {key}", arrays) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out(v, f"{name} {i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        host = backend_of(value).to_host(value)
        arrays[name] = np.array(host, host.dtype.newbyteorder("="), order="C")  # safetensors writes the bytes as they lie
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
    prints = {
        "model": describe(trainer.model),
        "optimizer": _optimizer_print(trainer),
        "loss": _values(trainer.loss),
        "metrics": [metric.name for metric in trainer.metrics],
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "data": _data(source),
        **settings,
    }
    whole: dict[str, Any] = json.loads(json.dumps(prints))
    return whole


def _optimizer_print(trainer: "Trainer") -> dict[str, Any]:
    return {name: _values(optimizer, {"steps", *_NO_NUMBERS}) for name, optimizer in _optimizers(trainer).items()}


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
    prints = {name: _schedule(value) if name == "learning_rate" else _plain(value, depth) for name, value in values.items()}
    return {"class": type(thing).__name__, **prints}


def _plain(value: Any, depth: int = 3) -> Any:
    """As JSON can hold it: of functions and of what has no values only the name, and never an address."""
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
    """Those of `nn.schedules` and objects by their fields, functions by some of their values."""
    if is_dataclass(rate):
        return {"class": type(rate).__name__, **{name: _schedule(value) for name, value in vars(rate).items()}}
    is_function = callable(rate) and (hasattr(rate, "__name__") or not getattr(rate, "__dict__", None))
    return [_sample(rate, step) for step in _SAMPLED] if is_function else _plain(rate)


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


# ---- Ctrl-C and SIGTERM


class HeldSignals:
    """In a `with` block: Ctrl-C and SIGTERM wait until `let_through`, a second one and the end of the block do not wait.

    Those that are ignored stay so. Does nothing on threads other than the main one, which alone receives signals.
    """

    def __init__(self) -> None:
        self.waiting: int | None = None
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (int(signal.SIGINT), int(signal.SIGTERM)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    self.usual[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        if self.waiting is not None:
            signal.raise_signal(self.waiting)

    def _hold(self, number: int, frame: Any) -> None:
        is_second, self.waiting = self.waiting is not None, number
        if is_second:
            self.let_through()

    def let_through(self) -> None:
        """The signal that waits takes its usual course. That ends training, except where a user's own handler returns."""
        number, self.waiting = self.waiting, None
        if number is not None:
            signal.signal(number, self.usual[number])
            signal.raise_signal(number)
            signal.signal(number, self._hold)
