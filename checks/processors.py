"""`make processors`: the same bits from every compiler, vector width and processor?

usage: python checks/processors.py [--out FILE] [PART ...]      PART: as of checks/bits.py

Compiles the C kernels in every way, runs `checks/bits.py` with each and compares. ARM64 is emulated: Debian's Python for that
processor runs the same script. What is not there yet is installed: qemu-user by apt, all else into .processors/.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy._core import _multiarray_umath

from nnlite.backend.native import loader

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".processors"
CLANG = "ziglang==0.17.1"
LEAST = 6
EMULATOR = "qemu-aarch64"
FEATURES = ",".join(f for f in _multiarray_umath.__cpu_dispatch__ if _multiarray_umath.__cpu_features__[f])


class Build(NamedTuple):
    """Kernels of one compiler with these flags, and what else differs."""

    name: str
    compiler: str
    flags: str
    avx512: bool = False
    arm: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012 (it is not changed)
    threads: int = 2


BUILDS = (
    Build("gcc, AVX-512", "gcc", "-march=x86-64-v4 -DVB=64", avx512=True),
    Build("gcc, AVX2", "gcc", "-march=x86-64-v3 -DVB=32", threads=3),
    Build("gcc -O2, vectors of 16 bytes", "gcc", "-O2 -march=x86-64-v3 -DVB=16", threads=1),
    Build("gcc, AVX2, NumPy's baseline", "gcc", "-march=x86-64-v3", environment={"NPY_DISABLE_CPU_FEATURES": FEATURES}),
    Build("Clang, AVX-512", "clang", "-mcpu=x86_64_v4 -DVB=64", avx512=True),
    Build("Clang, AVX2", "clang", "-mcpu=x86_64_v3 -DVB=32"),
    Build("Clang, ARM64 (emulated)", "clang -target aarch64-linux-gnu", "-mcpu=generic", arm=True),
)


# ---- what is needed


def is_there(command: str, package: str) -> None:
    """Install a package of Debian's that a command comes from, or say how and fail."""
    if shutil.which(command):
        return
    install = f"apt-get install --yes --no-install-recommends {package}"
    if os.geteuid() or not shutil.which("apt-get"):
        raise SystemExit(f"{command} is missing: sudo {install}")
    subprocess.run(["apt-get", "update", "--quiet"], check=True)
    subprocess.run(shlex.split(install), check=True)


def pip(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)], check=True)


def clang() -> Path:
    """Clang for every processor, with their C libraries: that of the package ziglang."""
    path = FOLDER / "zig" / "ziglang" / "zig"
    if not path.exists():
        pip("install", "--target", FOLDER / "zig", CLANG)
    return path


def arm_python() -> tuple[list[str], Path]:
    """The command of Debian's Python for ARM64, emulated, and the folder of the packages that nnlite needs, for it."""
    root, packages = FOLDER / "arm64", FOLDER / "arm64-packages"
    if not root.exists():
        unpack_python(root)
    python = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))[0]
    if not packages.exists():
        unpack_packages(packages, python.name.removeprefix("python"))
    return [EMULATOR, "-L", str(root), str(python)], packages


