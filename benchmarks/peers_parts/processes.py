"""The workers of `peers.py` seen from outside, and measurements of whole processes: memory, imports, size on disk."""

import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers_parts.tasks import Task
from peers_parts.worker import environment

SCRIPT = Path(__file__).parent.with_name("peers.py")
MODULES = {  # others: their names
    "nnlite-numpy": "nnlite",
    "torch.compile": "torch",
    "keras": "tensorflow",
}
IMPORTS = {"keras": "keras", "sklearn": "sklearn.neural_network"}  # others: as above
DISTRIBUTIONS = {
    "nnlite": ("nnlite-numpy",),
    "torch": ("torch",),
    "keras": ("tensorflow-cpu", "tensorflow"),
    "jax": ("jax",),
    "sklearn": ("scikit-learn",),
    "onnxruntime": ("onnxruntime",),
}


class WorkerError(Exception):
    """A system failed; the message is the last line that it wrote to stderr."""


class Process:
    """A worker: `start` returns at once, `wait` when it is ready."""

    def __init__(self, system: str, threads: int, arguments: list[str], python: str = sys.executable) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the worker runs)
        command = [python, str(SCRIPT), "--worker", system, "--threads", str(threads), *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(system, threads),
        )

    @classmethod
    def start(cls, system: str, task: Task, threads: int, python: str) -> "Process":
        return cls(system, threads, ["--tasks", task.key], python)

    def wait(self) -> dict[str, Any]:
        """The next answer. Raises WorkerError if the process ended without one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            lines = [text.strip() for text in self.errors if text.strip()]
            raise WorkerError(lines[-1] if lines else f"ended with {self.process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: str, seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps({command: seconds}), file=self.process.stdin, flush=True)
        return self.wait()

    def stop(self) -> None:
        """Let the worker end: it has no more commands to read."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def is_installed(system: str) -> bool:
    return importlib.util.find_spec(MODULES.get(system, system)) is not None


def peak_memory(system: str, threads: int) -> int:
    """Bytes of training the tutorial CNN, without imports and inputs."""
    worker = Process(system, threads, ["--memory"])
    try:
        return int(worker.wait()["bytes"])
    finally:
        worker.stop()


def import_seconds(systems: list[str], repeats: int) -> dict[str, float]:
    """Median time of the import, less that of bare Python, with files in the cache of the operating system."""
    bare = start_seconds("pass", "numpy", repeats)
    statements = {system: f"import {IMPORTS.get(system, MODULES.get(system, system))}" for system in systems}
    return {system: start_seconds(statement, system, repeats) - bare for system, statement in statements.items()}


def start_seconds(statement: str, system: str, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, env=environment(system, 1))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def installed_bytes(system: str) -> tuple[int, int]:
    """Installed size of a system alone, and with all that it needs beyond NumPy. Compiled Python files are not counted."""
    name = distribution_of(system)
    needed = requirements({name}) - requirements({"numpy"})
    return distribution_bytes(name), sum(map(distribution_bytes, needed))


def distribution_of(system: str) -> str:
    return next(name for name in DISTRIBUTIONS[system] if find_distribution(name) is not None)


def requirements(names: set[str]) -> set[str]:
    """The distributions and everything that they need, as far as it is installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    pending = list(names)
    while pending:
        name = canonicalize_name(pending.pop())
        distribution = find_distribution(name)
        if name in found or distribution is None:
            continue
        found.add(name)
        needed = map(Requirement, distribution.requires or [])
        pending += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def find_distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def distribution_bytes(name: str) -> int:
    distribution = importlib.metadata.distribution(name)
    files = {Path(str(file.locate())) for file in distribution.files or []}
    if is_editable(distribution):
        spec = importlib.util.find_spec(name.removesuffix("-numpy"))
        assert spec is not None and spec.submodule_search_locations is not None
        files |= {file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*")}
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file())


def is_editable(distribution: importlib.metadata.Distribution) -> bool:
    origin = distribution.read_text("direct_url.json")
    return origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)


def versions(systems: list[str]) -> dict[str, str]:
    """The versions of everything that was measured."""
    names = {"numpy", *(distribution_of(system) for system in systems if system in DISTRIBUTIONS)}
    names |= {"keras", "jaxlib"} & requirements(names)
    return {name: importlib.metadata.version(name) for name in sorted(names)}
