"""A section of `gpu.py`: the kernels of a training step, by torch.profiler, which sees those of CuPy and cuBLAS, too.

Without torch, or if its profiler sees no kernel, events of the device around nnlite's calls are used instead: they see
only nnlite's own kernels and products, and the time for which the device waits for the host counts for the next call.
"""

import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from gpu_common import Record, attempt, synchronize, tasks, watched, watched_launches
from gpu_speed import Run, System, installed
from peers_parts import tasks as net

LONGEST = 25
STEPS = 3
NAME = 200  # characters
PROFILED = (System("nnlite", "float32"), System("torch", "float32"))

Timed = Iterable[tuple[str, float]]  # kernels and their seconds


def profile(record: Record, quick: bool) -> None:
    """All networks."""
    for title, task in tasks().items():
        profile_task(record, title, task, installed(PROFILED))


def profile_task(record: Record, title: str, task: net.Task, systems: Iterable[System]) -> None:
    """A row for each system."""
    batches = net.make_batches(task)
    for system in systems:
        attempt(record, f"{title}, {system}", profile_system, record, f"{title}, {system}", system, task, batches)


def profile_system(record: Record, name: str, system: System, task: net.Task, batches: list[tuple[Any, Any]]) -> None:
    run = Run(system, task, batches)
    method, kernels = kernels_of(lambda: run.steps(STEPS))
    record(name, method=method, **longest(kernels, STEPS))


def longest(kernels: Timed, steps: int) -> dict[str, Any]:
    """Of a step: how many kernels, their time in all, and those that take most of it."""
    counts: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for name, time in kernels:
        counts[name] += 1
        seconds[name] += time
    rows = [{"kernel": name[:NAME], "count": counts[name] / steps, "ms": 1e3 * seconds[name] / steps} for name in counts]
    rows.sort(key=lambda row: row["ms"], reverse=True)
    whole = {"kernels": sum(counts.values()) / steps, "ms": 1e3 * sum(seconds.values()) / steps}
    return {**whole, "longest": rows[:LONGEST]}


def kernels_of(work: Callable[[], None]) -> tuple[str, Timed]:
    """How they were measured, and all kernels of `work`."""
    if find_spec("torch"):
        try:
            by_profiler(work)  # the first call starts the profiler
            kernels = by_profiler(work)
        except Exception:
            traceback.print_exc()
            kernels = []
        if kernels:
            return "torch.profiler", kernels
        print("torch.profiler saw no kernel", file=sys.stderr)
    kernels = by_events(work)
    if not kernels:
        raise RuntimeError("neither torch.profiler nor events saw a kernel")
    return "events around nnlite's kernels and products", kernels


def by_profiler(work: Callable[[], None]) -> list[tuple[str, float]]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        synchronize()
    events = (e for e in profiler.events() if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False))
    return [(event.name, event.time_range.elapsed_us() / 1e6) for event in events]


def by_events(work: Callable[[], None]) -> list[tuple[str, float]]:
    from nnlite.backend.cuda.cublas import Products

    with ExitStack() as stack:
        launches = stack.enter_context(watched_launches())
        products = stack.enter_context(watched(Products, "__call__", name_of_product))
        work()
        synchronize()
        return [(call.name, call.seconds()) for call in (*launches, *products)]


def name_of_product(a: Any, b: Any, *out: Any) -> str:
    return f"product {a.shape} {b.shape}"
