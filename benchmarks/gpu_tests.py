"""Sections of `gpu.py`: the tests of tests/cuda on the device, plain and under compute-sanitizer."""

import os
import re
import subprocess
import sys

from gpu_common import ROOT, Record

FOLDER = ROOT / "tests" / "cuda"
KERNELS = ("test_kernels*.py",)
OTHERS = ("test_device*.py",)
PYTEST = ["-m", "pytest", "-vv", "-rA", "--tb=short", "--durations=20", "--maxfail=20", "-p", "no:cacheprovider"]
PYTEST += ["-o", "filterwarnings=default", "-o", "faulthandler_timeout=60"]
SANITIZER = ["compute-sanitizer", "--report-api-errors", "no", "--error-exitcode", "9", "--tool"]
RACES = "norm or moments or sums or deltas or depthwise or entropy or loss or tally"  # kernels whose threads share memory
PROGRESS = re.compile(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b")
SUMMARY = re.compile(r"^(FAILED|ERROR) (\S+::\S.*?) - (.*)")
TOTAL = re.compile(r"^=* ?(\d+ (?:passed|failed|error|skipped).* in [\d.]+s.*?)[ =]*$")
SANITIZER_TOTAL = re.compile(r"^=+ (ERROR|RACECHECK) SUMMARY: (.*)")


def tests(record: Record, quick: bool) -> None:
    """Kernels first; quick: only those."""
    run(record, [*python(), *files(KERNELS if quick else KERNELS + OTHERS)])


def memcheck(record: Record, quick: bool) -> None:
    """Reads and writes outside of arrays, over all tests of kernels."""
    run(record, [*SANITIZER, "memcheck", *python(), *files(KERNELS)])


def racecheck(record: Record, quick: bool) -> None:
    """Races in shared memory: accesses without a barrier."""
    run(record, [*SANITIZER, "racecheck", *python(), *files(KERNELS), "-k", RACES])


def python() -> list[str]:
    return [sys.executable, "-u", *PYTEST]


def files(patterns: tuple[str, ...]) -> list[str]:
    return [str(path) for pattern in patterns for path in sorted(FOLDER.glob(pattern))]


def run(record: Record, command: list[str]) -> None:
    """Print what the command prints, and record counts and failures as they arrive. Raises if it ends with an error."""
    environment = os.environ | {"NNLITE_TEST_GPU": "1"}
    counts: dict[str, int] = {}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            note(record, counts, line)
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}")


def note(record: Record, counts: dict[str, int], line: str) -> None:
    """Parse a line of the output."""
    if match := PROGRESS.match(line):
        test, outcome = match.groups()
        counts[outcome] = counts.get(outcome, 0) + 1
        record("counts", **counts, last=test)
        if outcome in ("FAILED", "ERROR"):
            record(test, error=outcome)
    elif match := SUMMARY.match(line):
        record(match[2], error=match[3])
    elif match := SANITIZER_TOTAL.match(line):
        record("sanitizer", summary=match[2])
    elif match := TOTAL.match(line):
        record("pytest", summary=match[1])
