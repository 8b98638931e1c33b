"""Checkpoints: all that training needs to resume with the same bits, one file each.

A checkpoint is a safetensors file, `step-<steps>.safetensors`: parameters, buffers and the arrays of the optimiser, callbacks,
metrics and the source of batches as tensors, the rest as JSON in the metadata key `nnlite`, with a digest of both.
`best.safetensors` is the model after the best epoch (by default the one with the lowest validation loss), as
`Sequential.save` writes it.
"""

import itertools
import json
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from nnlite.arguments import as_call, shortened, whole
from nnlite.atomic import shown, write_whole
from nnlite.errors import FileError
from nnlite.metrics import Metric
from nnlite.model import Sequential
from nnlite.serialize import read_tensors
from nnlite.state import Arrays, Stateful, faults_of_the_file, is_stateful, pack, state_of, unpack
from nnlite.training.fingerprint import Print, changing, numbered, stateful
from nnlite.training.history import History
from nnlite.training.hooks import Training

FORMAT = 3
LOGGED = "logged.txt"  # beside the checkpoints: how far a run is in its logs


class Folder:
    """The checkpoints in a folder, the last `keep` of them, and the best model."""

    def __init__(self, path: str | PathLike[str], keep: int) -> None:
        self.path, self.keep = Path(path), int(whole("keep", keep, 1))

    def save(self, steps: int, arrays: Arrays, description: dict[str, Any], best: Sequential | None = None) -> None:
        """Write a checkpoint, and the model if it is the best so far.

        If that fails (a full disk), warn and leave the older ones as they are.
        """
        from safetensors.numpy import save

        text = json.dumps({"format": FORMAT, **description})
        metadata = {"nnlite": json.dumps({"digest": _digest(arrays, text), "state": text})}
        data = save(arrays, metadata)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if best is not None:  # first: the checkpoint refers to it
                best.save(self.path / "best.safetensors")
            write_whole(self.path / f"step-{steps:09d}.safetensors", data)
        except OSError as error:
            last = self.files()[-1:]
            left = f"the last one is {last[0].name}" if last else "there is none yet"
            warnings.warn(
                f"no checkpoint could be written to {shown(self.path)}: {error}; {left}", RuntimeWarning, stacklevel=2
            )
            return
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def check(self) -> None:
        """Make the folder; raise FileError where nothing can be written there."""
        import tempfile

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            why = "it is a file" if self.path.is_file() else shortened(error)
            raise FileError(f"no checkpoints can be written to the folder {shortened(str(self.path))}: {why}") from error

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest intact checkpoint, or None if there is none; raises FileError where all are damaged."""
        for stray in (*self.path.glob(".step-*"), *self.path.glob(".best.*")):  # partly written when the process was killed
            stray.unlink(missing_ok=True)
        files = self.files()
        for path in reversed(files):
            try:
                return read(path)
            except FileError as error:
                warnings.warn(f"{error}: trying the one before it", RuntimeWarning, stacklevel=2)
        if files:
            raise FileError(f"none of the {len(files)} checkpoints in {shown(self.path)} can be read")
        return None

    def set_aside(self) -> Path:
        """Move the checkpoints and the best model to a new folder inside this one, whose path is returned."""
        aside = next(path for n in itertools.count(1) if not (path := self.path / f"earlier-{n}").exists())
        aside.mkdir()
        for file in (*self.files(), *self.path.glob("best.safetensors"), *self.path.glob(LOGGED)):
            file.rename(aside / file.name)
        return aside

    def files(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        return sorted(self.path.glob("step-*.safetensors"))


def read(path: str | PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """A checkpoint's tensors and description; raises FileError for a damaged file and for unknown formats."""
    arrays, whole = read_tensors(path, "a checkpoint")
    try:
        digest, text = whole["digest"], whole["state"]
        if digest != _digest(arrays, text):
            raise FileError(f"{shown(path)}: the checkpoint is damaged: its digest does not fit")
        description: dict[str, Any] = json.loads(text)
        return arrays, in_present_format(arrays, description)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{shown(path)}: not a checkpoint, or damaged: {shortened(error)}") from error


def _digest(arrays: Arrays, text: str) -> str:
    import hashlib

    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# ---- what it holds of a trainer


def capture(trainer: Training, source: Any, progress: dict[str, Any], fingerprint: Print) -> tuple[Arrays, dict[str, Any]]:
    """Everything, as host arrays and JSON. progress: the position in the current epoch."""
    model, to_host = trainer.model, trainer.model.backend.to_host
    arrays: Arrays = {"params": to_host(model.params).copy(), "buffers": to_host(model.buffers).copy()}
    callbacks, in_an_epoch = stateful(trainer.callbacks), progress["counts"] is not None
    description = {
        "fingerprint": fingerprint,
        "now": changing(trainer),
        "progress": progress,
        "epochs": trainer.epochs,
        "steps": trainer.steps,
        "passes": model.passes,
        "optimizer": _packed(trainer.optimizer, "optimizer", arrays),
        "metrics": {
            metric.name: {"metric": as_call(metric), "state": _packed(metric, f"metric {metric.name}", arrays)}
            for metric in trainer.metrics
            if in_an_epoch
        },
        "callbacks": {name: _packed(callback, f"callback {name}", arrays) for name, callback in callbacks.items()},
        "source": _packed(source, "source", arrays) if is_stateful(source) else None,
        "history": dict(trainer.history),
    }
    return arrays, description


def _packed(thing: Stateful, name: str, arrays: Arrays) -> Any:
    return pack(state_of(thing), name, arrays)


def refuse_what_cannot_be_kept(trainer: Training, source: Any) -> None:
    """Raise StateError, naming it, for a state that a checkpoint cannot store."""
    things = [trainer.optimizer, *trainer.metrics, *stateful(trainer.callbacks).values()]
    for thing in [*things, source] if is_stateful(source) else things:
        state_of(thing)


