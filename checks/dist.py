"""`make dist`: a release in dist/, each of its files built twice, checked and tried in an empty environment.

usage: python checks/dist.py [--out FOLDER]     (needs the `dist` extra)

An sdist, a wheel that compiles its kernels when they are first used, and wheels for Linux that bring them, for each of
`loader.PROCESSORS`, from Clang, on all systems with glibc 2.17 or later. Every Python that is found, on PATH or of pyenv,
installs them and, without a compiler, trains to the hash that this source tree gives; ARM64 is emulated.
"""

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import processors

from nnlite.backend.native import loader

ROOT = Path(__file__).resolve().parent.parent
LIBC = "linux-gnu.2.17"
PLATFORM = "manylinux_2_17"
CPUS = {"x86-64-v4": "x86_64_v4", "x86-64-v3": "x86_64_v3", "aarch64": "generic"}  # as Clang's -mcpu names them
NATIVE = "nnlite/backend/native"
NUMPY = "no C kernels, NumPy's are used"
TRAIN = """
import sys, numpy, bits, nnlite as nn, nnlite.kernels
data = nn.data.shapes(n=400, seed=2)
model = nn.Sequential(nn.Conv2D(4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dense(10), input_shape=(32, 32, 3))
model.save("m.safetensors")
assert (nn.load("m.safetensors")(data.test.images) == model(data.test.images)).all()
nnlite.kernels.main([])  # which compares them with NumPy for every dtype, and says what is used
print(bits.golden(data.train, 4), nn.__file__, sep="\\n")
print(f"nnlite {nn.__version__}, Python {sys.version.split()[0]}, NumPy {numpy.__version__}")
"""


# ---- what is built


def build(folder: Path) -> list[Path]:
    """The sdist, the pure wheel made from it, and the wheels with kernels."""
    seconds = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    environment = {**os.environ, "SOURCE_DATE_EPOCH": seconds.strip()}
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    pure = next(folder.glob("*.whl"))
    for machine in dict.fromkeys(machine for machine, _ in loader.PROCESSORS.values()):
        names = [name for name, (of, _) in loader.PROCESSORS.items() if of == machine]
        libraries = {f"{name}/{loader.prebuilt_name(d)}": library(name, machine, d) for name in names for d in loader.DTYPES}
        with_kernels(pure, f"{PLATFORM}_{machine}", libraries)
    return sorted(folder.iterdir())


def library(name: str, machine: str, dtype: str) -> bytes:
    """The kernels for this dtype on this kind of processor, in one library."""
    flags = loader.FLAGS.replace("-march=native", f"-mcpu={CPUS[name]}").split()
    sources = [f"{source}.c" for source in loader.files(dtype)]
    with tempfile.TemporaryDirectory() as cache:
        path = Path(cache) / "kernels.so"
        command = [processors.clang(), "cc", "-target", f"{machine}-{LIBC}", *flags, *loader.DTYPES[dtype], *sources]
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        subprocess.run([*command, "-Wno-unknown-attributes", "-s", "-o", path], env=environment, cwd=loader.FOLDER, check=True)
        return path.read_bytes()


def with_kernels(pure: Path, platform: str, libraries: dict[str, bytes]) -> Path:
    """The wheel for a platform: the pure one, and libraries by their paths among those that the loader looks for."""
    target = pure.with_name(pure.name.replace("none-any", f"none-{platform}"))
    with zipfile.ZipFile(pure) as wheel:
        members = {member.filename: (member, wheel.read(member)) for member in wheel.infolist()}
    record = next(name for name in members if name.endswith(".dist-info/RECORD"))
    info, _ = members.pop(record)
    about, text = members[record.replace("RECORD", "WHEEL")]
    text = text.replace(b"Root-Is-Purelib: true", b"Root-Is-Purelib: false").replace(b"none-any", f"none-{platform}".encode())
    members[about.filename] = about, text
    for path, content in libraries.items():
        member = zipfile.ZipInfo(f"{NATIVE}/prebuilt/{path}", info.date_time)
        member.external_attr, member.compress_type = 0o100755 << 16, zipfile.ZIP_DEFLATED
        members[member.filename] = member, content
    lines = [f"{name},sha256={digest(content)},{len(content)}\n" for name, (_, content) in members.items()]
    members[record] = info, "".join([*lines, f"{record},,\n"]).encode()
    with zipfile.ZipFile(target, "w") as wheel:
        for member, content in members.values():
            wheel.writestr(member, content)
    return target


