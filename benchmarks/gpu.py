"""All measurements that fit in a few minutes on a GPU, in one command: are nnlite's results right, how fast is it, and why.

usage: python benchmarks/gpu.py [--quick] [--no-tests] [--only SECTION ...] [--deadline SECONDS] [--out FOLDER]

Runs from a bare checkout with PYTHONPATH=. and needs CuPy and a CUDA device. Other missing parts, such as torch, pytest or
compute-sanitizer, are named, and the sections that need them are left out. The sections, in this order:

    machine      device, driver, versions
    parity       a step of each network against float64 on the CPU
    speed        training compared with PyTorch, network by network; then PyTorch compiled
    profile      the kernels that a step spends most time in
    operations   single operations alone, in GB/s and GFLOP/s
    fast90       the recipe of examples/recipes.py, on generated images
    tests        those of tests/cuda; then under compute-sanitizer: memcheck, racecheck

Each is a separate process, and gets its share of the time left until the deadline. If one fails, the next still runs.
FOLDER receives gpu.json and gpu.md, rewritten with every row, and gpu.log: all output, with whole tracebacks.
"""

import argparse
import os
import sys
from pathlib import Path

from gpu_common import tasks
from gpu_report import Report, summary
from gpu_runner import ROOT, Deadline, Section, run

NNLITE = ("numpy", "threadpoolctl", "cupy")
PYTEST = (*NNLITE, "pytest", "hypothesis")
SECTIONS = (
    Section("machine", 40, ("gpu_machine", "machine")),
    Section("parity", 60, ("gpu_parity", "parity"), NNLITE),
    *(Section(f"speed, {title}", 60, ("gpu_speed", "eager", title), NNLITE) for title in tasks()),
    Section("speed, compiled", 90, ("gpu_speed", "compiled"), (*NNLITE, "torch")),
    Section("profile", 60, ("gpu_profile", "profile"), NNLITE),
    Section("operations", 40, ("gpu_micro", "micro"), NNLITE),
    Section("fast90", 60, ("gpu_fast90", "fast90"), NNLITE),
    Section("tests", 120, ("gpu_tests", "tests"), PYTEST),
    Section("memcheck", 100, ("gpu_tests", "memcheck"), (*PYTEST, "compute-sanitizer")),
    Section("racecheck", 60, ("gpu_tests", "racecheck"), (*PYTEST, "compute-sanitizer")),
)
TESTS = {"tests", "memcheck", "racecheck"}
LONG = {"speed, compiled", "fast90"}  # what --quick leaves out


def main(arguments: list[str] | None = None) -> int:
    """0 if every section that ran succeeded, else 1."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    report, log, deadline = Report(args.out), args.out / "gpu.log", Deadline(args.deadline)
    log.write_bytes(b"")
    for section in chosen(args):
        report.begin(section.name)
        report.end(section.name, run(section, deadline, log, report.recorder(section.name), args.quick))
        print(report.line(section.name), flush=True)
        if report.error("machine").startswith("DeviceError"):
            break
    print(f"\n{report.text(summary)}\nAll of it: {args.out}/gpu.md, gpu.json, gpu.log")
    return 0 if report.passed() else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; no compiled PyTorch, no fast90")
    parser.add_argument("--no-tests", action="store_true", help="neither tests nor compute-sanitizer")
    parser.add_argument("--only", nargs="+", metavar="SECTION", default=[], help="machine, and sections with such names")
    parser.add_argument("--deadline", type=float, default=450, metavar="SECONDS", help="for all of it (default: 450)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")))
    return parser.parse_args(arguments)


def chosen(args: argparse.Namespace) -> list[Section]:
    """The requested sections, in their order."""
    left_out = (TESTS if args.no_tests else set()) | (LONG if args.quick else set())
    wanted = ("machine", *args.only) if args.only else ("",)
    return [section for section in SECTIONS if section.name not in left_out and section.name.startswith(wanted)]


if __name__ == "__main__":
    sys.exit(main())
