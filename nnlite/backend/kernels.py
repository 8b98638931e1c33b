"""The CUDA kernels in `cuda/*.cu`: found by name, compiled when first used, one module for each file and dtype."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnlite.backend.window import Array

FOLDER = Path(__file__).with_name("cuda")
REALS = {"float32": "float", "float64": "double"}
_TYPES = {
    "int": "int32",
    "long long": "int64",
    "unsigned": "uint32",
    "unsigned short": "uint16",
    "word": "uint64",
    "double": "float64",
    "Window": "int32",
}  # the others, real and Sums, are of the dtype that the module is compiled for
_THREADS, _MOST_BLOCKS = 256, 1 << 14


class Kernel(NamedTuple):
    """Where a kernel stands and the C types of its parameters."""

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
    """The text that is compiled: what all kernels share, and the file."""
    return (FOLDER / "common.h").read_text() + (FOLDER / file).read_text()


class Kernels:
    """Launches kernels; `cupy`: the module."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._functions: dict[tuple[str, str], Any] = {}
        self._modules: dict[tuple[str, str], Any] = {}

    def rows(self, name: str, dtype: Any, rows: int, columns: int, *args: Any) -> None:
        """A kernel in which a row of threads takes a pixel and its columns the channels."""
        width = 1 << min(8, max(0, columns - 1).bit_length())
        height = _THREADS // width
        self.launch(name, dtype, (_blocks(rows, height), 1, 1), (width, height, 1), *args)

    def values(self, name: str, dtype: Any, values: int, *args: Any) -> None:
        """A kernel in which a thread takes a value."""
        self.launch(name, dtype, (_blocks(values, _THREADS), 1, 1), (_THREADS, 1, 1), *args)

    def launch(self, name: str, dtype: Any, grid: tuple[int, int, int], block: tuple[int, int, int], *args: Any) -> None:
        """Run a kernel; numbers take the types of its parameters, None is a null pointer."""
        dtype = np.dtype(dtype)
        function = self._functions.get((name, dtype.name)) or self._compile(name, dtype.name)
        values = zip(kernels()[name].kinds, args, strict=True)
        function(grid, block, tuple(_argument(name, kind, value, dtype) for kind, value in values))

    def _compile(self, name: str, dtype: str) -> Any:
        file = kernels()[name].file
        if (file, dtype) not in self._modules:
            options = (f"-DREAL={REALS[dtype]}", "--std=c++17")
            self._modules[file, dtype] = self._cupy.RawModule(code=source(file), options=options, backend="nvrtc")
        function = self._functions[name, dtype] = self._modules[file, dtype].get_function(name)
        return function


def _blocks(work: int, a_block: int) -> int:
    return max(1, min(-(-work // a_block), _MOST_BLOCKS))


def _argument(name: str, kind: str, value: Any, dtype: np.dtype[Any]) -> Any:
    expected = np.dtype(_TYPES.get(kind.removeprefix("const ").removesuffix("*"), dtype))
    if not kind.endswith("*"):
        return expected.type(value)
    return np.uint64(0) if value is None else _checked(name, value, expected)


def _checked(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"{name} needs {dtype} in one piece, got {array.dtype} of strides {array.strides} for {array.shape}")
    return array
