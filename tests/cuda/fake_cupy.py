"""A pretended CuPy: arrays that refuse whatever CuPy refuses, on NumPy, and kernels run by `emulator`.

`install(monkeypatch)` puts it in the place of cupy. `counter`: how often a value went back to the host ("reads"), and what
the device was asked to run ("launches"): kernels of nnlite's own ("kernels"), products, array operations and copies.
"""

import math
import operator
import sys
import types

import emulator
import numpy as np

counter = {"reads": 0, "launches": 0, "kernels": 0}


def count(key, call):
    """How often the device was asked to run something, or to give a value back, meanwhile."""
    before = counter[key]
    call()
    return counter[key] - before


class DeviceArray:
    """As cupy.ndarray: no implicit conversion, no mixing with NumPy arrays; results without axes are arrays, too."""

    __slots__ = ("_base", "_host")

    def __init__(self, host, base=None):
        self._host, self._base = host, base

    # ---- what it is

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    base = property(lambda self: self._base)
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data))
    T = property(lambda self: self.transpose())
    __cuda_array_interface__ = property(lambda self: {"shape": self.shape, "typestr": self.dtype.str, "version": 3})

    def __len__(self):
        return len(self._host)

    def __repr__(self):
        return f"DeviceArray({self._host!r})"

    # ---- the ways back to the host

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if any(isinstance(value, np.ndarray) for value in inputs) or method != "__call__":
            raise TypeError(f"{ufunc.__name__}: mixes device and NumPy arrays")
        return call(ufunc, *inputs, **kwargs)

    def item(self):
        counter["reads"] += 1
        return self._host.item()

    def tolist(self):
        counter["reads"] += 1
        return self._host.tolist()

    def get(self):
        counter["reads"] += 1
        return self._host.copy()

    def __bool__(self):
        counter["reads"] += 1
        return bool(self._host)

    def __float__(self):
        counter["reads"] += 1
        return float(self._host)

    def __int__(self):
        counter["reads"] += 1
        return int(self._host)

    # ---- indexing

    def __getitem__(self, key):
        return wrap(self._host[index(key)], self)

    def __setitem__(self, key, value):
        counter["launches"] += 1
        self._host[index(key)] = unwrap(value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # ---- methods

    def reshape(self, *shape):
        return wrap(self._host.reshape(*shape), self)

    def transpose(self, *axes):
        return wrap(self._host.transpose(*axes), self)

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == np.dtype(dtype):
            return self
        counter["launches"] += 1
        return wrap(self._host.astype(dtype))

    def copy(self):
        counter["launches"] += 1
        return wrap(self._host.copy())

    def ravel(self):
        return wrap(self._host.ravel(), self)

    def view(self, dtype):
        return wrap(self._host.view(dtype), self)


def own(host):
    """The same values between guard zones, where they are not there already; the order in memory stays, as in CuPy."""
    raw = emulator.root(host)
    if raw.dtype == np.uint8 and raw.ndim == 1 and raw.size >= 2 * emulator.GUARD and (raw[0] == emulator.PATTERN):
        return host
    by_columns = host.flags.f_contiguous and not host.flags.c_contiguous
    array = emulator.guarded(host.shape[::-1], host.dtype).T if by_columns else emulator.guarded(host.shape, host.dtype)
    array[...] = host
    return array


def wrap(host, base=None):
    if not isinstance(host, np.ndarray | np.generic):
        return host
    host = np.asarray(host)
    if base is not None and np.may_share_memory(host, base._host):
        return DeviceArray(host, base if base._base is None else base._base)
    return DeviceArray(own(host))


def unwrap(value):
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: move it to the device first")
    if isinstance(value, list | tuple) and any(isinstance(v, DeviceArray | np.ndarray) for v in value):
        return type(value)(unwrap(v) for v in value)
    return value


def index(key):
    parts = key if isinstance(key, tuple) else (key,)
    parts = tuple(unwrap(part) for part in parts)
    return parts if isinstance(key, tuple) else parts[0]


def call(function, *args, out=None, **kwargs):
    """A NumPy function on device arrays; writes to `out` and gives that back, as CuPy does."""
    counter["launches"] += 1
    inputs = [unwrap(value) for value in args]
    options = {name: unwrap(value) for name, value in kwargs.items()}
    if isinstance(out, tuple):
        (out,) = out
    if out is not None and not isinstance(out, DeviceArray):
        raise TypeError("out must be a device array")
    with np.errstate(all="ignore"):  # a device does not warn
        if out is None:
            return wrap(function(*inputs, **options))
        function(*inputs, out=out._host, **options)
    return out


def _binary(function):
    def method(self, other):
        return call(function, self, other)

    def reflected(self, other):
        return call(function, other, self)

    def in_place(self, other):
        return call(function, self, other, out=self)

    return method, reflected, in_place


for _name, _function in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.divide,
    "pow": np.power,
    "and": np.bitwise_and,
    "xor": np.bitwise_xor,
    "rshift": np.right_shift,
}.items():
    for _prefix, _method in zip(("", "r", "i"), _binary(_function), strict=True):
        setattr(DeviceArray, f"__{_prefix}{_name}__", _method)
