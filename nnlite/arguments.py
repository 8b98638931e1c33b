"""Arguments of constructors: how they are shown."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect

_LONGEST, _NAME = 80, 30  # characters of an argument and of a name in a message


def shortened(value: object) -> str:
    """The value as a message shows it: arrays by shape and dtype, functions by name, the middle of long texts left out."""
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    if getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        return f"array({value.shape}, {value.dtype})"  # type: ignore[attr-defined]
    text = repr(value) if type(value).__repr__ is not object.__repr__ else as_call(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}...{text[-17:]}"


def listing(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, the first of many."""
    shown = [name if len(name) <= _NAME else f"{name[: _NAME - 3]}..." for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


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


def _shown(value: Any) -> str:
    """What is shown as a call shortens its own arguments."""
    show: Any = type(value).__repr__
    return show(value) if show is as_call else shortened(value)


def _is(value: Any, default: Any) -> bool:
    """Whether it is the default; an empty list is an empty tuple."""
    return repr(tuple(value) if isinstance(value, list) else value) == repr(default)
