"""One system in its own process: build a task, then measure when told to. The other end is `processes.py`.

Commands come as lines of JSON, every one is answered by a line of JSON:
    {"warm_up": seconds} -> {"variant": name}        choose the fastest variant of a step
    {"measure": seconds} -> {"samples_per_second": ..., "idle_cpu": ..., "others_cpu": ...}
The last two are in cores: what this process used between its turns, and what others used during this turn.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from peers_parts.tasks import LIMITS, MEMORY_TASK, Built, Task, count_parameters, make_batches

MODULES = {"torch.compile": "torch", "nnlite-numpy": "nnlite", "nnlite-ft": "nnlite"}  # others: their names
MEMORY_STEPS = 4
SETTLE = 0.1  # seconds


def serve(system: str, task: Task, threads: int) -> None:
    """Build the task and answer commands until there are no more."""
    answers = take_stdout()
    use_cores(LIMITS.get(system) or threads)
    worker = Worker(task, *build(system, task, threads))
    reply(answers, {"parameters": worker.built.parameters})
    for line in sys.stdin:
        ((command, seconds),) = json.loads(line).items()
        reply(answers, worker.warm_up(seconds) if command == "warm_up" else worker.measure(seconds))


def serve_memory(system: str, threads: int) -> None:
    """Answer with the bytes that training takes at its peak, without what imports and inputs take."""
    answers = take_stdout()
    use_cores(threads)
    module, batches = import_system(system), make_batches(MEMORY_TASK)
    before = memory("VmRSS")
    built = module.build(MEMORY_TASK, batches, threads, system)
    step = next(iter(built.variants.values()))
    for i in range(MEMORY_STEPS):
        step(i)
    built.finish()
    reply(answers, {"bytes": memory("VmHWM") - before})


def build(system: str, task: Task, threads: int) -> tuple[Built, int]:
    """The task in a system, and the samples of one call. Makes one call of each variant, so that all is compiled."""
    if system in LIMITS:
        built, flops = import_system("limits").build(system)
        return built, flops
    built = import_system(system).build(task, make_batches(task), threads, system)
    if built.parameters != count_parameters(task):
        raise RuntimeError(f"{built.parameters} parameters instead of {count_parameters(task)}")
    for step in built.variants.values():
        step(0)
    built.finish()
    return built, built.steps_per_call * task.batch


class Worker:
    """The task in this process, and its position among the batches."""

    def __init__(self, task: Task, built: Built, samples_per_call: int) -> None:
        self.built, self.samples_per_call = built, samples_per_call
        self.n_batches, self.calls = task.n_batches, 0
        self.variant = next(iter(built.variants))
        self.rest_began = self.cpu_then = 0.0
        self.rest()

    def warm_up(self, seconds: float) -> dict[str, Any]:
        """Run every variant for a while, and keep the fastest."""
        rates = {name: self.rate(step, seconds) for name, step in self.built.variants.items()}
        self.variant = max(rates, key=lambda name: rates[name])
        self.rest()
        return {"variant": self.variant}

    def measure(self, seconds: float) -> dict[str, Any]:
        idle_cpu = (time.process_time() - self.cpu_then) / max(SETTLE, time.perf_counter() - self.rest_began)
        step = self.built.variants[self.variant]
        self.rate(step, 0.0)  # one call wakes the threads and fills the caches
        start, others = time.perf_counter(), others_cpu_seconds()
        samples_per_second = self.rate(step, seconds)
        others_cpu = (others_cpu_seconds() - others) / (time.perf_counter() - start)
        self.rest()
        return {"samples_per_second": samples_per_second, "idle_cpu": idle_cpu, "others_cpu": max(0.0, others_cpu)}

    def rate(self, step: Callable[[int], Any], seconds: float) -> float:
        """Samples per second over at least one call."""
        calls, start = 0, time.perf_counter()
        end = start + seconds
        while calls == 0 or time.perf_counter() < end:
            step(self.calls % self.n_batches)
            self.calls += 1
            calls += 1
        self.built.finish()
        return calls * self.samples_per_call / (time.perf_counter() - start)

    def rest(self) -> None:
        """From here on this process should use no CPU; its threads may spin a little before they sleep."""
        time.sleep(SETTLE)
        self.rest_began, self.cpu_then = time.perf_counter(), time.process_time()


def import_system(system: str) -> Any:
    return importlib.import_module(f"peers_parts.{MODULES.get(system, system)}")


def use_cores(threads: int) -> None:
    """Pin the process to as many cores as it has threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def environment(system: str, threads: int) -> dict[str, str]:
    """Variables that set a system's threads and silence it. Each library chooses its own kernels: a choice that the machine's
    environment pins for NumPy alone is removed. Python caches its bytecode, as after an installation by pip."""
    count = str(LIMITS.get(system) or threads)
    names = ("NNLITE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    dropped = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")
    free = {name: value for name, value in os.environ.items() if name not in dropped}
    if system == "nnlite-numpy":
        free["NNLITE_KERNELS"] = "numpy"
    return {**free, **dict.fromkeys(names, count), **quiet, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def others_cpu_seconds() -> float:
    """CPU time used so far by everything but this process: other processes, and other guests of a virtual machine's host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def memory(entry: str) -> int:
    """Bytes of this process: VmRSS is what it has now, VmHWM the most that it had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {entry} in /proc/self/status")


def take_stdout() -> TextIO:
    """Keep stdout for the answers: output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def reply(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)
