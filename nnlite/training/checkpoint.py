"""Checkpoints: all that training needs to resume with the same bits, one file each.

A checkpoint is a safetensors file, `step-<steps>.safetensors`: parameters, buffers and the arrays of the optimiser, callbacks,
metrics and the source of batches as tensors, the rest as JSON in the metadata key `nnlite`, with a digest of both.
`best.safetensors` is the model after the best epoch (by default the one with the lowest validation loss), as
`Sequential.save` writes it.
"""

import itertools
import json
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from nnlite.arguments import shortened, whole
from nnlite.atomic import shown, write_whole
from nnlite.errors import FileError
from nnlite.model import Sequential
from nnlite.serialize import read_tensors
from nnlite.state import Arrays
from nnlite.training.contents import FORMAT, in_present_format


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
        for file in (*self.files(), *self.path.glob("best.safetensors")):
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
