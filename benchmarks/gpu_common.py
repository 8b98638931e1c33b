"""Shared by the sections of `gpu.py`: failures that cost one row, the device's clock, recorded calls."""

import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

from peers_parts import tasks as net

Record = Callable[..., None]  # record(name, **values): adds to the row of that name

ROOT = Path(__file__).resolve().parent.parent
SMI = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
SMI_LIMIT = 5.0  # seconds
MESSAGE = 300  # characters


def tasks() -> dict[str, net.Task]:
    """By title: the networks that are trained, with batches for a GPU."""
    chosen = {"tutorial CNN": ("cnn@512", 512), "VGG-like": ("vgg@64", 256), "ResNet-20": ("resnet20@128", 512)}
    return {title: replace(net.TASKS[key], batch=batch) for title, (key, batch) in chosen.items()}


def attempt(record: Record, name: str, work: Callable[..., Any], *args: Any) -> bool:
    """Whether `work(*args)` succeeds; if it raises, the traceback is printed and the row gets one line of it."""
    try:
        work(*args)
    except Exception as error:
        traceback.print_exc()
        record(name, error=one_line(error))
        return False
    return True


def one_line(error: BaseException) -> str:
    """The error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE]


# ---- the device


def synchronize() -> None:
    """Wait for the device."""
    import cupy

    cupy.cuda.runtime.deviceSynchronize()


def elapsed(work: Callable[[], Any]) -> float:
    """Seconds on the device from the beginning of `work` to the end of all that it enqueues."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


class Call(NamedTuple):
    """A recorded call; begin, end: events of the device around it."""

    name: str
    begin: Any
    end: Any

    def seconds(self) -> float:
        """Seconds of the call; valid once the device is done."""
        import cupy

        return float(cupy.cuda.get_elapsed_time(self.begin, self.end)) / 1e3


@contextmanager
def watched(owner: type, method: str, name_of: Callable[..., str]) -> Iterator[list[Call]]:
    """The calls of a method, named after their arguments."""
    import cupy

    calls: list[Call] = []
    original = getattr(owner, method)

    def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        result = original(self, *args, **kwargs)
        end.record()
        calls.append(Call(name_of(*args), begin, end))
        return result

    setattr(owner, method, watch)
    try:
        yield calls
    finally:
        setattr(owner, method, original)


@contextmanager
def watched_launches() -> Iterator[list[Call]]:
    """The launches of nnlite's own kernels."""
    from nnlite.backend.cuda.kernels import Kernels

    with watched(Kernels, "launch", lambda name, *rest: name) as calls:
        yield calls


def clocks_while(busy: Callable[[], Any]) -> str | None:
    """The clocks that nvidia-smi reports while `busy()` runs again and again; None without nvidia-smi."""
    if not which("nvidia-smi"):
        return None
    end = time.monotonic() + SMI_LIMIT
    command = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as query:
        while query.poll() is None and time.monotonic() < end:
            busy()
        query.kill()
        answer = query.communicate()[0].strip()
    return answer or None
