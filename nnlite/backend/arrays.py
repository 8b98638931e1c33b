"""Whatever holds numbers on the host, as a NumPy array of real numbers: the one place where they come in."""

from typing import Any

import numpy as np

from nnlite.backend.window import Array
from nnlite.errors import DataError

_REAL = "biuf"  # kinds of dtypes: booleans, integers, reals
_SHOWN = 5  # columns in a message


def is_array(x: Any) -> bool:
    """Whether it holds numbers itself, as arrays, tensors, frames and sparse matrices do; lists do not."""
    return hasattr(x, "ndim") or hasattr(x, "__array__")


def length(x: Any) -> int:
    """The number of its rows, of arrays and lists; 0 for a single number."""
    if isinstance(x, list | tuple):
        return len(x)
    shape = x.shape if hasattr(x, "shape") else np.shape(x)
    return int(shape[0]) if shape else 0


def host_array(x: Any, dtype: Any = None, what: str = "values") -> Array:
    """A NumPy array of real numbers, a view where that is possible; `what` names it in messages.

    Frames and series become numbers by their columns' kinds, missing values NaN. Raises DataError for complex numbers, objects,
    text and ragged lists, for masked arrays, whose masked values would count, and for sparse matrices.
    """
    array = x if type(x) is np.ndarray else _converted(x, what)
    if array.dtype.kind not in _REAL:
        raise DataError(f"{what} must be real numbers, not {array.dtype}")
    return array if dtype is None else array.astype(dtype, copy=False)


def by_position(x: Any, what: str = "values") -> Any:
    """What slices take rows of: x itself, also where it is a file that is read slice by slice, and an array of a list or frame.

    Raises DataError for masked arrays and for sparse matrices.
    """
    x = _dense(x, what)
    return x if hasattr(x, "shape") else host_array(x, what=what)


def _converted(x: Any, what: str) -> Array:
    x = _dense(x, what)
    try:
        return np.asarray(x)
    except (TypeError, ValueError) as error:  # ragged lists, arrays of a device
        raise DataError(f"{what} cannot be made a NumPy array: {str(error)[:300]}") from error


def _dense(x: Any, what: str) -> Any:
    """The array of a frame; x itself where NumPy may convert it."""
    if hasattr(x, "iloc"):
        return _from_pandas(x, what)
    if hasattr(x, "toarray"):
        raise DataError(f"{what} must be dense, not a sparse {type(x).__name__}: x.toarray() makes it so")
    if _is_masked(x):
        raise DataError(f"{what} must not be masked, for masked values would count: fill them, x.filled(value), or drop them")
    return x


def _is_masked(x: Any) -> bool:
    return isinstance(x, np.ma.MaskedArray) or (isinstance(x, list | tuple) and any(map(_is_masked, x)))


def _from_pandas(x: Any, what: str) -> Array:
    """A frame or a series. By itself, pandas makes objects of frames of several kinds and of nullable columns."""
    dtypes = list(x.dtypes) if hasattr(x, "columns") else [x.dtype]
    others = [i for i, dtype in enumerate(dtypes) if dtype.kind not in _REAL]
    if others:
        raise DataError(f"{what} must be real numbers, not {_columns(x, others)}: encode, convert or drop them")
    kind = np.result_type(*[getattr(d, "numpy_dtype", getattr(d, "subtype", d)) for d in dtypes] or ["float64"])
    if kind.kind != "f" and not np.asarray(x.isna()).any():
        return np.asarray(x.to_numpy(dtype=kind))
    return np.asarray(x.to_numpy(dtype=np.result_type(kind, "float32"), na_value=np.nan))


def _columns(x: Any, places: list[int]) -> str:
    """Some columns by name and kind, for a message."""
    if not hasattr(x, "columns"):
        return f"a series of {str(x.dtype)[:40]}"
    names = [f"{str(x.columns[i])[:40]!r} ({str(x.dtypes.iloc[i])[:40]})" for i in places[:_SHOWN]]
    return f"the columns {', '.join(names)}" + (f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else "")
