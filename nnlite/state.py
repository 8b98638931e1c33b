"""What a checkpoint keeps of an optimiser, a metric, a callback, a source of batches or an unfinished epoch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol, TypeGuard

import numpy as np

from nnlite.arguments import shortened
from nnlite.backend import backend_of
from nnlite.errors import FileError, NNLiteError, StateError

Arrays = dict[str, Any]


class Stateful(Protocol):
    """An object with a state: numbers, text, None, arrays, and lists, tuples and dicts with text keys of these."""

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


def is_stateful(thing: Any) -> TypeGuard[Stateful]:
    """Whether it has both methods: a custom source of batches may save its position and resume from it."""
    return callable(getattr(thing, "state", None)) and callable(getattr(thing, "load_state", None))


def state_of(thing: Stateful) -> dict[str, Any]:
    """Its state; raises StateError, naming the value, for what no checkpoint can keep."""
    state = thing.state()
    refuse_unkeepable(state, f"the state of {shortened(thing)}")
    return state


@contextmanager
def faults_of_the_file() -> Iterator[None]:
    """Raise FileError for errors from a state that was read from a file, which can hold anything."""
    try:
        yield
    except NNLiteError:
        raise
    except Exception as error:
        raise FileError(f"the checkpoint does not fit this trainer: {shortened(error)}") from error


def attributes(thing: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The attributes of an object, as its state, except functions, schedules and modules.

    Raises StateError, naming it, for one that a checkpoint cannot keep.
    """
    state = {
        name: v for name, v in vars(thing).items() if name not in without and not callable(v) and type(v) is not ModuleType
    }
    for name, value in state.items():
        refuse_unkeepable(value, f"the attribute {shortened(name)} of {shortened(thing)}")
    return state


def refuse_unkeepable(value: Any, name: str) -> None:
    """Raise StateError for a value that a checkpoint cannot keep."""
    wrong = _unkeepable(value)
    if wrong:
        raise StateError(
            f"{name} is or holds {wrong}, which no checkpoint can keep: write state() and load_state(state), where the state "
            "is a dict of numbers, text, arrays, and lists, tuples and dicts by text of them"
        )


def _unkeepable(value: Any) -> str:
    """A description of what in a value cannot be kept, or nothing."""
    kind = type(value)
    if kind in (list, tuple):
        return next(filter(None, map(_unkeepable, value)), "")
    if kind is dict:
        strange = [key for key in value if type(key) is not str]
        return f"a dict with the key {shortened(strange[0])}" if strange else _unkeepable(list(value.values()))
    if value is None or kind in (bool, int, float, str) or _is_array(value):
        return ""
    return shortened(value) if hasattr(value, "dtype") else f"a {kind.__name__}"


def _is_array(value: Any) -> bool:
    """Whether it is an array or a NumPy scalar, and nothing more than numbers."""
    is_array = type(value) is np.ndarray or isinstance(value, np.generic) or hasattr(value, "__cuda_array_interface__")
    return is_array and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8


def pack(value: Any, name: str, arrays: Arrays) -> Any:
    """The value in a form that JSON can hold; its arrays are copied into `arrays`, under names that begin with `name`."""
    if isinstance(value, dict):
        return {"dict": {key: pack(v, name, arrays) for key, v in value.items()}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [pack(v, name, arrays) for v in value]}
    if isinstance(value, np.generic):
        return {"number": [value.dtype.name, value.item()]}
    if _is_array(value):
        host = backend_of(value).to_host(value)
        if host is not value and host.ndim == 0:  # a device's number becomes a host number, which adds to either kind
            return pack(host[()], name, arrays)
        place = f"{name} {len(arrays)}"
        arrays[place] = np.array(host, host.dtype.newbyteorder("="), order="C")  # safetensors writes the bytes as they are
        return {"array": place}
    return value


def unpack(value: Any, arrays: Arrays, asarray: Any) -> Any:
    """The reverse of `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return asarray(arrays[content])
    if kind == "number":
        return np.dtype(content[0]).type(content[1])
    if kind == "dict":
        return {key: unpack(v, arrays, asarray) for key, v in content.items()}
    values = [unpack(v, arrays, asarray) for v in content]
    return tuple(values) if kind == "tuple" else values
