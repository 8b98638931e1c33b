"""What a release is made of: `make dist` builds and tries all of it, this is its short form."""

import re
import subprocess
import sys
import tomllib
import zipfile
from datetime import date

import dist
import pytest

import nnlite as nn
from nnlite.backend.native import loader

BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    """The wheel without compiled kernels."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=dist.ROOT, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def libraries(*names):
    return {f"{name}/{loader.prebuilt_name(dtype)}": b"\x7fELF" for name in names for dtype in loader.DTYPES}


def text(wheel, name):
    with zipfile.ZipFile(wheel) as file:
        return file.read(f"nnlite_numpy-{nn.__version__}.dist-info/{name}").decode()


def test_the_pure_wheel_has_the_package_and_nothing_else(pure):
    dist.check_contents(pure)
    assert pure.name == f"nnlite_numpy-{nn.__version__}-py3-none-any.whl"
    metadata = text(pure, "METADATA")
    assert f"\nVersion: {nn.__version__}\n" in metadata and "\nLicense-Expression: MIT\n" in metadata


def test_a_wheel_with_kernels_is_one_of_its_platform(pure):
    wheel = dist.with_kernels(pure, "manylinux_2_17_x86_64", libraries("x86-64-v3", "x86-64-v4"))
    dist.check_contents(wheel)
    assert wheel.name == pure.name.replace("any", "manylinux_2_17_x86_64")
    assert text(wheel, "WHEEL") == text(pure, "WHEEL").replace("true", "false").replace("any", "manylinux_2_17_x86_64")
    assert text(wheel, "METADATA") == text(pure, "METADATA")


@pytest.mark.parametrize("names", [(), ("x86-64-v4",), ("x86-64-v3", "x86-64-v4", "aarch64")])
def test_a_wheel_with_other_libraries_is_refused(pure, names):
    with pytest.raises(SystemExit, match="has the libraries"):
        dist.check_contents(dist.with_kernels(pure, "manylinux_2_17_x86_64", libraries(*names)))


@pytest.mark.parametrize("change", ["nnlite/tests.py", "nnlite/model.py"])
def test_a_wheel_with_another_file_is_refused(pure, tmp_path, change):
    wheel = tmp_path / pure.name
    with zipfile.ZipFile(pure) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in {*old.namelist(), change}:
            new.writestr(name, "" if name == change else old.read(name))
    with pytest.raises(SystemExit, match=f"differs from the source tree: {change}"):
        dist.check_contents(wheel)


def test_the_citation_is_of_this_version():
    fields = dict(re.findall(r'^([a-z-]+): "?([^"\n]+)"?$', (dist.ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    project = tomllib.loads((dist.ROOT / "pyproject.toml").read_text())["project"]
    assert fields["cff-version"] == "1.2.0" and fields["type"] == "software" and fields["title"] and fields["message"]
    assert fields["version"] == nn.__version__ and fields["license"] == project["license"]
    released = date.fromisoformat(fields["date-released"])
    assert f"## [{nn.__version__}] - {released}\n" in (dist.ROOT / "CHANGELOG.md").read_text()
