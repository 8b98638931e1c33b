"""Sections of `gpu.py`: the training speed of nnlite and PyTorch, with launches, memory, clocks and the time of the host.

Rounds take the systems in turn, PyTorch first: an illegal address in one of nnlite's kernels would break the process for later
systems. A round is timed by two events of the device around its steps, after a warm-up, with the data on the device.
"""

import math
import statistics
import time
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, NamedTuple

from gpu_common import Record, attempt, clocks_while, elapsed, synchronize, tasks, watched_launches
from peers_parts import tasks as net

STEPS, ROUNDS = 20, 7
WARM_UP = 12  # steps: cudnn.benchmark has tried all algorithms, the pools have their size
BUSY = 5  # steps at a time while the clocks are read


class System(NamedTuple):
    """A library, the precision of its products, and whether `torch.compile` compiles them."""

    library: str
    precision: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.library} {self.precision}{' compiled' * self.compiled}"


PRECISIONS = ("float32", "tf32", "bf16")
EAGER = (*(System("torch", precision) for precision in PRECISIONS), System("nnlite", "float32"), System("nnlite", "tf32"))
COMPILED = tuple(System("torch", precision, compiled=True) for precision in ("tf32", "bf16", "float32"))


def installed(systems: tuple[System, ...]) -> list[System]:
    """The systems whose library is installed; the section machine names the others."""
    return [system for system in systems if find_spec(system.library)]


def eager(record: Record, quick: bool, title: str) -> None:
    """One network."""
    compare(record, title, tasks()[title], installed(EAGER), *((5, 3) if quick else (STEPS, ROUNDS)))


def compiled(record: Record, quick: bool) -> None:
    """All networks by torch.compile, which may take a minute each."""
    for system in COMPILED:
        for title, task in tasks().items():
            compare(record, title, task, (system,), STEPS, ROUNDS)


def compare(record: Record, title: str, task: net.Task, systems: Iterable[System], steps: int, rounds: int) -> None:
    """A row for each system: written after the first round, complete after the last. One that fails is left out."""
    batches = net.make_batches(task)
    runs: dict[str, Run] = {}
    alive = {f"{title}, {system}": system for system in systems}

    def measure(name: str, system: System) -> None:
        if name not in runs:
            runs[name] = Run(system, task, batches)
        runs[name].round(steps)
        record(name, task=title, **runs[name].values)

    for _ in range(rounds):
        alive = {name: system for name, system in alive.items() if attempt(record, name, measure, name, system)}
    for name in alive:
        attempt(record, name, lambda name: record(name, clocks=runs[name].clocks()), name)


class Run:
    """A system at a task, and the values measured so far."""

    def __init__(self, system: System, task: net.Task, batches: list[tuple[Any, Any]]) -> None:
        library = Torch if system.library == "torch" else Nnlite
        library.trim()
        before = library.pool_bytes()
        self.built, self.batch, self.i = library(task, batches, system), task.batch, 0
        synchronize()
        start = time.perf_counter()
        self.steps(1)
        synchronize()
        first = time.perf_counter() - start
        self.steps(WARM_UP)
        library.trim()
        self.steps(3)  # the pool grows to what a step needs at its peak
        self.values: dict[str, Any] = {"system": str(system), "batch": task.batch, "rounds": [], "first_step_seconds": first}
        self.values |= {"pool_bytes": library.pool_bytes() - before, "host_ms": self.host_ms(), "launches": self.launches()}

    def steps(self, count: int) -> None:
        """Enqueue `count` training steps."""
        self.built.begin()
        for _ in range(count):
            self.loss = self.built.step(self.i)
            self.i += 1

    def round(self, steps: int) -> None:
        """One more speed, and the median of all."""
        rounds = self.values["rounds"]
        rounds.append(self.batch * steps / elapsed(lambda: self.steps(steps)))
        self.values["images_per_second"] = statistics.median(rounds)
        if not math.isfinite(float(self.loss)):
            raise FloatingPointError(f"the loss is {float(self.loss)}")

    def host_ms(self) -> float:
        """Milliseconds that the host takes to enqueue a step while the device is idle, the median of several."""
        times = []
        for _ in range(7):
            synchronize()
            start = time.perf_counter()
            self.steps(1)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def launches(self) -> int | None:
        """Calls of `Kernels.launch` in a step: nnlite's own kernels, without cuBLAS's and CuPy's."""
        if isinstance(self.built, Torch):
            return None
        with watched_launches() as calls:
            self.steps(1)
        return len(calls)

    def clocks(self) -> str | None:
        """During steps."""

        def busy() -> None:
            self.steps(BUSY)
            synchronize()

        return clocks_while(busy)


class Nnlite:
    """nnlite at a task: `step(i)` trains on the i-th batch."""

    def __init__(self, task: net.Task, batches: list[tuple[Any, Any]], system: System) -> None:
        import cupy
        from peers_parts.nnlite import translate

        import nnlite as nn

        model = nn.Sequential(*map(translate, task.network), input_shape=task.in_shape)
        self.model = model.to("cuda", precision="tf32" if system.precision == "tf32" else "float32")
        self.criterion, self.optimizer = nn.CrossEntropy(), nn.Adam(net.LEARNING_RATE)
        self.data = [(cupy.asarray(x), cupy.asarray(t)) for x, t in batches]

    def begin(self) -> None:
        """Nothing to do: the precision belongs to the model."""

    def step(self, i: int) -> Any:
        x, t = self.data[i % len(self.data)]
        loss = self.model.loss_and_grad(x, t, self.criterion)
        self.optimizer.step(self.model)
        return loss

    @staticmethod
    def trim() -> None:
        """Return unused memory to the device."""
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()

    @staticmethod
    def pool_bytes() -> int:
        import cupy

        return int(cupy.get_default_memory_pool().total_bytes())


class Torch:
    """PyTorch at its best: channels_last, cudnn.benchmark, fused Adam; bf16 by autocast."""

    def __init__(self, task: net.Task, batches: list[tuple[Any, Any]], system: System) -> None:
        import torch
        from peers_parts.torch import to_channels_last, translate

        torch.backends.cudnn.benchmark = True
        self.tf32 = system.precision != "float32"
        self.begin()
        model = translate(task.network, task.in_shape).cuda().to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=net.LEARNING_RATE, fused=True)
        self.data = [(to_channels_last(x).cuda(), torch.from_numpy(t).cuda()) for x, t in batches]

        def loss_of(x: Any, t: Any) -> Any:
            return torch.nn.functional.cross_entropy(model(x), t)

        def bf16_loss_of(x: Any, t: Any) -> Any:
            with torch.autocast("cuda", torch.bfloat16):
                return loss_of(x, t)

        self.loss_of = bf16_loss_of if system.precision == "bf16" else loss_of
        if system.compiled:
            torch.compiler.reset()  # it stops compiling a function that it has compiled in several variants
            self.loss_of = torch.compile(self.loss_of)

    def begin(self) -> None:
        """The precision of products is the process's: set it before steps of this system."""
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32

    def step(self, i: int) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss_of(*self.data[i % len(self.data)])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @staticmethod
    def trim() -> None:
        import torch

        torch.cuda.empty_cache()

    @staticmethod
    def pool_bytes() -> int:
        import torch

        return int(torch.cuda.memory_reserved())
