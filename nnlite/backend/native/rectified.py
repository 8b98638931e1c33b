"""Images that the convolution which reads them normalises and rectifies: they are never stored."""

from typing import NamedTuple

from nnlite.backend.native.operations import NativeOperations, address
from nnlite.backend.window import Array

Columns = tuple[int, int, int]  # where mean, scale and shift are; zeros: there are none


class Rectified(NamedTuple):
    """y = max((a - mean) scale + shift, 0)      a: (N, H, W, C)   mean, scale, shift: (C,)"""

    a: Array
    mean: Array
    scale: Array
    shift: Array


def source(backend: NativeOperations, a: "Array | Rectified", dtype: object, shape: tuple[int, ...]) -> tuple[Array, Columns]:
    """The images that are read, fit for a kernel, and by what they are normalised. Raises ShapeError for another shape."""
    if type(a) is not Rectified:
        return backend.given(a, dtype, shape), (0, 0, 0)
    return backend.given(a.a, dtype, shape), (address(a.mean), address(a.scale), address(a.shift))
