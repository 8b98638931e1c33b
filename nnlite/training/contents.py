"""What a checkpoint holds of a trainer: collecting and restoring it, and converting what earlier versions wrote."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnlite.arguments import as_call
from nnlite.errors import FileError
from nnlite.metrics import Metric
from nnlite.state import Arrays, Stateful, faults_of_the_file, is_stateful, pack, state_of, unpack
from nnlite.training.fingerprint import Print, changing, numbered, stateful
from nnlite.training.history import History
from nnlite.training.hooks import Training

FORMAT = 3


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
        "metrics": {m.name: _counts_of(m, arrays) for m in trainer.metrics if in_an_epoch},
        "callbacks": {name: _packed(callback, f"callback {name}", arrays) for name, callback in callbacks.items()},
        "source": _packed(source, "source", arrays) if is_stateful(source) else None,
        "history": dict(trainer.history),
    }
    return arrays, description


def _counts_of(metric: Metric, arrays: Arrays) -> dict[str, Any]:
    return {"metric": as_call(metric), "state": _packed(metric, f"metric {metric.name}", arrays)}


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
