"""What is said where there is no CuPy, or no driver; that the pretended CuPy pretends nothing; that the kernels compile."""

import inspect
import re
from importlib.util import find_spec

import fake_cupy
import numpy as np
import pytest

import nnlite as nn
from nnlite.backend.cuda.cupy import get_cupy_backend
from nnlite.backend.cuda.kernels import REALS, Geometry, kernels, source
from nnlite.backend.window import Window

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
with_cupy = pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed here")


@pytest.fixture
def model():
    get_cupy_backend.cache_clear()
    return nn.Sequential(nn.Dense(2), input_shape=(3,))


def test_without_cupy(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(nn.DeviceError, match="needs CuPy: pip install"):
        model.to("cuda")
    assert model.device == "cpu"


@with_cupy
def test_with_cupy_but_no_driver(model):
    import cupy

    if cupy.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(nn.DeviceError, match="no usable CUDA driver or device"):
        model.to("cuda")
    assert model.device == "cpu"


@with_cupy
def test_the_pretended_cupy_has_only_what_cupy_has(monkeypatch):
    import cupy

    pretended = fake_cupy.install(monkeypatch)
    get_cupy_backend.cache_clear()
    missing = [name for name in vars(pretended) if not name.startswith("__") and not hasattr(cupy, name)]
    own = set(vars(fake_cupy.DeviceArray)) - {"_host", "_base", "__slots__", "__slotnames__"}
    missing += [f"ndarray.{name}" for name in own if not hasattr(cupy.ndarray, name)]
    assert not missing
    runtime = pretended.cuda.runtime
    assert not [name for name in vars(runtime) if not hasattr(cupy.cuda.runtime, name)]
    assert callable(cupy.cuda.get_cublas_handle)  # gemmEx itself needs the library, which needs a GPU's packages
    assert "code" in inspect.signature(cupy.RawModule.__init__).parameters or cupy.RawModule.__doc__


@with_cupy
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", REALS)
def test_kernels_compile_without_spilling_registers(architecture, dtype):
    from cupy.cuda import nvrtc

    compiled = {(kernel.file, ()) for kernel in kernels().values()}
    sliding = {kernel.file for kernel in kernels().values() if "Window" in kernel.kinds}
    compiled |= {(file, Geometry(Window.of((8, 8, 4), 3, 1, 1)).macros) for file in sliding}
    for file, macros in sorted(compiled):
        program = nvrtc.createProgram(source(file), file, (), ())
        options = (f"-arch={architecture}", "--std=c++17", f"-DREAL={REALS[dtype]}", "--ptxas-options=-v", *macros)
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        log = nvrtc.getProgramLog(program)
        assert nvrtc.getCUBIN(program)
        spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
        assert not any(spilled), log


def test_float16_is_refused():
    with pytest.raises(ValueError, match="float16"):
        nn.Sequential(nn.Dense(2), input_shape=(3,), dtype="float16")


def test_device_arrays_refuse_what_cupy_refuses(cuda):
    a = cuda.asarray(np.ones(3))
    for mix in (lambda: a + np.ones(3), lambda: np.ones(3) + a, lambda: np.asarray(a), lambda: np.exp(np.ones(3), out=a)):
        with pytest.raises(TypeError):
            mix()
    assert (np.float64(2) * a).get().tolist() == [2, 2, 2]
