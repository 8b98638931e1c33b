"""A section of `gpu.py`: single operations alone, in bytes and FLOPs per second, next to a copy and a large product.

The device gets a long task first, so that all calls are enqueued before the first of them starts: the device is
measured, never the host.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gpu_common import Record, attempt, elapsed, synchronize, watched_launches

from nnlite.backend import Memory, Window, get_backend

IMAGES, SIDE = 512, 32
LONG = 4096  # rows and columns of the products that keep the device busy for some 10 ms
CALLS, GROUPS = 20, 5
AIM = 0.02  # seconds: of a group of calls, where an operation is slow
SHORTEST = 1e-6  # seconds that an event can resolve
FLOAT, WINNER = 4, 2  # bytes


class Operation(NamedTuple):
    """call: does it once, on arrays of these sizes. moved: the fewest bytes that it reads and writes; flops: of a product."""

    call: Callable[[], Any]
    sizes: str
    moved: int
    flops: int = 0


def micro(record: Record, quick: bool) -> None:
    """At the sizes of training."""
    operations(record, 64 if quick else IMAGES, SIDE, LONG)


def operations(record: Record, images: int, side: int, long: int) -> None:
    """A row for each, at the sizes of training with `images` images of `side` pixels on each side."""
    bench = Bench(images, side, long)
    few, pixels = max(1, images // 8), side * side * images
    rows: dict[str, Callable[[], Operation]] = {
        "copy": bench.copy,
        "column_sums": bench.column_sums,
        "moments": bench.moments,
        "im2col, 3 channels": partial(bench.im2col, images, 3),
        "im2col, 64 channels": partial(bench.im2col, few, 64),
        "max_pool_delta, 2 x 2": partial(bench.max_pool_delta, 2, 32),
        "max_pool_delta, global": partial(bench.max_pool_delta, side, 64),
    }
    for precision in ("float32", "tf32"):
        rows |= {
            f"sgemm {precision}, square": partial(bench.product, precision, long, long, long),
            f"sgemm {precision}, n = 1": partial(bench.product, precision, 1, pixels, 32),
            f"sgemm {precision}, N = 16": partial(bench.product, precision, pixels, 144, 16),
            f"sgemm {precision}, weights": partial(bench.product, precision, 16, pixels, 144),
        }
    for name, make in rows.items():
        attempt(record, name, bench.measure, record, name, make)


class Bench:
    """Makes operations of training with images of `side` pixels on each side, and measures them.

    long: rows and columns of the product that keeps the device busy.
    """

    def __init__(self, images: int, side: int, long: int) -> None:
        self.backend, self.images, self.side = get_backend("cuda"), images, side
        self.values = np.random.default_rng(0).standard_normal(1 << 20, dtype="float32")
        self.long = self.array(long, long)

    def array(self, *shape: int) -> Any:
        """Random values; a million of them, repeated."""
        return self.backend.asarray(np.resize(self.values, shape))

    # ---- what is measured

    def copy(self) -> Operation:
        a, b = (self.array(self.images * self.side**2, 128) for _ in range(2))

        def call() -> None:
            b[...] = a

        return Operation(call, by(a.shape), 2 * FLOAT * a.size)

    def column_sums(self) -> Operation:
        a = self.array(self.images * self.side**2, 32)
        return Operation(lambda: self.backend.column_sums(a), by(a.shape), FLOAT * a.size)

    def moments(self) -> Operation:
        a = self.array(self.images * self.side**2, 16)

        def call() -> None:
            self.backend.combine_moments([(len(a), *self.backend.moments(a))], 1e-5)

        return Operation(call, by(a.shape), FLOAT * a.size)

    def im2col(self, images: int, channels: int) -> Operation:
        plan: Any = self.backend.conv_plan(Window.of((self.side, self.side, channels), 3, 1, 1), 16, 1, False)
        a = self.array(images, self.side, self.side, channels)
        return Operation(lambda: plan._columns(a), by(a.shape), FLOAT * 10 * a.size)

    def max_pool_delta(self, kernel: int, channels: int) -> Operation:
        shape = (self.side, self.side, channels)
        plan, memory = self.backend.max_pool_plan(Window.of(shape, kernel, kernel)), Memory(self.backend, swept=True)
        a = self.array(self.images, *shape)
        delta = self.array(*plan.forward(a, memory, None).shape)
        moved = FLOAT * a.size + (FLOAT + WINNER) * delta.size
        return Operation(lambda: plan.backward(delta, memory, None), by(a.shape), moved)

    def product(self, precision: Any, m: int, k: int, n: int) -> Operation:
        """As convolutions call it: the first factor of a weight gradient, which has few rows and many columns, is a view."""
        a = self.array(k, m).T if 1 < m < k else self.array(m, k)
        b, backend = self.array(k, n), get_backend("cuda", precision)
        moved = FLOAT * (m * k + k * n + m * n)
        return Operation(lambda: backend.product(a, b, None), f"{by(a.shape)}, {by(b.shape)}", moved, 2 * m * k * n)

    # ---- measuring

    def measure(self, record: Record, name: str, make: Callable[[], Operation]) -> None:
        """The median over groups of calls, and of the last call the time of each kernel that it launches."""
        operation = make()
        operation.call()
        calls = int(min(CALLS, max(1, AIM / max(SHORTEST, self.alone(operation.call)))))

        def group() -> None:
            for _ in range(calls):
                operation.call()

        seconds = statistics.median(self.alone(group) / calls for _ in range(GROUPS))
        record(name, sizes=operation.sizes, us=1e6 * seconds, gb_per_s=operation.moved / seconds / 1e9)
        if operation.flops:
            record(name, gflop_per_s=operation.flops / seconds / 1e9)
        record(name, kernels=self.kernels(operation.call))

    def alone(self, work: Callable[[], Any]) -> float:
        """Seconds of the device for calls that are enqueued while it is still busy."""
        self.keep_busy()
        return elapsed(work)

    def keep_busy(self) -> None:
        for _ in range(4):
            self.backend.product(self.long, self.long, None)

    def kernels(self, call: Callable[[], Any]) -> dict[str, float]:
        """Microseconds of each of nnlite's own kernels in a call, by events around their launches."""
        self.keep_busy()
        with watched_launches() as launches:
            call()
        synchronize()
        microseconds: dict[str, float] = defaultdict(float)
        for launch in launches:
            microseconds[launch.name] += 1e6 * launch.seconds()
        return dict(microseconds)


def by(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n:,}" for n in shape)
