"""Converts checkpoints written by earlier versions to the current format."""

from typing import Any

from nnlite.state import Arrays
from nnlite.training.fingerprint import Print, numbered

FORMAT = 3


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
        "metrics": {name: {"metric": None, "state": _packed(state)} for name, state in metrics},
        "callbacks": {name: _packed(state) for name, state in callbacks.items()},
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


def _packed(value: Any) -> Any:
    if isinstance(value, list):
        return {"list": [_packed(v) for v in value]}
    if isinstance(value, dict) and value.keys() != {"array"}:
        return {"dict": {key: _packed(v) for key, v in value.items()}}
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
