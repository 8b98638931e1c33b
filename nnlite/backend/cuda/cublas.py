"""Matrix products on a CUDA device by cuBLAS, each with its own precision: CuPy has one setting for the whole process."""

from typing import Any

import numpy as np

from nnlite.backend.window import Array

_TF32 = "CUBLAS_COMPUTE_32F_FAST_TF32"
_KINDS = {"float32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F"), "float64": ("CUDA_R_64F", "CUBLAS_COMPUTE_64F")}


class Products:
    """out = a b or, with add, out += a b, for matrices of one dtype.

    tf32: whether float32 factors are rounded to 10 bits; otherwise products are strict, whatever CUPY_TF32 says.
    """

    def __init__(self, cupy: Any, tf32: bool) -> None:
        self._cupy, self._tf32 = cupy, tf32
        self._ready: dict[Any, Any] = {}

    def __call__(self, a: Array, b: Array, out: Array | None = None, add: bool = False) -> Array:
        cupy = self._cupy
        if out is None:
            out = cupy.empty((a.shape[0], b.shape[1]), a.dtype)
        dtype = a.dtype
        if b.dtype != dtype or out.dtype != dtype or a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
            raise ValueError(f"no product of {a.shape} {dtype} and {b.shape} {b.dtype} in {out.shape} {out.dtype}")
        if not out.flags.c_contiguous:
            raise ValueError(f"a product is written to contiguous memory, not to strides {out.strides} for {out.shape}")
        kind, compute, numbers, algorithm = self._ready.get(dtype) or self._prepare(dtype)
        (a, a_turned, a_row), (b, b_turned, b_row) = self._as_rows(a), self._as_rows(b)
        # cuBLAS is column-major: it sees our out, b and a as out', b' and a'.
        (m, n), k = out.shape, a.shape[1]
        one, zero = numbers.ctypes.data, numbers.ctypes.data + dtype.itemsize
        sizes = (n, m, k, one, b.data.ptr, kind, b_row, a.data.ptr, kind, a_row, one if add else zero)
        handle = cupy.cuda.get_cublas_handle()
        cupy.cuda.cublas.gemmEx(handle, b_turned, a_turned, *sizes, out.data.ptr, kind, max(1, n), compute, algorithm)
        return out

    def _prepare(self, dtype: Any) -> Any:
        kind, compute = _KINDS[dtype.name]
        cublas, runtime = self._cupy.cuda.cublas, self._cupy.cuda.runtime
        compute = _TF32 if self._tf32 and dtype.name == "float32" else compute
        numbers = np.array([1, 0], dtype)
        ready = getattr(runtime, kind), getattr(cublas, compute), numbers, cublas.CUBLAS_GEMM_DEFAULT
        self._ready[dtype] = ready
        return ready

    def _as_rows(self, a: Array) -> tuple[Array, int, int]:
        """A matrix that is contiguous by rows or by columns, whether by columns, and the stride between them."""
        (rows, columns), (down, across) = a.shape, (stride // a.itemsize for stride in a.strides)
        if (across == 1 or columns == 1) and (down >= columns or rows == 1):
            return a, 0, max(down if rows > 1 else columns, 1)
        if (down == 1 or rows == 1) and (across >= rows or columns == 1):
            return a, 1, max(across if columns > 1 else rows, 1)
        return self._cupy.ascontiguousarray(a), 0, columns
