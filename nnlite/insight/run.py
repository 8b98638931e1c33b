"""A run as four files in a folder, which `report` reads: the model, its history, the results of a test, the figures."""

import hashlib
import json
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnlite import __version__
from nnlite.arguments import instance, listing, location, shortened, whole
from nnlite.atomic import shown, write_whole
from nnlite.backend import get_num_threads, usable_cores
from nnlite.backend.native.loader import processor
from nnlite.errors import DataError, FileError
from nnlite.files import load
from nnlite.insight.values import as_classes, as_pictures, mistakes, refuse_nan, two_columns
from nnlite.layers.base import Layer
from nnlite.metrics import ConfusionMatrix
from nnlite.metrics.base import to_host
from nnlite.model import Sequential
from nnlite.serialize import read_tensors
from nnlite.state import Arrays
from nnlite.tools.profile import measure
from nnlite.training.history import History
from nnlite.training.sources import as_source
from nnlite.training.trainer import Trainer

FORMAT = 1
METRICS, HISTORY, MODEL, RESULTS = FILES = "metrics.json", "history.csv", "model.safetensors", "results.safetensors"

_PICTURES = 16  # right ones, and as many wrong ones
_SIDE = 128  # pixels of a picture; of larger ones every second, third, ... pixel is kept
_PASSES = 5  # that are timed


class Run(NamedTuple):
    """What the files of a folder hold.

    matrix: (C, C) the confusion matrix, None where there are no classes   classes: their C names
    images: (K, H, W, 3) or (K, H, W), bytes   labels: (K,)   outputs: (K, C)     of the pictures to show
    profile: the rows of `nn.profile`, the header first, and its last line
    """

    metrics: dict[str, Any]
    history: History
    model: Sequential
    matrix: NDArray[Any] | None
    classes: list[str]
    images: NDArray[Any]
    labels: NDArray[Any]
    outputs: NDArray[Any]
    profile: tuple[list[list[str]], str]