@faults_of_the_file()
def restore_callbacks(trainer: Training, arrays: Arrays, description: Mapping[str, Any]) -> None:
    """Restore the callbacks' states. Raises FileError where they do not fit."""
    for name, callback in stateful(trainer.callbacks).items():
        if name in description["callbacks"]:
            callback.load_state(unpack(description["callbacks"][name], arrays, trainer.model.backend.asarray))


@faults_of_the_file()
def restore(trainer: Training, source: Any, arrays: Arrays, description: Mapping[str, Any]) -> dict[str, Any]:
    """Restore everything except the callbacks' states and return the progress. FileError if it does not fit this trainer."""
    model, progress = trainer.model, dict(description["progress"])
    for name, vector in (("params", model.params), ("buffers", model.buffers)):
        if arrays[name].shape != vector.shape:
            raise FileError(f"the checkpoint has {name} of shape {arrays[name].shape}, the model {vector.shape}")
    history = {str(name): [float(value) for value in column] for name, column in description["history"].items()}
    epochs, steps, passes = (int(description[name]) for name in ("epochs", "steps", "passes"))
    model.restore((arrays["params"], arrays["buffers"]))
    model.passes = passes
    model.set_frozen({name for name, is_frozen in description["now"]["frozen"].items() if is_frozen})
    trainer.optimizer.load_state(unpack(description["optimizer"], arrays, np.asarray))
    if progress["counts"] is not None:
        progress["counts"]["partial"] += _restore_metrics(trainer.metrics, description["metrics"], arrays)
    if is_stateful(source) and description["source"] is not None:
        source.load_state(unpack(description["source"], arrays, np.asarray))
    trainer.epochs, trainer.steps, trainer.history = epochs, steps, History(history)
    return progress


def _restore_metrics(metrics: list[Metric], kept: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """They count on the host. Returns the names of those that are new in the middle of the epoch."""
    new = []
    for metric in metrics:
        counts = kept.get(metric.name)
        if counts is None or counts["metric"] not in (as_call(metric), None):
            metric.reset()
            new.append(metric.name)
        else:
            metric.load_state(unpack(counts["state"], arrays, np.asarray))
    return new


# ---- formats of earlier versions


def in_present_format(arrays: Arrays, description: dict[str, Any]) -> dict[str, Any]:
    """The description as this version writes it. Raises ValueError for an unknown format."""
    if description["format"] not in (2, FORMAT):
        raise ValueError(f"format {description['format']}, this nnlite reads formats 2 and {FORMAT}")
    return description if description["format"] == FORMAT else _from_format_2(arrays, description)


def _from_format_2(arrays: Arrays, old: dict[str, Any]) -> dict[str, Any]:
    """Format 2 stored metrics and callbacks in lists, and an optimiser's numbers separately from its vectors."""
    prints, counts = old["fingerprint"], old["progress"]["counts"]
    states = [(name, state) for name, state in zip(prints["callbacks"], old["callbacks"], strict=True) if state]
    callbacks = dict(zip(numbered(name for name, _ in states), (state for _, state in states), strict=True))
    metrics = zip(prints["metrics"], old["metrics"], strict=True)
    known = {name: value for name, value in prints.items() if name != "metrics"}
    return old | {
        "fingerprint": known | {"callbacks": {name: {} for name in callbacks}, "steps_per_epoch": None},
        "now": {"frozen": dict.fromkeys(old["frozen"], True), "optimizer": old["optimizer"]},
        "progress": old["progress"]
        | {"counts": counts and counts | {"partial": [], "complete": False}}
        | {"stopped": old["progress"]["stopped"] and "EarlyStopping" not in callbacks},  # which stores that itself now
        "optimizer": _optimizer(arrays, old["numbers"]),
        "metrics": {name: {"metric": None, "state": _packed_from_2(state)} for name, state in metrics},
        "callbacks": {name: _packed_from_2(state) for name, state in callbacks.items()},
        "source": None,
    }


def _optimizer(arrays: Arrays, numbers: dict[str, Any]) -> dict[str, Any]:
    def state(name: str, values: dict[str, Any]) -> dict[str, Any]:
        begin = f"optimizer {name} "
        vectors = {key.removeprefix(begin): {"array": key} for key in arrays if key.startswith(begin)}
        plain = {key: {"tuple": value} if isinstance(value, list) else value for key, value in values.items()}
        return {"dict": plain | {"state_vectors": {"dict": vectors}, "missed": {"dict": {}}}}

    groups = {name: state(name, values) for name, values in numbers.items() if name}
    return {"dict": numbers[""] | {"groups": {"dict": groups}}} if groups else state("", numbers[""])


def _packed_from_2(value: Any) -> Any:
    if isinstance(value, list):
        return {"list": [_packed_from_2(v) for v in value]}
    if isinstance(value, dict) and value.keys() != {"array"}:
        return {"dict": {key: _packed_from_2(v) for key, v in value.items()}}
    return value


def known_to(description: dict[str, Any], here: Print) -> Print:
    """The fingerprint of a run, without the entries that the version that wrote the description did not record."""
    if description["format"] == FORMAT:
        return here
    known: Print = _known_in(description["fingerprint"], here)
    return known | {"callbacks": {name: {} for name in here["callbacks"]}}


def _known_in(kept: Any, here: Any) -> Any:
    if isinstance(kept, dict) and isinstance(here, dict):
        return {key: _known_in(kept[key], value) for key, value in here.items() if key in kept}
    if isinstance(kept, list) and isinstance(here, list) and len(kept) == len(here):
        return [_known_in(*both) for both in zip(kept, here, strict=True)]
    return here
