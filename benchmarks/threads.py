"""What Python's global lock costs: training on one thread, on two threads, and in two processes of one thread each.

usage: python benchmarks/threads.py [--seconds 1.5] [--rounds 3] [--out FILE]      (two cores that nobody else uses)
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from peers_nnlite import build
from peers_tasks import TASKS, make_batches

KEYS = ("cnn@32", "cnn@128", "vgg@64", "resnet20@128")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("TASK", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(rate(args.worker[0], int(args.worker[1]), args.seconds))
        return
    lines = ["# One thread, two threads, two processes", "", "Training, samples a second, medians of the rounds.", ""]
    lines += ["| task | one thread | two threads | two processes of one thread |", "| :-- | --: | --: | --: |"]
    for key in KEYS:
        rounds = [
            [measure(key, count, threads, args.seconds) for count, threads in ((1, 1), (1, 2), (2, 1))]
            for _ in range(args.rounds)
        ]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        lines.append(f"| {TASKS[key].title}, {TASKS[key].batch} | " + " | ".join(f"{value:,.0f}" for value in medians) + " |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def measure(key: str, processes: int, threads: int, seconds: float) -> float:
    """The rates of so many processes at the same time, added up."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--worker", key, str(threads)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(worker.communicate()[0]) for worker in workers)


def rate(key: str, threads: int, seconds: float) -> float:
    """Samples a second, after a warm-up of as long again."""
    task = TASKS[key]
    step = next(iter(build(task, make_batches(task), threads, "nnlite").variants.values()))
    for _ in range(2):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            step(calls % task.n_batches)
            calls += 1
    return calls * task.batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
