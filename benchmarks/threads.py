"""The gain from a second thread: training on one thread, on two threads, and in two processes of one thread each.

usage: python benchmarks/threads.py [--seconds 1.5] [--rounds 3] [--free-threaded PYTHON] [--out FILE]

On two otherwise idle cores. --free-threaded: an interpreter without Python's global lock, to run two threads in as
well. The time lost in waiting for that lock depends on how long a sleeping thread takes to wake: that is measured, too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from peers import setting
from peers_parts.nnlite import build
from peers_parts.tasks import TASKS, make_batches

KEYS = ("cnn@32", "cnn@128", "vgg@64", "resnet20@128")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--free-threaded", metavar="PYTHON")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("TASK", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(rate(args.worker[0], int(args.worker[1]), args.seconds))
        return
    columns = {
        "one thread": (sys.executable, 1, 1),
        "two threads": (sys.executable, 1, 2),
        "two processes of one thread": (sys.executable, 2, 1),
    }
    if args.free_threaded:
        columns["two threads, free-threaded"] = (args.free_threaded, 1, 2)
    lines = ["# One thread, two threads, two processes", "", setting(), "Training, samples a second, medians of the rounds."]
    lines += [f"A sleeping thread wakes in {1e6 * wake_seconds():.0f} us.", ""]
    if args.free_threaded:
        lines += [f"Free-threaded: {version(args.free_threaded)}; the others: {version(sys.executable)}.", ""]
    lines += [row(["task", *columns]), row([":--", *["--:"] * len(columns)])]
    for key in KEYS:
        rounds = [[measure(key, *column, args.seconds) for column in columns.values()] for _ in range(args.rounds)]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        lines.append(row([f"{TASKS[key].title}, {TASKS[key].batch}", *(f"{value:,.0f}" for value in medians)]))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def version(python: str) -> str:
    return subprocess.run([python, "-VV"], stdout=subprocess.PIPE, text=True, check=True).stdout.split(" (")[0].strip()


def wake_seconds(turns: int = 10_000) -> float:
    """Seconds from the moment that a thread releases another until that one runs, on another core: they wait in turn."""
    ping, pong, cores = threading.Lock(), threading.Lock(), os.sched_getaffinity(0)

    def answer() -> None:
        os.sched_setaffinity(0, {max(cores)})
        for _ in range(turns):
            ping.acquire()
            pong.release()

    ping.acquire()
    pong.acquire()
    os.sched_setaffinity(0, {min(cores)})
    threading.Thread(target=answer).start()
    start = time.perf_counter()
    for _ in range(turns):
        ping.release()
        pong.acquire()
    seconds = (time.perf_counter() - start) / turns / 2
    os.sched_setaffinity(0, cores)
    return seconds


def measure(key: str, python: str, processes: int, threads: int, seconds: float) -> float:
    """The summed rates of `processes` processes at the same time."""
    command = [python, __file__, "--seconds", str(seconds), "--worker", key, str(threads)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(worker.communicate()[0]) for worker in workers)


def rate(key: str, threads: int, seconds: float) -> float:
    """Samples a second, after a warm-up of the same length."""
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
