"""Arguments: one check for each kind, and how they are shown.

Each check returns the very value that it was given, or raises ValueError with its name and what it must be. So a constructor
keeps its arguments as they are; they are converted where they are used.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping, Set
from os import PathLike
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np

from nnlite.errors import DataError, FileError, ShapeError

if TYPE_CHECKING:
    import inspect

T = TypeVar("T")

_LONGEST = 80  # characters of an argument in a message


def is_whole(value: object) -> bool:
    """Whether it is a Python or NumPy integer; True and 16.0 are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def whole(name: str, value: T, least: int | None = 0) -> T:
    """A whole number, at least `least`."""
    if not is_whole(value) or (least is not None and value < least):  # type: ignore[operator]
        _refuse(name, "a whole number" + ("" if least is None else f", at least {least}"), value)
    return value


def number(
    name: str,
    value: T,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> T:
    """A finite real number, at least `least` and above `above`, below `below` and at most `most`."""
    x = _as_float(value)
    if not (math.isfinite(x) and least <= x <= most and above < x < below):
        low = f"[{least:g}" if least > above else f"({above:g}"
        high = f"{most:g}]" if most < below else f"{below:g})"
        _refuse(name, f"a number in {low}, {high}", value)
    return value


def vector(name: str, value: T, **limits: float) -> T:
    """A list, a tuple or a vector of at least one number, each as `number` takes it."""
    values = value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value
    if not isinstance(values, list | tuple) or not values:
        _refuse(name, "a list, a tuple or a vector of numbers", value)
    for i, x in enumerate(values):
        number(f"{name}[{i}]", x, **limits)
    return value


def numbers(name: str, value: Any, **limits: float) -> Any:
    """A number as `number` takes it, or several as `vector` does."""
    return vector(name, value, **limits) if hasattr(value, "__len__") else number(name, value, **limits)


def class_weights(name: str, value: T) -> T:
    """Weights of the classes, not negative: a vector as `vector` takes it, or a dict {class: weight}."""
    if not isinstance(value, dict):
        return vector(name, value, least=0)
    for label, weight in value.items():
        whole(f"a class of {name}", int(label) if isinstance(label, bool | np.bool) else label)
        number(f"{name}[{shortened(label)}]", weight, least=0)
    return value


def flag(name: str, value: T) -> T:
    """True or False."""
    if not isinstance(value, bool | np.bool):
        _refuse(name, "True or False", value)
    return value


def instance(name: str, value: T, kind: type, shown: str) -> T:
    """An object of a class, which users know as `shown`."""
    if not isinstance(value, kind):
        _refuse(name, shown, value)
    return value


def class_names(name: str, value: Any) -> list[Any]:
    """Names in their order: a list, a tuple, an array. Raises DataError for anything else."""
    if isinstance(value, str | bytes | Mapping | Set) or not hasattr(value, "__len__"):
        _refuse(name, "a list of names", value, DataError)
    return list(value.tolist() if hasattr(value, "tolist") else value)


def location(name: str, value: T) -> T:
    """The path of a file or folder, not an address. Raises FileError for anything else."""
    if not isinstance(value, str | PathLike) or "://" in str(value):
        _refuse(name, "a path", value, FileError)
    return value


def choice(name: str, value: T, *options: str | None) -> T:
    """One of the options."""
    if not isinstance(value, str | None) or value not in options:
        shown = [f'"{option}"' if option else "None" for option in options]
        _refuse(name, " or ".join([", ".join(shown[:-1]), shown[-1]]), value)
    return value


def pair(name: str, value: T, least: int = 1) -> T:
    """A whole number for both axes, or (height, width)."""
    both: Any = value if isinstance(value, list | tuple) else (value, value)
    if len(both) != 2 or not all(is_whole(v) and v >= least for v in both):
        _refuse(name, f"a whole number or a pair of them (height, width), at least {least}", value, ShapeError)
    return value


def window_padding(value: T) -> T:
    """The padding of a window: "same", "valid", a number, a pair, or a pair of pairs, ((top, bottom), (left, right))."""
    if isinstance(value, str) and value not in ("same", "valid"):
        _refuse("padding", '"same", "valid", a whole number, or a pair of them or of pairs', value, ShapeError)
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, list | tuple) for side in value):
        for side in value:
            pair("padding", side, least=0)
        return value
    return value if isinstance(value, str) else pair("padding", value, least=0)