def save_run(
    folder: str | PathLike[str],
    trainer: Trainer,
    test: Any,
    metrics: Mapping[str, Any] | None = None,
    *,
    outputs: Any = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Write what `report` reads of a trained model: model.safetensors, history.csv, results.safetensors, metrics.json.

    test: (x, t) or a `nn.data.Dataset`, with names of classes if it has them. Of classes the confusion matrix is stored, and of
    images those that the report shows.
    metrics: what metrics.json says of the run in addition, such as {"dataset": "cifar10", "epochs": 10, "test_accuracy": 0.7}.
    outputs: the model's outputs for the test data; default: trainer.predict(test).
    batch_size: of the training passes that are timed, layer by layer.
    Returns what is in metrics.json: `metrics`, the hash of the weights, the command, machine, threads, kernels and versions.
    Raises ValueError for metrics that JSON cannot hold, DataError for data without labels, and for outputs and names of classes
    that do not fit, FileError where nothing can be written; StateError for a model that cannot be saved.
    """
    folder, source = Path(location("folder", folder)), as_source(test)
    whole("batch_size", batch_size, 1)
    instance("trainer", trainer, Trainer, "the nn.Trainer of the model")
    own = facts(trainer, instance("metrics", metrics or {}, Mapping, "a dict"))
    text = _as_json(own)
    if not hasattr(source, "labels"):
        raise DataError(f"test must be (x, t) or a nn.data.Dataset, not {shortened(test)}")
    z, classes = to_host(trainer.predict(source) if outputs is None else outputs), getattr(source, "classes", None)
    if z.shape != (len(source), *trainer.model.out_shape):
        raise DataError(f"the outputs must have shape {(len(source), *trainer.model.out_shape)}, not {z.shape}")
    refuse_nan(z)
    names = None if classes is None else as_classes(classes, max(2, z.shape[-1]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"no run can be written to the folder {shown(folder)}: {shortened(error)}") from error
    trainer.model.save(folder / MODEL)
    trainer.history.to_csv(folder / HISTORY)
    arrays = _results(source, z)
    first = source[:batch_size]
    profile = measure(trainer.model, first.images[:], first.labels[:], trainer.loss, passes=_PASSES)
    description = {"format": FORMAT, "nnlite": __version__, "weights": own["weights"], "profile": profile}
    _save_tensors(folder / RESULTS, arrays, description | {"classes": names})
    write_whole(folder / METRICS, text)  # the last one: a run without it is not whole
    return own


def facts(trainer: Trainer, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The given metrics, and what else it takes to train such a model again."""
    processes = trainer.ranks.size
    launcher = ["mpiexec", "-n", str(processes)] if processes > 1 else []
    command = shlex.join([*launcher, Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    return {
        **metrics,
        "threads": get_num_threads(),
        "processes": processes,
        "device": trainer.model.device,
        "kernels": trainer.model.kernels,
        "weights": hash_of_weights(trainer.model),
        "command": "" if hasattr(sys, "ps1") else command,  # none repeats what was typed
        "machine": _machine(),
        "versions": {"nnlite": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def hash_of_weights(model: Sequential) -> str:
    """Of the bits of all trained and kept values: with native kernels the same on every machine."""
    values = (model.backend.to_host(vector).tobytes() for vector in (model.params, model.buffers))
    return hashlib.sha256(b"".join(values)).hexdigest()[:16]


def _machine() -> str:
    """The processor, the cores that this process may use, the system."""
    name = re.search(r"model name\s*: (.*)", processor())
    model = name[1] if name else platform.processor() or platform.machine()
    return f"{model}, {len(usable_cores())} cores, {platform.system()} {platform.machine()}"


def _as_json(metrics: Mapping[str, Any]) -> bytes:
    try:
        return f"{json.dumps(metrics, indent=2)}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metrics must be what JSON can hold, not {shortened(metrics)}: {error}") from error


def _save_tensors(path: Path, arrays: Arrays, description: dict[str, Any]) -> None:
    from safetensors.numpy import save

    write_whole(path, save(arrays, metadata={"nnlite": json.dumps(description)}))


def _results(source: Any, z: Any) -> Arrays:
    """The confusion matrix, if the targets are classes, and some right and wrong pictures, if the samples are images."""
    matrix, t = ConfusionMatrix(), source.labels[:]
    if t.dtype.kind not in "iub":
        return {}
    try:
        matrix.update(z, t, source.weights)
    except DataError:  # whole numbers, but no classes
        return {}
    found = {"matrix": matrix.result()}
    if t.ndim > 1 or source.images.ndim != 4 or source.images.shape[-1] not in (1, 3):
        return found
    z, t = two_columns(z, t)
    right = np.flatnonzero(z.argmax(axis=1) == t)[:_PICTURES]
    picks = np.concatenate([right, mistakes(z, t)[:_PICTURES]])
    images = as_pictures(source[picks].images[:])
    images = images if images.dtype == np.uint8 else (255 * images).astype(np.uint8)
    step = -(-max(images.shape[1:3]) // _SIDE)
    images = np.ascontiguousarray(images[:, ::step, ::step])
    return found | {"images": images, "labels": t[picks], "outputs": z[picks].astype(np.float32)}


# ---- reading


def read_run(folder: str | PathLike[str], layers: Iterable[type[Layer]] = ()) -> Run:
    """The run that `save_run` wrote.  layers: the custom classes of its model, as `nnlite.load` takes them.

    Raises FileError for an address, for a folder in which a file is missing, is damaged, is of another version or of another
    run than the model beside it.
    """
    folder = Path(location("folder", folder))
    if not folder.is_dir():
        raise FileError(f"there is no folder {shown(folder)}")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        are = "is" if len(missing) == 1 else "are"
        raise FileError(f"{shown(folder)} holds no run: {listing(missing)} {are} missing, nn.insight.save_run writes all")
    arrays, description = read_tensors(folder / RESULTS, "the results of a run")
    if description.get("format") != FORMAT:
        found = f"format {shortened(description.get('format'))} of nnlite {shortened(description.get('nnlite'))}"
        raise FileError(f"{shown(folder / RESULTS)}: {found}, nnlite {__version__} reads format {FORMAT}")
    metrics, model = _read_metrics(folder / METRICS), load(folder / MODEL, layers)
    weights = hash_of_weights(model)
    for name, said in ((METRICS, metrics), (RESULTS, description)):
        if said.get("weights") != weights:
            raise FileError(f"{shown(folder / name)} is of another run than {MODEL} beside it: their weights differ")
    try:
        return Run(metrics, History.from_csv(folder / HISTORY), model, *_read_results(arrays, description))
    except FileError:
        raise
    except Exception as error:  # a file can hold anything
        raise FileError(f"{shown(folder / RESULTS)}: not the results of a run, or damaged: {shortened(error)}") from error


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{shown(path)} is damaged: {shortened(error)}") from error
    if not isinstance(metrics, dict) or not isinstance(metrics.get("versions"), dict) or "command" not in metrics:
        raise FileError(f"{shown(path)} is damaged: it holds {shortened(metrics)}, not what nn.insight.save_run wrote")
    return metrics


def _read_results(arrays: Arrays, description: dict[str, Any]) -> tuple[Any, ...]:
    """All of a Run but metrics, history and model; any error means that they do not fit."""
    matrix, (rows, line) = arrays.get("matrix"), description["profile"]
    if not all(re.fullmatch(r"-?[\d.]+%", row[-1]) for row in rows[1:]):
        raise DataError("a profile has no shares")
    profile = [[str(cell) for cell in row] for row in rows], str(line)
    nothing = np.zeros((0, 1, 1), np.uint8), np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
    if matrix is None:
        return None, [], *nothing, profile
    classes = as_classes(description["classes"], len(matrix))
    if "images" not in arrays:
        return matrix, classes, *nothing, profile
    images, (z, t) = as_pictures(arrays["images"]), two_columns(arrays["outputs"], arrays["labels"])
    if not len(images) == len(t) or z.shape[1] != len(matrix) or matrix.shape != (len(matrix), len(matrix)):
        raise DataError(f"{len(images)} pictures, outputs {z.shape}, a matrix {matrix.shape}")
    return matrix, classes, images, t, z, profile
