"""Runs the sections of `gpu.py`: each in a process group of its own, within one deadline."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, BinaryIO, NamedTuple, TextIO

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT, ROOT / "benchmarks", ROOT / "examples")
WORKER = Path(__file__).with_name("gpu_worker.py")
LOG_LIMIT = 1 << 20  # bytes kept of a section's output: the first and the last half
LEAST = 5.0  # seconds: a section with less than this and less than its share is not started
POLL = 0.1  # seconds
PATIENCE = 10.0  # seconds to wait for a killed process: one that waits for a driver may never end


class Section(NamedTuple):
    """One part of the report.

    seconds: its share of the time, at most. call: module, function and arguments. needs: modules and programs.
    """

    name: str
    seconds: float
    call: tuple[str, ...]
    needs: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """How a section ended. passed: None if it did not run."""

    text: str
    passed: bool | None
    seconds: float = 0.0


class Deadline:
    """The time when everything must be done."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = clock() + seconds

    def share(self, seconds: float) -> float:
        """`seconds`, or the time left if that is less."""
        return min(seconds, self.end - self.clock())


def run(section: Section, deadline: Deadline, log: Path, record: Callable[[str, dict[str, Any]], None], quick: bool) -> Outcome:
    """Run a section and pass on every row as it arrives; its output is added to the log."""
    missing = [name for name in section.needs if not is_there(name)]
    if missing:
        return Outcome(f"left out: {', '.join(missing)} missing", None)
    seconds = deadline.share(section.seconds)
    if seconds < min(LEAST, section.seconds):
        return Outcome("left out: no time was left", None)
    with log.open("ab") as output:
        output.write(f"\n==== {section.name}, at most {seconds:.0f} s\n".encode())
    before, start = log.stat().st_size, time.monotonic()
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as rows, log.open("ab") as output:
        ended = supervise(command(section, rows.name, seconds, quick), seconds, output, Rows(rows, record), deadline.clock)
    shorten(log, before)
    return Outcome(*ended, time.monotonic() - start)


def is_there(name: str) -> bool:
    """Whether it exists as a module or as a program."""
    return find_spec(name) is not None or which(name) is not None


def command(section: Section, rows: str, seconds: float, quick: bool) -> list[str]:
    return [sys.executable, "-u", str(WORKER), rows, str(seconds), "quick" if quick else "full", *section.call]


def environment() -> dict[str, str]:
    """The environment of this process, with the project's folders first in Python's path."""
    paths = [*map(str, FOLDERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


class Rows:
    """The lines of a file that another process writes."""

    def __init__(self, file: TextIO, record: Callable[[str, dict[str, Any]], None]) -> None:
        self.file, self.record, self.rest = file, record, ""

    def take(self) -> None:
        """Pass on the lines completed since the last call."""
        *lines, self.rest = (self.rest + self.file.read()).split("\n")
        for line in lines:
            self.record(*json.loads(line))


def supervise(command: list[str], seconds: float, output: BinaryIO, rows: Rows, clock: Callable[[], float]) -> tuple[str, bool]:
    """How a process ended, and whether well: it gets `seconds`, and nothing that it started survives it."""
    end = clock() + seconds
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        while not has_ended(process, POLL) and clock() < end:
            rows.take()
        code = process.poll()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    stuck = not has_ended(process, PATIENCE)
    rows.take()
    if code is None:
        return f"killed after {seconds:.3g} s{', which it survived' * stuck}", False
    return ending(code), code == 0


def has_ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether it ends within `seconds`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def ending(code: int) -> str:
    if code >= 0:
        return "done" if code == 0 else f"failed with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"died by {signal.Signals(-code).name}"
    return f"died by signal {-code}"


def shorten(log: Path, start: int) -> None:
    """Remove the middle of what was added since the log had `start` bytes, if that is long."""
    surplus = log.stat().st_size - start - LOG_LIMIT
    if surplus <= 0:
        return
    half = LOG_LIMIT // 2
    with log.open("r+b") as file:
        file.seek(-half, os.SEEK_END)
        last = file.read()
        file.seek(start + half)
        file.write(f"\n[{surplus:,} bytes are left out]\n".encode() + last)
        file.truncate()
