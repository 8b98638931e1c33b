"""Whose kernels a model uses, and where they come from."""

import os
import platform
import subprocess
import sys

import bits
import numpy as np
import pytest

import nnlite as nn
from nnlite import kernels as command
from nnlite.backend.native import loader

rng = np.random.default_rng(0)


def model(**options):
    return nn.Sequential(nn.Conv2D(4, 3), nn.ReLU(), nn.Flatten(), nn.Dense(3), input_shape=(6, 6, 2), **options)


def run(code, folder, **environment):
    """The outcome of a program with a cache folder of its own."""
    variables = {**os.environ, "NNLITE_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)


BUILD = "import nnlite as nn; m = nn.Sequential(nn.Dense(2), input_shape=(3,)); print(m.kernels, m([[1., 2., 3.]]).shape)"


def test_models_built_copied_loaded_or_moved_afterwards_use_it(native, tmp_path):
    import copy
    import pickle

    nn.set_kernels("numpy")
    built = model()
    built.save(tmp_path / "m.safetensors")
    pickled = pickle.dumps(built)
    nn.set_kernels("native")
    assert built.kernels == "numpy"
    others = [copy.deepcopy(built), nn.load(tmp_path / "m.safetensors"), pickle.loads(pickled), model()]
    assert [other.kernels for other in others] == ["native"] * 4
    x = rng.standard_normal((5, 6, 6, 2)).astype("float32")
    for other in others:
        np.testing.assert_allclose(other(x), built(x), atol=1e-5)
    assert built.to("cpu").kernels == "native"
    nn.set_kernels("numpy")
    assert copy.deepcopy(built).kernels == "numpy" and built.kernels == "native"


def test_other_names_are_refused():
    with pytest.raises(ValueError, match='"auto", "native" or "numpy"'):
        nn.set_kernels("c")


def test_the_environment_sets_the_default(native, tmp_path):
    assert run(BUILD, loader.cache_folder().parent, NNLITE_KERNELS="native").stdout.startswith("native")
    assert run(BUILD, tmp_path, NNLITE_KERNELS="numpy").stdout.startswith("numpy")
    done = run(BUILD, tmp_path, NNLITE_KERNELS="fast")
    assert done.returncode and "NNLITE_KERNELS must be" in done.stderr


def test_without_a_compiler_numpy_goes_on(tmp_path):
    done = run(BUILD, tmp_path, NNLITE_KERNELS="auto", PATH="", CC="")
    assert done.stdout == "numpy (1, 2)\n"
    assert done.stderr.count("\n") == 1 and "no C compiler was found" in done.stderr
    done = run(BUILD, tmp_path, NNLITE_KERNELS="native", PATH="", CC="")
    assert "DeviceError: no C compiler was found" in done.stderr


def test_other_systems_than_linux_take_only_a_compiler_that_is_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("CC", "clang -O2")
    assert loader.find_compiler() == ["clang", "-O2"]
    monkeypatch.delenv("CC")
    with pytest.raises(nn.DeviceError, match="on Linux only: set CC"):
        loader.find_compiler()


def test_a_compiler_that_fails_is_one_line(tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'error: out of order' >&2\nexit 1\n")
    broken.chmod(0o700)
    done = run(f"import warnings; warnings.simplefilter('error'); {BUILD}", tmp_path, NNLITE_KERNELS="auto", CC=str(broken))
    assert done.stdout == "numpy (1, 2)\n"
    assert done.stderr.splitlines()[-1] == "nnlite: NumPy's kernels are used: the C compiler failed: error: out of order"
    assert not list(tmp_path.rglob("*.so"))
    done = run(BUILD, tmp_path, NNLITE_KERNELS="native", CC=str(broken))
    assert "DeviceError: the C compiler failed: error: out of order" in done.stderr


def test_a_compiler_that_does_not_run(tmp_path):
    done = run(BUILD, tmp_path, NNLITE_KERNELS="auto", CC=str(tmp_path / "absent"))
    assert done.stdout == "numpy (1, 2)\n" and "does not run" in done.stderr


def test_own_flags_come_behind_ours_and_make_another_library(native, monkeypatch):
    compiler = loader.find_compiler()
    usual = loader._key("product", "float32", compiler)
    monkeypatch.setenv("NNLITE_CFLAGS", "-DVB=16 '-DNAME=a b'")
    assert loader._key("product", "float32", compiler) != usual
    assert loader._own_flags() == ["-DVB=16", "-DNAME=a b"]


def test_a_compiler_refuses_unknown_flags_of_ones_own(native, tmp_path):
    done = run(BUILD, tmp_path, NNLITE_KERNELS="native", NNLITE_CFLAGS="-fno-such-option")
    assert "DeviceError: the C compiler failed" in done.stderr and "-fno-such-option" in done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="every ARM64 has fused multiply-add")
def test_a_processor_without_fused_multiply_add_is_refused(native, tmp_path):
    done = run(BUILD, tmp_path, NNLITE_KERNELS="auto", NNLITE_CFLAGS="-march=x86-64-v2")
    assert done.stdout == "numpy (1, 2)\n" and "need a processor with fused multiply-add" in done.stderr


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    code = "from nnlite.backend.native import loader; print(loader.cache_folder())"
    used = run(code, tmp_path).stdout.strip()
    assert used and used != str(folder)
    folder.chmod(0o700)
    assert run(code, tmp_path).stdout.strip() == str(folder)


def test_a_library_that_others_could_have_changed_is_compiled_anew(tmp_path):
    library = tmp_path / "x.so"
    library.write_bytes(b"")
    library.chmod(0o700)
    assert loader._is_trusted(library)
    library.chmod(0o722)
    assert not loader._is_trusted(library)


def test_two_processes_may_compile_at_once(native, tmp_path):
    variables = {
        **os.environ,
        "NNLITE_CACHE": str(tmp_path),
        "NNLITE_KERNELS": "native",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    both = [subprocess.Popen([sys.executable, "-c", BUILD], env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["native (1, 2)\n"] * 2
    folder = tmp_path / "kernels"
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == loader.files("float32")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_command(native, capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert "float32: as NumPy" in out and "float64: as NumPy" in out and "uint8: as NumPy" in out and "in use: " in out


def test_the_command_clears_the_cache(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    (folder / "a.so").write_bytes(b"")
    done = run("from nnlite.kernels import main; main(['--clear'])", tmp_path)
    assert done.stdout.startswith("deleted 1 files") and not list(folder.iterdir())


def test_a_run_of_other_kernels_is_not_resumed(native, tmp_path):
    x, t = rng.standard_normal((8, 6, 6, 2)).astype("float32"), np.arange(8) % 3
    fit = {"epochs": 1, "batch_size": 4, "checkpoint": tmp_path}
    nn.set_kernels("numpy")
    nn.Trainer(model(), nn.CrossEntropy(), nn.SGD(0.1)).fit((x, t), **fit)
    nn.set_kernels("native")
    with pytest.raises(nn.StateError, match="kernels was 'numpy', is 'native'"):
        nn.Trainer(model(), nn.CrossEntropy(), nn.SGD(0.1)).fit((x, t), **fit | {"epochs": 2}, resume=True)


def test_a_library_that_does_not_load_is_one_line(native, tmp_path):
    code = "import nnlite.backend.native.loader as l; l.load('float32'); print(*l.cache_folder().iterdir(), sep='\\n')"
    for path in run(code, tmp_path).stdout.split():
        with open(path, "wb") as file:
            file.write(b"no library")
    done = run(BUILD, tmp_path, NNLITE_KERNELS="auto")
    assert done.stdout == "numpy (1, 2)\n" and "do not load" in done.stderr and done.stderr.count("\n") == 1


# ---- libraries of a wheel


AVX2 = "flags\t\t: fpu avx avx2 bmi1 bmi2 f16c fma abm movbe"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A folder of libraries for every processor, empty ones, on a machine to be named."""
    monkeypatch.delenv("NNLITE_CFLAGS", raising=False)
    monkeypatch.setattr(loader, "PREBUILT", tmp_path)
    for name in loader.PROCESSORS:
        (tmp_path / name).mkdir()
        (tmp_path / name / loader.prebuilt_name("float32")).touch()

    def chosen(machine, text):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(loader, "processor", lambda: text)
        path = loader.prebuilt("float32")
        return path and path.parent.name

    return chosen


def test_a_wheel_has_libraries_for_several_processors(wheel, tmp_path):
    assert wheel("x86_64", AVX512) == "x86-64-v4" and wheel("x86_64", AVX2) == "x86-64-v3"
    assert wheel("x86_64", AVX512.replace(" avx512bw", "")) == "x86-64-v3"
    assert wheel("x86_64", AVX2.replace(" fma", "")) is None and wheel("riscv64", "") is None
    assert wheel("aarch64", "Features\t: fp asimd") == "aarch64"
    assert wheel("aarch64", AVX512) == "aarch64"  # in an emulator, which shows the host's processor
    (tmp_path / "x86-64-v4" / loader.prebuilt_name("float32")).unlink()
    assert wheel("x86_64", AVX512) == "x86-64-v3"


def test_a_library_of_other_sources_is_not_used(wheel, monkeypatch):
    usual = loader._includes
    monkeypatch.setattr(loader, "_includes", lambda source: usual(source) + "//" * (source == "sums"))
    assert wheel("x86_64", AVX512) is None


@pytest.mark.parametrize("name", ["FLAGS", "NNLITE_CFLAGS"])
def test_a_library_of_other_flags_is_not_used(wheel, monkeypatch, name):
    assert wheel("x86_64", AVX512)
    monkeypatch.setattr(loader, "FLAGS", loader.FLAGS + " -DVB=16") if name == "FLAGS" else monkeypatch.setenv(name, "-DVB=16")
    assert wheel("x86_64", AVX512) is None


def test_a_library_of_a_wheel_needs_no_compiler_and_gives_the_same_bits(native, tmp_path):
    name = next(name for name, (machine, _) in loader.PROCESSORS.items() if machine == platform.machine())
    flags = loader.FLAGS.replace("-O3", "-O0").split()
    (tmp_path / name).mkdir()
    for dtype in ("float32", "uint8"):
        sources = [str(loader.FOLDER / f"{source}.c") for source in loader.files(dtype)]
        command = [*loader.find_compiler(), *flags, *loader.DTYPES[dtype], *sources]
        subprocess.run([*command, "-o", str(tmp_path / name / loader.prebuilt_name(dtype))], check=True)
    code = f"from pathlib import Path; from nnlite.backend.native import loader; loader.PREBUILT = Path({str(tmp_path)!r})"
    code += "; import bits, nnlite as nn; print(bits.golden(nn.data.shapes(n=60, seed=2).train, 1), loader.origin())"
    done = run(code, tmp_path / "cache", NNLITE_KERNELS="native", PATH="", CC="")
    nn.set_kernels("native")
    expected = bits.golden(nn.data.shapes(n=60, seed=2).train, 1)
    assert done.stdout == f"{expected} prebuilt for {name}, in {tmp_path / name}\n" and not done.stderr
    assert not list((tmp_path / "cache").rglob("*.so"))
