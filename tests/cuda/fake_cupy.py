"""A pretended CuPy: arrays that refuse whatever CuPy refuses, on NumPy, and kernels run by `emulator`.

`install(monkeypatch)` puts it in the place of cupy. `reads` counts how often a value went back to the host.
"""

import math
import operator
import sys
import types

import emulator
import numpy as np

counter = {"reads": 0, "launches": 0}


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
        return wrap(self._host.astype(dtype))

    def copy(self):
        return wrap(self._host.copy())

    def ravel(self):
        return wrap(self._host.ravel(), self)

    def view(self, dtype):
        return wrap(self._host.view(dtype), self)


def own(host):
    """The same values between guard zones, where they are not there already."""
    raw = emulator.root(host)
    if raw.dtype == np.uint8 and raw.ndim == 1 and raw.size >= 2 * emulator.GUARD and (raw[0] == emulator.PATTERN):
        return host
    array = emulator.guarded(host.shape, host.dtype)
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
    inputs = [unwrap(value) for value in args]
    options = {name: unwrap(value) for name, value in kwargs.items()}
    if isinstance(out, tuple):
        (out,) = out
    if out is None:
        return wrap(function(*inputs, **options))
    if not isinstance(out, DeviceArray):
        raise TypeError("out must be a device array")
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
for _name in ("sum", "mean", "max", "min", "argmax", "any", "all"):
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
            self.module.launch(name, grid, block, [_argument(value) for value in args])

        return kernel


def _argument(value):
    if isinstance(value, DeviceArray):
        return value._host
    if not isinstance(value, np.generic):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def asarray(x, dtype=None):
    if isinstance(x, DeviceArray):
        return x if dtype is None or x.dtype == np.dtype(dtype) else x.astype(dtype)
    return wrap(np.array(x, dtype))


def ascontiguousarray(x):
    return x if x.flags.c_contiguous else wrap(np.ascontiguousarray(unwrap(x)))


def empty(shape, dtype=float):
    return DeviceArray(emulator.guarded(shape if isinstance(shape, tuple) else (shape,), dtype))


def asnumpy(x):
    return x.get()


def dot(a, b, out=None):
    """cuBLAS: two matrices, a result in one piece."""
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype or (out is not None and not out.flags.c_contiguous):
        raise ValueError(f"dot of {a.shape} {a.dtype} and {b.shape} {b.dtype}")
    return call(np.dot, a, b, out=out)


_SAME = str.split(
    "add subtract multiply divide maximum minimum exp log log1p sqrt tanh where clip sign copysign zeros zeros_like ones "
    "arange matmul einsum stack broadcast_to take sum array_equal isfinite may_share_memory"
)


def install(monkeypatch):
    """Let `import cupy` give this, for one test."""
    from nnlite.backend.cupy import get_cupy_backend

    cupy = types.ModuleType("cupy")
    for name in _SAME:
        setattr(cupy, name, lambda *a, function=getattr(np, name), **k: call(function, *a, **k))
    for value in (asarray, ascontiguousarray, empty, asnumpy, dot, RawModule):
        setattr(cupy, value.__name__, value)
    cupy.ndarray = DeviceArray
    cupy.linalg = types.SimpleNamespace(norm=lambda x: call(np.linalg.norm, x))
    runtime = types.SimpleNamespace(memGetInfo=lambda: (1 << 30, 1 << 31))
    memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cupy.cuda = types.SimpleNamespace(is_available=lambda: True, runtime=runtime, memory=memory)
    compute = {"float32": 1}
    routines = types.SimpleNamespace(
        get_compute_type=lambda dtype: compute[dtype], set_compute_type=lambda dtype, kind: compute.update({dtype: kind})
    )
    cupy._core = types.SimpleNamespace(_routines_linalg=routines)
    special = types.ModuleType("cupyx.scipy.special")
    special.erf = lambda x: call(np.vectorize(math.erf, otypes=[x.dtype]), x)
    modules = {"cupy": cupy, "cupyx": types.ModuleType("cupyx"), "cupyx.scipy": types.ModuleType("cupyx.scipy")}
    for name, module in (modules | {"cupyx.scipy.special": special}).items():
        monkeypatch.setitem(sys.modules, name, module)
    get_cupy_backend.cache_clear()
    return cupy
