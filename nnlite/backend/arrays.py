"""Convert whatever holds numbers on the host to a NumPy array of real numbers: the one place where user data enter."""

from typing import Any

import numpy as np

from nnlite.backend.window import Array
from nnlite.errors import DataError

_REAL = "biuf"  # kinds of dtypes: booleans, integers, reals
_SHOWN = 5  # columns in a message


def is_array(x: Any) -> bool:
    """Whether `x` is an array, tensor, frame or sparse matrix, as opposed to a list."""
    return hasattr(x, "ndim") or hasattr(x, "__array__")


def length(x: Any) -> int:
    """The length of the first axis of an array or list; 0 for a single number."""
    if isinstance(x, list | tuple):
        return len(x)
    shape = x.shape if hasattr(x, "shape") else np.shape(x)
    return int(shape[0]) if shape else 0


def host_array(x: Any, dtype: Any = None, what: str = "values") -> Array:
    """A NumPy array of real numbers, a view where possible; `what` names it in messages.

    Frames and series are converted by the kinds of their columns, missing values to NaN. Raises DataError for complex numbers,
    objects, text and ragged lists, for masked arrays, whose masked values would count, and for sparse matrices.
    """
    array = x if type(x) is np.ndarray else _converted(x, what)
    if array.dtype.kind not in _REAL:
        remedy = ": np.unique(names, return_inverse=True) numbers names" if array.dtype.kind == "U" else ""
        raise DataError(f"{what} must be real numbers, not {array.dtype}{remedy}")
    return array if dtype is None else array.astype(dtype, copy=False)


def by_position(x: Any, what: str = "values") -> Any:
    """`x` for slicing by sample: itself, even a file that is read slice by slice; lists and frames become arrays.

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
    """The array of a frame; otherwise x itself, if NumPy may convert it."""
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
    """The array of a frame or series. Left to itself, pandas turns mixed frames and nullable columns into objects."""
    dtypes = list(x.dtypes) if hasattr(x, "columns") else [x.dtype]
    others = [i for i, dtype in enumerate(dtypes) if dtype.kind not in _REAL]
    if others:
        raise DataError(f"{what} must be real numbers, not {_columns(x, others)}: encode, convert or drop them")
    kind = np.result_type(*[getattr(d, "numpy_dtype", getattr(d, "subtype", d)) for d in dtypes] or ["float64"])
    if kind.kind != "f" and not np.asarray(x.isna()).any():
        return np.asarray(x.to_numpy(dtype=kind))
    return np.asarray(x.to_numpy(dtype=np.result_type(kind, "float32"), na_value=np.nan))


def _columns(x: Any, places: list[int]) -> str:
    """Columns by name and kind, for a message."""
    if not hasattr(x, "columns"):
        return f"a series of {str(x.dtype)[:40]}"
    names = [f"{str(x.columns[i])[:40]!r} ({str(x.dtypes.iloc[i])[:40]})" for i in places[:_SHOWN]]
    return f"the columns {', '.join(names)}" + (f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else "")
