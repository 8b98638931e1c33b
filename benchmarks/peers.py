"""nnlite against PyTorch, Keras, JAX, scikit-learn and onnxruntime on the CPU: speed, memory, import time, size.

usage: python benchmarks/peers.py [--quick] [--rounds 5] [--seconds 1] [--json FILE] [--markdown FILE] [--tasks ...]
                                  [--systems ...] [--free-threaded PYTHON]

All systems run the same network, optimiser (Adam), batch, dtype (float32) and number of threads, each in its own process
that is pinned to as many cores. Within a round the systems take turns, so a ratio compares what ran within seconds of each
other; the table shows medians over the rounds, and the least and the greatest ratio. Inputs rotate among several batches.
Needs Linux and the `bench` extra; a system that is not installed is left out by name. Nothing else should run meanwhile:
the CPU use of other processes is in the notes, and threads that wait for each other, as PyTorch's, suffer most from it.

peers_parts/tasks.py      the networks and tasks, and their costs
peers_parts/<system>.py   how a system builds and runs a task
peers_parts/limits.py     what the machine can do: products of matrices, a core's peak by multiply-adds in C
peers_parts/worker.py     the process of one system
peers_parts/processes.py  the same from outside; memory, imports, size on disk
peers_parts/report.py     ratios and the Markdown table
peers_parts/pages.py      by itself: the tables of README and docs/performance.md, from the rounds of each machine
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from peers_parts import processes, worker
from peers_parts.processes import Process, WorkerError
from peers_parts.report import add_ratios, machine_line, markdown, version_list
from peers_parts.tasks import LIMITS, LIMITS_TASK, TASKS, Task

SYSTEMS = ("nnlite", "nnlite-numpy", "torch", "torch.compile", "keras", "jax", "sklearn", "onnxruntime")
COSTS = ("memory", "import", "size")
QUICK = {"rounds": 2, "seconds": 0.3, "systems": [name for name in SYSTEMS if name != "torch.compile"]}
DEFAULTS = {"rounds": 5, "seconds": 1.0, "systems": SYSTEMS}


def main() -> None:
    args = parse()
    if args.worker and args.memory:
        worker.serve_memory(args.worker, args.threads)
    elif args.worker:
        worker.serve(args.worker, TASKS[args.tasks[0]], args.threads)
    else:
        compare(args)


def parse() -> argparse.Namespace:
    names = sorted({task.name for task in TASKS.values()})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="2 rounds of 0.3 s, without torch.compile, which compiles for minutes"
    )
    parser.add_argument("--json", type=Path, help="write all rounds to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[*names, *COSTS],
        choices=[*names, *TASKS, *COSTS],
        metavar="TASK",
        help=f"of {', '.join(names)}, each also with a batch, such as cnn@128; {', '.join(COSTS)}",
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--free-threaded", metavar="PYTHON", help="measure nnlite on this interpreter, too, as nnlite-ft")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="of a block; default 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in (QUICK if args.quick else DEFAULTS).items():
        setattr(args, name, getattr(args, name) or value)
    if args.threads > available_cores():
        parser.error(f"{args.threads} threads on {available_cores()} cores")
    return args


def compare(args: argparse.Namespace) -> None:
    """Measure everything, and write the report so far after every task."""
    systems = [system for system in SYSTEMS if system in args.systems and processes.is_installed(system)]
    report: dict[str, Any] = {
        "machine": machine(),
        "threads": args.threads,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "versions": processes.versions(systems),
        "free_threaded": args.free_threaded and version(args.free_threaded),
        "left_out": [system for system in args.systems if system not in systems],
        "tasks": {},
        "costs": {},
    }
    start = time.perf_counter()
    for name, measure in jobs(args, systems, report):
        measure()
        say(f"{name} done after {time.perf_counter() - start:.0f} s")
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
        if args.markdown:
            args.markdown.write_text(markdown(report))
    print(markdown(report))


def jobs(args: argparse.Namespace, systems: list[str], report: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    pythons = dict.fromkeys(systems, sys.executable)
    if args.free_threaded:
        pythons["nnlite-ft"] = args.free_threaded
    for key, task in TASKS.items():
        if key in args.tasks or task.name in args.tasks:
            yield key, partial(measure_task, task, pythons, report)
    for cost in COSTS:
        if cost in args.tasks:
            yield cost, partial(measure_cost, cost, systems, report)


def measure_task(task: Task, pythons: dict[str, str], report: dict[str, Any]) -> None:
    """One task, in all systems that support it, each in its Python."""
    taking_part = {system: python for system, python in pythons.items() if takes_part(system, task)}
    if task == LIMITS_TASK:
        taking_part |= dict.fromkeys(LIMITS, sys.executable)
    result: dict[str, Any] = {"title": task.title, "batch": task.batch, "failed": {}, "variants": {}}
    report["tasks"][task.key] = result
    workers = {system: Process.start(system, task, report["threads"], python) for system, python in taking_part.items()}
    try:
        wait_until_ready(workers, result)
        warm_up(workers, report["seconds"] / 2, result)
        result["samples_per_second"] = run_rounds(workers, report["rounds"], report["seconds"], result)
    finally:
        for process in workers.values():
            process.stop()
    add_ratios(task, result)


def takes_part(system: str, task: Task) -> bool:
    """scikit-learn has MLPs only, onnxruntime inference only."""
    if system == "sklearn":
        return task.is_mlp and task.training
    return system != "onnxruntime" or not task.training


def wait_until_ready(workers: dict[str, Process], result: dict[str, Any]) -> None:
    """Drop the workers that fail."""
    for system, process in list(workers.items()):
        try:
            process.wait()
        except WorkerError as error:
            result["failed"][system] = str(error)
            say(f"  {system} failed: {error}")
            workers.pop(system).stop()


def warm_up(workers: dict[str, Process], seconds: float, result: dict[str, Any]) -> None:
    for system, process in workers.items():
        result["variants"][system] = process.ask("warm_up", seconds)["variant"]


def run_rounds(workers: dict[str, Process], rounds: int, seconds: float, result: dict[str, Any]) -> dict[str, list[float]]:
    """Samples per second, a list of rounds for every system. Each round begins with another system."""
    systems = list(workers)
    rates: dict[str, list[float]] = {system: [] for system in systems}
    idle: dict[str, list[float]] = {system: [] for system in systems}
    others: dict[str, list[float]] = {system: [] for system in systems}
    for i in range(rounds):
        first = i % len(systems)
        for system in systems[first:] + systems[:first]:
            answer = workers[system].ask("measure", seconds)
            rates[system].append(answer["samples_per_second"])
            idle[system].append(answer["idle_cpu"])
            others[system].append(answer["others_cpu"])
    result["idle_cpu"] = {system: statistics.median(cores) for system, cores in idle.items()}
    result["others_cpu"] = others
    return rates


def measure_cost(cost: str, systems: list[str], report: dict[str, Any]) -> None:
    whole = [system for system in systems if system in processes.DISTRIBUTIONS]
    if cost == "memory":
        training = [system for system in systems if system not in ("sklearn", "onnxruntime")]
        report["costs"]["memory"] = {system: processes.peak_memory(system, report["threads"]) for system in training}
    elif cost == "import":
        report["costs"]["import"] = processes.import_seconds([*whole, "numpy"], report["rounds"])
    else:
        report["costs"]["size"] = {system: processes.installed_bytes(system) for system in whole}


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "openblas": openblas_kernels(),
        "python": platform.python_version(),
    }


def setting() -> str:
    """The machine and the versions, for the head of another benchmark's results."""
    where = machine()
    return f"{machine_line(where)}\nPython {where['python']}, {version_list(processes.versions(['nnlite']))}."


def version(python: str) -> str:
    """Of another interpreter, and of the NumPy in it."""
    code = "import numpy, platform as p; print(f'{p.python_version()} with NumPy {numpy.__version__}')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def openblas_kernels() -> str:
    """Which of its kernels NumPy's BLAS uses in the workers."""
    code = "import numpy, threadpoolctl as t; print(*{i.get('architecture') for i in t.threadpool_info()})"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=worker.environment("nnlite", 1)
    ).stdout.strip()


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
