"""The CUDA kernels in `cuda/*.cu`: found by name, compiled when first used, one module for each file, dtype and window."""

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnlite.backend.window import Array, Window

FOLDER = Path(__file__).parent
REALS = {"float32": "float", "float64": "double"}
_TYPES = {
    "int": "int32",
    "long long": "int64",
    "unsigned": "uint32",
    "unsigned short": "uint16",
    "word": "uint64",
    "double": "float64",
}  # the others, real and Sums, have the dtype that the module is compiled for
_THREADS, _MOST_BLOCKS = 256, 1 << 12
_MOST_IMAGES = (1 << 16) - 1  # of a grid's second axis
_WIDE = 16  # bytes that a thread reads at once, where channels allow it

# Windows with a module of their own, (kernel, stride): the most common ones.
SPECIALISED = {((3, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (2, 2)), ((2, 2), (2, 2))}

_FIELDS = "height width out_height out_width kernel_height kernel_width stride_y stride_x dilation_y dilation_x top left"
_WINDOW = np.dtype([(name, np.int32) for name in _FIELDS.split()])


class Geometry:
    """A window in the form of the kernels: `value` is `struct Window` of common.h, `macros` the sizes known at compile time."""

    def __init__(self, window: Window) -> None:
        (top, _), (left, _) = window.padding
        sizes = (*window.in_shape[:2], *window.out_size, *window.kernel, *window.stride, *window.dilation, top, left)
        self.value = np.array([sizes], _WINDOW)
        self.macros: tuple[str, ...] = ()
        if (window.kernel, window.stride) in SPECIALISED:
            names = ("KERNEL_HEIGHT", "KERNEL_WIDTH", "STRIDE_Y", "STRIDE_X")
            numbers = zip(names, (*window.kernel, *window.stride), strict=True)
            self.macros = tuple(f"-D{name}={number}" for name, number in numbers)


class Kernel(NamedTuple):
    """The file of a kernel and the C types of its parameters."""

    file: str
    kinds: tuple[str, ...]


@cache
def kernels() -> dict[str, Kernel]:
    """All kernels by name."""
    found: dict[str, Kernel] = {}
    for path in sorted(FOLDER.glob("*.cu")):
        for name, parameters in re.findall(r"^KERNEL (\w+)\(([^)]*)\)", path.read_text(), re.MULTILINE):
            kinds = tuple(re.sub(r"\w+$", "", " ".join(p.split())).strip() for p in parameters.split(","))
            found[name] = Kernel(path.name, kinds)
    return found


@cache
def source(file: str) -> str:
    """The text that is compiled: common.h and the file."""
    return (FOLDER / "common.h").read_text() + (FOLDER / file).read_text()


class Kernels:
    """Launches kernels; `cupy`: the module."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._ready: dict[tuple[str, Any, tuple[str, ...]], tuple[Any, list[Callable[[Any], Any]]]] = {}
        self._modules: dict[tuple[str, str, tuple[str, ...]], Any] = {}

    def values(self, name: str, dtype: Any, values: int, *args: Any) -> None:
        """Launch a kernel with a thread per value."""
        self.launch(name, dtype, (_blocks(values, _THREADS), 1, 1), (_THREADS, 1, 1), *args)

    def rows(self, name: str, a: Array, *args: Any) -> None:
        """Launch a kernel with a row of threads per row of a matrix (..., C); the columns are the channels."""
        width = _width(a.shape[-1], a.itemsize)
        height = _THREADS // width
        rows = a.size // max(1, a.shape[-1])
        self.launch(name, a.dtype, (_blocks(rows, height), 1, 1), (width, height, 1), *args)

    def images(self, name: str, dtype: Any, geometry: Geometry, shape: tuple[int, ...], *args: Any) -> None:
        """Launch a kernel with a row of threads per pixel of images (N, H, W, C); the columns are the channels.

        Window, images and channels are the last three parameters of each such kernel.
        """
        n, height, width, channels = shape
        across = _width(channels, np.dtype(dtype).itemsize)
        down = min(_THREADS // across, 1 << (height * width - 1).bit_length())
        grid = (_blocks(height * width, down), min(n, _MOST_IMAGES), 1)
        self.launch(name, dtype, grid, (across, down, 1), *args, geometry.value, n, channels, macros=geometry.macros)

    def launch(
        self,
        name: str,
        dtype: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *args: Any,
        macros: tuple[str, ...] = (),
    ) -> None:
        """Launch a kernel; numbers are converted to the types of its parameters, None is a null pointer."""
        function, converters = self._ready.get((name, dtype, macros)) or self._prepare(name, dtype, macros)
        function(grid, block, tuple(convert(value) for convert, value in zip(converters, args, strict=True)))

    def _prepare(self, name: str, dtype: Any, macros: tuple[str, ...]) -> Any:
        """The compiled kernel and the conversions of its arguments: made once, so that a launch takes little Python."""
        real, kernel = np.dtype(dtype), kernels()[name]
        key = kernel.file, real.name, macros
        if key not in self._modules:
            options = (f"-DREAL={REALS[real.name]}", "--std=c++17", *macros)
            self._modules[key] = self._cupy.RawModule(code=source(kernel.file), options=options, backend="nvrtc")
        converters = [self._converter(name, kind, real) for kind in kernel.kinds]
        ready = self._ready[name, dtype, macros] = self._modules[key].get_function(name), converters
        return ready

    def _converter(self, name: str, kind: str, real: np.dtype[Any]) -> Callable[[Any], Any]:
        if kind == "Window":
            return lambda window: window
        expected = np.dtype(_TYPES.get(kind.removeprefix("const ").removesuffix("*"), real))
        if not kind.endswith("*"):
            return expected.type
        return partial(_read if kind.startswith("const ") else _written, self._cupy, name, expected)


def _blocks(work: int, a_block: int) -> int:
    return max(1, min(-(-work // a_block), _MOST_BLOCKS))


@cache
def _width(channels: int, itemsize: int) -> int:
    """Columns of threads for `channels`; a thread takes _WIDE bytes of channels at once if that divides them."""
    wide = _WIDE // itemsize
    columns = channels // wide if channels % wide == 0 else channels
    return 1 << min(8, max(0, columns - 1).bit_length())


def _read(cupy: Any, name: str, dtype: np.dtype[Any], array: Array | None) -> Any:
    """An array for a kernel to read; a user's array that is not contiguous is copied."""
    if array is None:
        return np.uint64(0)
    if array.dtype != dtype:
        raise TypeError(f"{name} needs {dtype}, got {array.dtype}")
    return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)


def _written(cupy: Any, name: str, dtype: np.dtype[Any], array: Array | None) -> Any:
    if array is None:
        return np.uint64(0)
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"{name} writes contiguous {dtype}, got {array.dtype} of strides {array.strides} for {array.shape}")
    return array