def sequence_padding(value: T) -> T:
    """The padding of a sequence: "same", "valid", a number, or (before, after)."""
    sides: Any = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    is_named = isinstance(value, str) and value in ("same", "valid")
    if not is_named and not all(is_whole(side) and side >= 0 for side in sides):
        _refuse("padding", '"same", "valid", a whole number or a pair of them (before, after), at least 0', value, ShapeError)
    return value


def sample_shape(name: str, value: T) -> T:
    """The shape of one sample."""
    if not isinstance(value, list | tuple) or not all(is_whole(n) and n > 0 for n in value):
        _refuse(
            name,
            "the shape of one sample without the batch, whole numbers of at least 1, such as (30,) or (32, 32, 3)",
            value,
            ShapeError,
        )
    return value


def _refuse(name: str, wanted: str, value: object, error: type[ValueError] = ValueError) -> NoReturn:
    raise error(f"{name} must be {wanted}, not {shortened(value)}")


def _as_float(value: object) -> float:
    """The value as a float; NaN for anything but a number, and for integers that no float can hold."""
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


# ---- how arguments are shown


class _Short(reprlib.Repr):
    """The first few values of a long argument; NumPy numbers as Python's, functions and classes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 3, _LONGEST, _LONGEST, _LONGEST

    def repr1(self, x: Any, level: int) -> str:
        try:
            if callable(x) and hasattr(x, "__name__"):
                return str(x.__name__)
            show: Any = type(x).__repr__
            if show is object.__repr__:
                return as_call(x)
            return super().repr1(x.item() if isinstance(x, np.generic) else x, level)
        except Exception:  # a failing `repr` must not hide the message
            return f"<{type(x).__name__}>"

    def repr_ndarray(self, x: Any, level: int) -> str:
        return self.repr1(x[: self.maxlist + 1].tolist(), level) if x.ndim == 1 else f"array({x.shape}, {x.dtype})"


_short = _Short()


def shortened(value: object) -> str:
    """The value in one line of at most 80 characters, the middle of long texts left out."""
    text = _short.repr(value).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}...{text[-17:]}"


def listing(names: Iterable[object], most: int = 8, longest: int = 30) -> str:
    """Names for a message, the first of many, the beginnings of long ones."""
    texts = [str(name) for name in names]
    shown = [text if len(text) <= longest else f"{text[: longest - 3]}..." for text in texts[:most]]
    return ", ".join(shown) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def constructor(kind: Any) -> "list[inspect.Parameter]":
    """The parameters of a class's constructor."""
    import inspect

    if kind.__init__ is object.__init__:
        return []
    return list(inspect.signature(kind.__init__).parameters.values())[1:]


def as_call(thing: object) -> str:
    """The call that makes such an object, `Adam(0.01, clip_norm=1.0)`; the arguments are the attributes of their names."""
    positional, named = list[str](), list[str]()
    for p in constructor(type(thing)):
        value: Any = getattr(thing, p.name, ...)
        if p.kind is p.VAR_POSITIONAL:
            positional += map(_shown, value if isinstance(value, list | tuple) else ())
        elif p.default is p.empty and p.kind is not p.VAR_KEYWORD:
            positional.append("..." if value is ... else _shown(value))
        elif value is not ... and not _is(value, p.default):
            named.append(f"{p.name}={_shown(value)}")
    return f"{type(thing).__name__}({', '.join(positional + named)})"


class Configured:
    """Made by a call whose arguments are attributes of the same names, so that it can be shown, copied and searched over.

    `get_params` and `set_params` are scikit-learn's: its `clone` and its searches take such objects.
    """

    __repr__ = as_call

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {p.name: getattr(self, p.name) for p in constructor(type(self))}

    def set_params(self, **params: Any) -> Self:
        """Change arguments by name, checked as the constructor does. Raises ValueError for other names."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no parameter {shortened(name)}: it has {listing(known)}")
        type(self)(**{**known, **params})
        for name, value in params.items():
            setattr(self, name, value)
        return self


def _shown(value: Any) -> str:
    """The text of a value; one shown as a call shortens its own arguments."""
    show: Any = type(value).__repr__
    return show(value) if show is as_call else shortened(value)


def _is(value: Any, default: Any) -> bool:
    """Whether it is the default; an empty list counts as an empty tuple."""
    return repr(tuple(value) if isinstance(value, list) else value) == repr(default)