def digest(content: bytes) -> str:
    """As RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


# ---- what is checked


def check_contents(wheel: Path) -> None:
    """Raise SystemExit unless it has each file of the package, its platform's libraries and no other, all in RECORD."""
    with zipfile.ZipFile(wheel) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
    package = {name: content for name, content in contents.items() if not name.startswith((info, f"{NATIVE}/prebuilt/"))}
    sources = (path for path in (ROOT / "nnlite").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sources}
    if package != expected:
        raise SystemExit(f"{wheel.name} differs from the source tree: {sorted(package.items() ^ expected.items())[0][0]}")
    if binary := [name for name, content in package.items() if b"\0" in content]:
        raise SystemExit(f"{wheel.name} has binary files: {binary}")
    libraries = {name.removeprefix(f"{NATIVE}/prebuilt/") for name in contents.keys() - package.keys() if info not in name}
    machine = wheel.stem.partition("17_")[2]
    names = [name for name, (of, _) in loader.PROCESSORS.items() if of == machine]
    if libraries != {f"{name}/{loader.prebuilt_name(dtype)}" for name in names for dtype in loader.DTYPES}:
        raise SystemExit(f"{wheel.name} has the libraries {sorted(libraries)}")
    rows = [line.rsplit(",", 2) for line in contents[f"{info}RECORD"].decode().splitlines()]
    recorded = {name: (hashed, size) for name, hashed, size in rows if size}
    if recorded != {n: (f"sha256={digest(c)}", str(len(c))) for n, c in contents.items() if n != f"{info}RECORD"}:
        raise SystemExit(f"{wheel.name} has a wrong RECORD")


def check_repeated(first: list[Path], second: list[Path]) -> None:
    """Raise SystemExit unless two builds have the same bytes."""
    for a, b in zip(first, second, strict=True):
        if a.name != b.name or a.read_bytes() != b.read_bytes():
            raise SystemExit(f"{a.name} has other bytes when it is built again")


# ---- what is tried


def pythons() -> list[str]:
    """One interpreter for each version from 3.11 on, on PATH or of pyenv, that can make environments."""
    names = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = dict[str, str]()
    for path in [sys.executable, *names, *versions.glob("3.*/bin/python")]:
        code = "import sys, ensurepip, venv; print('{}.{}'.format(*sys.version_info))"
        done = path and subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done and not done.returncode and int(done.stdout.split(".")[1]) >= 11:
            found.setdefault(done.stdout.strip(), str(path))
    return [found[version] for version in sorted(found)]


def install(python: str, wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment that has the wheel and what it depends on."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True)
    return folder / "bin" / "python"


def train(command: list[str], kernels: str, packages: list[Path], path: str = "") -> None:
    """Train the golden run; raise SystemExit unless these kernels are used and, if they are in C, the hash is the tree's."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "CC" and not name.startswith("NNLITE")}
        paths = os.pathsep.join(map(str, [*packages, ROOT / "checks"]))
        environment |= {"PATH": path, "NNLITE_CACHE": folder, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([*command, "-c", TRAIN], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"training failed:\n{done.stderr}")
    used, golden, file, about = done.stdout.splitlines()[-4:]
    is_alike = golden == of_tree() or kernels == NUMPY
    if Path(file).is_relative_to(ROOT / "nnlite") or not used.startswith(kernels) or not is_alike:
        raise SystemExit(f"expected {kernels}, {of_tree()}, got:\n{done.stdout}")
    print(f"{about}: {kernels}, hash {golden}", flush=True)


def of_tree() -> str:
    """The hash that every build of this source tree gives: see `make processors`."""
    text = (ROOT / "benchmarks" / "results" / "processors.md").read_text()
    return text.partition("The golden run of the tests: ")[2].partition(".")[0]


def try_all(wheels: dict[str, Path]) -> None:
    """On every Python here, with each set of kernels; for ARM64 in an emulator."""
    best = ["x86-64-v4", "x86-64-v3"] if processors.has_avx512() else ["x86-64-v3"]
    for python in pythons():
        with tempfile.TemporaryDirectory() as folder:
            installed = install(python, wheels["x86_64"], Path(folder))
            for name in best:
                train([str(installed)], f"in use: prebuilt for {name}", [])
                place = next(Path(folder).rglob(f"prebuilt/{name}"))
                shutil.rmtree(place)
    with tempfile.TemporaryDirectory() as folder:
        installed = install(sys.executable, wheels["any"], Path(folder))
        train([str(installed)], NUMPY, [])
        train([str(installed)], "in use: compiled", [], os.environ["PATH"])
    command, packages = processors.arm_python()
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheels["aarch64"]).extractall(folder)
        emulator = shutil.which(command[0])
        train([str(emulator), *command[1:]], "in use: prebuilt for aarch64", [Path(folder), packages])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    processors.FOLDER.mkdir(exist_ok=True)
    processors.is_there(processors.EMULATOR, "qemu-user")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    files = build(args.out)
    with tempfile.TemporaryDirectory() as again:
        check_repeated(files, build(Path(again)))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    wheels = {file.stem.partition("none-")[2].removeprefix(f"{PLATFORM}_"): file for file in files if file.suffix == ".whl"}
    for wheel in wheels.values():
        check_contents(wheel)
    try_all(wheels)
    for file in files:
        content = file.read_bytes()
        print(f"{hashlib.sha256(content).hexdigest()}  {file.name}  {len(content) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
