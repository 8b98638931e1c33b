"""Main memory and the kernels of `native/*.c`. Arrays are stored in the order of their shape; results are new or in `out`.

Nothing is handed to C unless its dtype is float32 or float64, contiguous, and as large as the kernel reads or writes:
`given` and `room` see to that.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np

from nnlite.backend.cpu.host import Host
from nnlite.backend.cpu.threads import get_num_threads, is_one_of_many
from nnlite.backend.native.loader import load
from nnlite.backend.native.team import helpers
from nnlite.backend.window import Array
from nnlite.errors import ShapeError

_OWN_ROOM = 1 << 12  # values of scratch memory that the kernel of products has itself
_LEAST_ROOM = 1 << 15  # small ones share a view of it
_ROWS = 1 << 13  # of a product over rows
_LANES = 16  # columns of scratch matrices are rounded up to it
_WORTH_A_THREAD = 1 << 21  # multiplications of a block of a product: 40 us, of which waking a thread takes up to 35
_ALIGNED = 64  # columns of a block: a multiple of it
_addressof, _from_buffer = ctypes.addressof, ctypes.c_char.from_buffer


@cache
def kernels(dtype: Any) -> dict[str, Any]:
    """The kernels for arrays of this dtype by name, compiled first if they are not; see `loader.load`."""
    return load(np.dtype(dtype).name)


def address(a: Array) -> int:
    """Where the values of an array are."""
    try:
        return _addressof(_from_buffer(a))  # a fifth of the time of a.ctypes.data
    except (TypeError, ValueError):  # read-only, empty or not in the order of its shape
        return int(a.ctypes.data)


def padded(n: int) -> int:
    """n, rounded up to a multiple of the lanes."""
    return -(-n // _LANES) * _LANES


def repeated(row: Array | float, shape: tuple[int, int], dtype: Any) -> Array:
    """Rows of this shape, each this one, or this number everywhere: new and contiguous."""
    rows = np.empty(shape, dtype)
    rows[...] = row
    return rows


class NativeOperations(Host):
    """The operations of `native/*.c`, one call each.

    The results are the same bits on every processor and for every number of threads.
    """

    kernel_set = "native"
    finer_inference = 4  # a layer is few calls, and what stays in a closer cache is 5% faster
    fuses_relu = rectifies_norms = True

    def lay_out(self, flat: Array, shape: tuple[int, ...]) -> Array:
        """In the order of the shape, as the kernels expect."""
        return flat.reshape(shape)

    def rows(self, a: Array) -> Array:
        return a.reshape(-1, a.shape[-1])

    def given(self, a: Array, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Array:
        """`a`, or a copy of it that is contiguous and of this dtype. Raises ShapeError unless its samples have this shape."""
        if shape is not None and a.shape[1:] != shape:
            raise ShapeError(f"expects samples of shape {shape}, got {a.shape[1:]}")
        is_alike = dtype is None or dtype == a.dtype  # None equals float64
        flags = a.flags
        is_fit = is_alike and (flags.carray or (flags.c_contiguous and flags.aligned))
        return a if is_fit else np.array(a, dtype, order="C")

    def room(self, out: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
        """`out` if a kernel can write to it, else a new array."""
        if out is not None and out.flags.carray and out.dtype == dtype and out.shape == shape:
            return out
        return self.empty(int(np.prod(shape)), dtype).reshape(shape)

    def written(self, result: Array, out: Array | None) -> Array:
        """`result`, in `out` if there is one."""
        if out is None or out is result:
            return result
        out[...] = result
        return out

    def team(self, dtype: Any, is_worth_it: bool) -> int:
        """The address of the team that shares the blocks of a kernel; 0: this thread does them all."""
        if not is_worth_it or is_one_of_many():
            return 0
        return helpers.called(kernels(dtype)["help"], get_num_threads() - 1)

    # ---- products

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """The product a b of matrices or stacks of them, on this thread."""
        out = (
            np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
            if out is None
            else out
        )
        if out.ndim == 2:
            return self._multiply(a, b, out)
        stacks = out.shape[:-2]
        a, b = (np.broadcast_to(x, (*stacks, *x.shape[-2:])) for x in (a, b))
        for place in np.ndindex(stacks):
            self._multiply(a[place], b[place], out[place])
        return out

    def matmul_rows(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """In pieces of rows whose products are added in float64, if there are more than one."""
        if a.shape[-2] <= _ROWS:
            return self.matmul(a.swapaxes(-2, -1), b, out)
        pieces = (slice(start, start + _ROWS) for start in range(0, a.shape[-2], _ROWS))
        total = sum(self.matmul(a[..., rows, :].swapaxes(-2, -1), b[..., rows, :]).astype("float64") for rows in pieces)
        if out is None:
            return total.astype(a.dtype)
        out[...] = total
        return out

    def product_of_rows(self, a: Array, b: Array, out: Array | None) -> Array:
        return self.product(a.T, b, out) if len(a) <= _ROWS else self.matmul_rows(a, b, out)

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        return self._multiply(a, b, out, shared=True)

    def biased_product(self, a: Array, b: Array, bias: Array, out: Array | None, relu: bool = False) -> Array:
        """In one sweep."""
        return self._multiply(a, b, out, self.given(bias, a.dtype), relu, shared=True)

    def _multiply(
        self, a: Array, b: Array, out: Array | None, bias: Array | None = None, relu: bool = False, shared: bool = False
    ) -> Array:
        """shared: by threads, block of columns by block, where the product is worth it."""
        (m, k), n = a.shape, b.shape[1]
        result: Array = np.empty((m, n), a.dtype) if out is None else out
        if b.shape[0] != k or result.shape != (m, n) or (bias is not None and bias.shape != (n,)):
            raise ValueError(f"shapes {a.shape}, {b.shape} and {result.shape} are not those of a product")
        dtype, size = result.dtype, result.itemsize
        if a.dtype != dtype or b.dtype != dtype:
            a, b = a.astype(dtype), b.astype(dtype)
        (ra, ca), (rb, cb), (rc, cc) = a.strides, b.strides, result.strides
        left, right, target = address(a.T if ra < ca else a), address(b.T if rb < cb else b), address(result)
        if result.size and (cc != size or (ra | ca | rb | cb | rc | left | right | target) % size):
            a, b = self.given(a), self.given(b)
            result[...] = self._multiply(a, b, None, bias, relu, shared)
            return result
        team = self.team(dtype, shared and m * n * k >= 2 * _WORTH_A_THREAD)
        width = _width(m * k, n, get_num_threads()) if team else max(n, 1)
        room, scratch = max((k + width) * padded(m), k * padded(width) + _LANES * m), 0
        if room > _OWN_ROOM:
            scratch = address(self.scratch("product", (max(room * -(-n // width), _LEAST_ROOM),), dtype))
        factors = left, ra // size, ca // size, right, rb // size, cb // size, target, rc // size
        added = 0 if bias is None else address(bias)
        kernels(dtype)["multiply"](*factors, added, relu, m, n, k, scratch, team, width, room)
        return result


@cache
def _width(multiplications: int, columns: int, threads: int) -> int:
    """Of the blocks of a product, of so many multiplications a column, for threads; an output is the same bits in any block."""
    count = max(1, min(threads, multiplications * columns // _WORTH_A_THREAD, columns // _ALIGNED))
    return -(-columns // count // _ALIGNED) * _ALIGNED