DeviceArray.__matmul__, DeviceArray.__rmatmul__, _ = _binary(np.matmul)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(DeviceArray, f"__{_name}__", _binary(getattr(operator, _name))[0])
for _name, _function in {"neg": np.negative, "abs": np.abs, "invert": np.invert}.items():
    setattr(DeviceArray, f"__{_name}__", lambda self, function=_function: call(function, self))
for _name in ("sum", "mean", "max", "min", "argmax", "any", "all", "take"):
    setattr(DeviceArray, _name, lambda self, *a, name=_name, **k: call(getattr(np, name), self, *a, **k))
DeviceArray.__hash__ = None


# ---- the module


class OutOfMemoryError(MemoryError):
    pass


class RawModule:
    def __init__(self, code, options=(), backend="nvrtc"):
        self.module = emulator.Module(code, options)

    def get_function(self, name):
        def kernel(grid, block, args):
            counter["launches"] += 1
            counter["kernels"] += 1
            self.module.launch(name, grid, block, [_argument(value) for value in args])

        return kernel


def _argument(value):
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.fields:
        return value[0]  # a struct is passed by value
    if not isinstance(value, np.generic):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def asarray(x, dtype=None):
    if isinstance(x, DeviceArray):
        return x if dtype is None or x.dtype == np.dtype(dtype) else x.astype(dtype)
    counter["launches"] += 1
    return wrap(np.array(x, dtype))


def ascontiguousarray(x):
    if x.flags.c_contiguous:
        return x
    counter["launches"] += 1
    return wrap(np.ascontiguousarray(unwrap(x)))


def empty(shape, dtype=float):
    return DeviceArray(emulator.guarded(shape if isinstance(shape, tuple) else (shape,), dtype))


def asnumpy(x):
    return x.get()


class Cublas(types.SimpleNamespace):
    """gemmEx on addresses, as cuBLAS: by columns, with leading dimensions. `computes`: the compute types it was asked for."""

    CUBLAS_GEMM_DEFAULT, CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = -1, 68, 70, 77

    def __init__(self):
        self.computes = []

    def gemmEx(self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute, algo):
        if handle != HANDLE or not Atype == Btype == Ctype or (compute == self.CUBLAS_COMPUTE_64F) != (Ctype == 1):
            raise ValueError(f"gemmEx of types {Atype}, {Btype}, {Ctype} by {compute}")
        dtype = (np.float32, np.float64)[Ctype]
        a = _columns(A, (k, m) if transa else (m, k), lda, dtype)
        b = _columns(B, (n, k) if transb else (k, n), ldb, dtype)
        c, (one,), (of_c,) = _columns(C, (m, n), ldc, dtype), _numbers(alpha, dtype), _numbers(beta, dtype)
        counter["launches"] += 1
        self.computes.append(compute)
        with np.errstate(all="ignore"):
            product = one * ((a.T if transa else a) @ (b.T if transb else b))
        c[...] = product + of_c * c if of_c else product


HANDLE = 4711


def _numbers(address, dtype, size=1):
    kind = np.ctypeslib.as_ctypes_type(dtype)
    return np.ctypeslib.as_array((kind * size).from_address(address))


def _columns(address, shape, leading, dtype):
    """The matrix at an address, column by column."""
    rows, columns = shape
    if leading < max(1, rows):
        raise ValueError(f"a leading dimension of {leading} for {rows} rows")
    flat = _numbers(address, dtype, leading * (columns - 1) + rows)
    return np.lib.stride_tricks.as_strided(flat, shape, (flat.itemsize, flat.itemsize * leading))


_SAME = str.split(
    "add subtract multiply divide maximum minimum exp log log1p expm1 sqrt tanh where clip sign copysign zeros zeros_like ones "
    "arange matmul einsum concatenate repeat stack broadcast_to take sum array_equal isfinite may_share_memory pad"
)


def install(monkeypatch):
    """Let `import cupy` give this, for one test."""
    from nnlite.backend.cuda.cupy import get_cupy_backend

    cupy = types.ModuleType("cupy")
    for name in _SAME:
        setattr(cupy, name, lambda *a, function=getattr(np, name), **k: call(function, *a, **k))
    for value in (asarray, ascontiguousarray, empty, asnumpy, RawModule):
        setattr(cupy, value.__name__, value)
    cupy.ndarray = DeviceArray
    cupy.linalg = types.SimpleNamespace(norm=lambda x: call(np.linalg.norm, x))
    runtime = types.SimpleNamespace(
        memGetInfo=lambda: (1 << 30, 1 << 31), deviceSynchronize=lambda: None, CUDA_R_32F=0, CUDA_R_64F=1
    )
    memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cupy.cuda = types.SimpleNamespace(is_available=lambda: True, runtime=runtime, memory=memory)
    cupy.cuda.cublas, cupy.cuda.get_cublas_handle = Cublas(), lambda: HANDLE
    special = types.ModuleType("cupyx.scipy.special")
    special.erf = lambda x: call(np.vectorize(math.erf, otypes=[x.dtype]), x)
    modules = {"cupy": cupy, "cupyx": types.ModuleType("cupyx"), "cupyx.scipy": types.ModuleType("cupyx.scipy")}
    for name, module in (modules | {"cupyx.scipy.special": special}).items():
        monkeypatch.setitem(sys.modules, name, module)
    get_cupy_backend.cache_clear()
    return cupy
