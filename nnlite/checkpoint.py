"""Checkpoints: all that training needs to go on to the same bits, one file each.

A checkpoint is a safetensors file, `step-<steps>.safetensors`: parameters, buffers and the arrays of the optimiser, callbacks,
metrics and the source of batches as tensors, the rest as JSON in the metadata key `nnlite`, with a digest of both.
`best.safetensors` is the model after the best epoch (the one with the lowest validation loss, if nothing else is asked for), as
`Sequential.save` writes it.
"""

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlite.arguments import as_call, shortened, whole
from nnlite.atomic import shown, write_whole
from nnlite.errors import FileError, NNLiteError
from nnlite.fingerprint import Print, changing, stateful
from nnlite.formats import FORMAT, in_present_format
from nnlite.history import History
from nnlite.serialize import read_tensors
from nnlite.state import Arrays, pack, refuse_unkeepable, unpack

if TYPE_CHECKING:
    from nnlite.metrics import Metric
    from nnlite.model import Sequential
    from nnlite.train import Trainer


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
        """The newest checkpoint that is whole, or None where there is none; raises FileError where all are damaged."""
        for stray in (*self.path.glob(".step-*"), *self.path.glob(".best.*")):  # half written when the process was killed
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


# ---- what is kept of a trainer


def capture(trainer: "Trainer", source: Any, progress: dict[str, Any], fingerprint: Print) -> tuple[Arrays, dict[str, Any]]:
    """Everything, as host arrays and JSON. progress: where in which epoch training stands."""
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
        "metrics": {m.name: _counts_of(m, arrays) for m in trainer.metrics if in_an_epoch},
        "callbacks": {name: _packed(callback, f"callback {name}", arrays) for name, callback in callbacks.items()},
        "source": _packed(source, "source", arrays) if keeps_its_place(source) else None,
        "history": dict(trainer.history),
    }
    return arrays, description


def _counts_of(metric: "Metric", arrays: Arrays) -> dict[str, Any]:
    return {"metric": as_call(metric), "state": _packed(metric, f"metric {metric.name}", arrays)}


def _packed(thing: Any, name: str, arrays: Arrays) -> Any:
    return pack(_state_of(thing), name, arrays)


def _state_of(thing: Any) -> Any:
    state = thing.state()
    refuse_unkeepable(state, f"the state of {shortened(thing)}")
    return state


def refuse_what_cannot_be_kept(trainer: "Trainer", source: Any) -> None:
    """Raise StateError, naming it, for a state that holds what no checkpoint can keep."""
    things = [trainer.optimizer, *trainer.metrics, *stateful(trainer.callbacks).values()]
    for thing in [*things, source] if keeps_its_place(source) else things:
        _state_of(thing)


def keeps_its_place(source: Any) -> bool:
    """Whether a source of batches of the user's own says by `state` where it is, and goes on from there by `load_state`."""
    return callable(getattr(source, "state", None)) and callable(getattr(source, "load_state", None))


def restore(trainer: "Trainer", source: Any, arrays: Arrays, description: Mapping[str, Any]) -> dict[str, Any]:
    """Put everything back but the callbacks' states; returns the progress. FileError where it does not fit this trainer."""
    with faults_of_the_file():
        return _restore(trainer, source, arrays, description)


def restore_callbacks(trainer: "Trainer", arrays: Arrays, description: Mapping[str, Any]) -> None:
    """Put the callbacks' states back. Raises FileError where they do not fit."""
    with faults_of_the_file():
        for name, callback in stateful(trainer.callbacks).items():
            if name in description["callbacks"]:
                callback.load_state(unpack(description["callbacks"][name], arrays, trainer.model.backend.asarray))


@contextmanager
def faults_of_the_file() -> Iterator[None]:
    """A description from anywhere can hold anything, and what it leads to is the file's fault."""
    try:
        yield
    except NNLiteError:
        raise
    except Exception as error:
        raise FileError(f"the checkpoint does not fit this trainer: {shortened(error)}") from error


def _restore(trainer: "Trainer", source: Any, arrays: Arrays, description: Mapping[str, Any]) -> dict[str, Any]:
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
    if keeps_its_place(source) and description["source"] is not None:
        source.load_state(unpack(description["source"], arrays, np.asarray))
    trainer.epochs, trainer.steps, trainer.history = epochs, steps, History(history)
    return progress


def _restore_metrics(metrics: "list[Metric]", kept: Mapping[str, Any], arrays: Arrays) -> list[str]:
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