def unpack_python(root: Path) -> None:
    """By apt with folders of its own, so that the system's packages stay as they are."""
    own = FOLDER / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    (own / "status").touch()
    options = {
        "Dir::State": own / "state",
        "Dir::State::status": own / "status",
        "Dir::Cache": own / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "--quiet=2", *(f"--option={name}={value}" for name, value in options.items())]
    install = "install", "--download-only", "--yes", "--no-install-recommends", "python3", "libstdc++6", "zlib1g"
    for command in (["update"], install):
        if subprocess.run([*apt, *command]).returncode:
            raise SystemExit("apt has no Python for ARM64 here: Debian's has")
    with tempfile.TemporaryDirectory(dir=FOLDER) as unfinished:
        for package in sorted((own / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg", "--extract", package, unfinished], check=True)
        shutil.copytree(unfinished, root, symlinks=True)


def unpack_packages(target: Path, version: str) -> None:
    """nnlite's dependencies, built for ARM64."""
    names = "numpy<3", "safetensors<1", "threadpoolctl<4", "tqdm<5"
    systems = [f"--platform=manylinux{suffix}_aarch64" for suffix in ("2014", "_2_27", "_2_28")]
    with tempfile.TemporaryDirectory(dir=FOLDER) as wheels:
        only = "--no-deps", "--only-binary=:all:", f"--python-version={version}"
        pip("download", "--dest", wheels, *only, *systems, *names)
        with tempfile.TemporaryDirectory(dir=FOLDER) as unfinished:
            for wheel in Path(wheels).glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(unfinished)
            shutil.copytree(unfinished, target)


# ---- runs


def run(build: Build, parts: list[str]) -> dict[str, str]:
    """The hashes of a build by name, its kernels compiled anew."""
    command, packages = arm_python() if build.arm else ([sys.executable], None)
    compiler = build.compiler.replace("clang", f"{clang()} cc")
    paths = [str(ROOT), *([str(packages)] if packages else [])]
    with tempfile.TemporaryDirectory(prefix="nnlite-bits-") as cache:
        environment = {
            **os.environ,
            **build.environment,
            "CC": compiler,
            "NNLITE_CFLAGS": build.flags,
            "NNLITE_CACHE": cache,
            "NNLITE_KERNELS": "native",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ZIG_GLOBAL_CACHE_DIR": str(FOLDER / "zig-cache"),
            "ZIG_LOCAL_CACHE_DIR": str(FOLDER / "zig-cache"),
        }
        script = str(ROOT / "checks" / "bits.py"), "--threads", str(build.threads), *parts
        done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{build.name}: checks/bits.py failed:\n{done.stderr}")
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def has_avx512() -> bool:
    return all(_multiarray_umath.__cpu_features__[f] for f in ("AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL"))


def differing(hashes: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """The names whose hashes are not the same in all builds, with the builds that differ from the first."""
    first = next(iter(hashes.values()))
    names = dict.fromkeys(name for build in hashes.values() for name in build)
    found = {name: [build for build in hashes if hashes[build].get(name) != first.get(name)] for name in names}
    return {name: builds for name, builds in found.items() if builds}


def machine() -> str:
    """Its processor, and the versions of what was used."""
    model = re.search(r"model name\s*: (.*)", loader.processor())
    commands = ["gcc"], [str(clang()), "cc"], [EMULATOR]
    found = [subprocess.run([*c, "--version"], capture_output=True, text=True).stdout.splitlines()[0] for c in commands]
    python = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return "; ".join([model[1] if model else platform.machine(), *found, python])


def report(hashes: dict[str, dict[str, str]], seconds: dict[str, float], left_out: list[str], about: str) -> list[str]:
    differ = differing(hashes)
    lines = [
        "# The same bits on every processor",
        "",
        f"{date.today()}: {about}.",
        "",
        "Each build runs `checks/bits.py` through nnlite itself, ARM64 in Debian's Python for that processor.",
        "",
        "| build | flags | threads | hashes | differ | seconds |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for build in BUILDS:
        if build.name in hashes:
            count = sum(build.name in builds for builds in differ.values())
            row = build.name, f"`{build.flags}`", build.threads, len(hashes[build.name]), count, round(seconds[build.name])
            lines.append(f"| {' | '.join(map(str, row))} |")
    lines += [f"| {name} | left out: this processor has no AVX-512 | | | | |" for name in left_out]
    if differ:
        lines += ["", "Not the same as in the first build:", ""]
        lines += [f"- {name}: {', '.join(builds)}" for name, builds in differ.items()]
    golden = next(iter(hashes.values())).get("golden run")
    if golden:
        lines += ["", f"The golden run of the tests: {golden}."]
    total = len({name for build in hashes.values() for name in build})
    return [*lines, "", f"{total} hashes, {len(hashes)} builds, {len(differ)} differ"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if platform.machine() != "x86_64":
        raise SystemExit("this check emulates ARM64 on x86-64: it needs such a processor")
    FOLDER.mkdir(exist_ok=True)
    is_there("gcc", "gcc libc6-dev")
    is_there(EMULATOR, "qemu-user")
    left_out = [build.name for build in BUILDS if build.avx512 and not has_avx512()]
    hashes: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for build in BUILDS:
        if build.name not in left_out:
            start = time.perf_counter()
            hashes[build.name] = run(build, args.parts)
            seconds[build.name] = time.perf_counter() - start
            print(f"{build.name}: {len(hashes[build.name])} hashes in {seconds[build.name]:.0f} s", flush=True)
    lines = report(hashes, seconds, left_out, machine())
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    if len(hashes) + len(left_out) < LEAST:
        raise SystemExit(f"fewer than {LEAST} builds")
    if differing(hashes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
