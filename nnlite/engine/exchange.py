"""Where the processes that train a model together meet in a pass: parts of a barrier, the gradient total, losses and outputs.

Each process has the whole model and computes its part of every batch. Nothing else in the engine knows of other processes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from nnlite.backend import Array, length
from nnlite.engine.plan import Run, cut_of
from nnlite.engine.vectors import Vectors
from nnlite.engine.workspace import GradientVector, RunMemory
from nnlite.errors import DataError


@runtime_checkable
class Communicator(Protocol):
    """What processes exchange. Each call is made by all of them, in the same order; arrays are flat, of the same length.

    rank: the number of this process, from 0   size: how many there are   device: whose arrays it takes, "cpu" or "cuda"
    deterministic: whether gradients are added in the order of the shards of the whole batch: the bits of one process.
    sync_batch_norm: whether batch statistics are those of the whole batch, or each process uses those of its part.
    """

    rank: int
    size: int
    device: str
    deterministic: bool
    sync_batch_norm: bool

    def sum_(self, flat: Array) -> None:
        """Replace the array by the sum of those of all processes, the same bits in each."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; anything that pickles."""

    def broadcast_(self, flat: Array) -> None:
        """Replace the array by that of process 0."""

    def barrier(self) -> None:
        """Wait for all."""

    def working(self) -> AbstractContextManager[None]:
        """While the block runs, in one process, the others wait for it as long as it takes."""


class Exchange:
    """One process alone: its part is the whole batch, and what it computes is the total.

    ordered: whether gradients are added in the order of the shards of the whole batch, by all processes.
    """

    size, ordered = 1, False

    def rows(self, runs: Sequence[Run], n: int, vectors: Vectors) -> slice:
        """Its part of a batch of n, for passes through these runs."""
        return slice(0, n)

    def cut(self, run: Run, part: "Part", vectors: Vectors) -> list[slice]:
        """The shards of its part, counted from the part's first sample."""
        return cut_of(run, part.n, vectors)

    def samples(self, x: Any, t: Any, runs: Sequence[Run], vectors: Vectors) -> int:
        """The length of a batch, of which x may be the part."""
        return len(x)

    def parts(self, parts: list[Any]) -> list[Any]:
        """What a barrier combines: the parts of its shards."""
        return parts

    def add_in_order(self, memory: RunMemory, gradients: list[GradientVector]) -> None:
        """If `ordered`: add the gradients of a run's shards, of all processes, to the total, and take their vectors back."""

    def add_gradients(self, vectors: Vectors, barriers: frozenset[str], n: int) -> None:
        """At the end of a pass of n samples: add the gradients of all. barriers: paths of the layers that need the batch."""

    def losses(self, losses: list[Any], out: Array | None, mine: slice) -> list[Any]:
        """The losses of all shards; `out`, of which its own part is filled, receives all outputs."""
        return losses

    def average(self, vectors: Vectors, barriers: frozenset[str], share: float) -> None:
        """Make the running statistics of these layers the same everywhere. share: of this process in the batch."""


class Part(NamedTuple):
    """The samples `rows` of a batch of n, which this process computes."""

    exchange: Exchange
    n: int
    rows: slice


ALONE = Exchange()


class Together(Exchange):
    """Several processes.

    found: the first of them whose loss in the last pass was not finite, None for none.
    asks: whether this one asks for a pause; the others hear of it in the next pass.   asked: whether one did in the last.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator, self.rank, self.size = communicator, communicator.rank, communicator.size
        self.ordered, self.synchronised = communicator.deterministic, communicator.sync_batch_norm
        self.found: int | None = None
        self.asks = self.asked = False

    def rows(self, runs: Sequence[Run], n: int, vectors: Vectors) -> slice:
        """Even parts, the longer ones first; if `ordered`, they end where shards of all runs do, so some may be empty."""
        if not self.ordered:
            rows, longer = divmod(n, self.size)
            return slice(*(rank * rows + min(rank, longer) for rank in (self.rank, self.rank + 1)))
        ends = [{shard.stop for shard in cut_of(run, n, vectors)} for run in runs]
        common = sorted({0}.union(set.intersection(*ends)))
        return slice(*(min(common, key=lambda end: abs(end * self.size - rank * n)) for rank in (self.rank, self.rank + 1)))

    def cut(self, run: Run, part: Part, vectors: Vectors) -> list[slice]:
        start, stop = part.rows.start, part.rows.stop
        if not self.ordered:
            return cut_of(run, stop - start, vectors) if start < stop else []
        inside = (shard for shard in cut_of(run, part.n, vectors) if start <= shard.start and shard.stop <= stop)
        return [slice(shard.start - start, shard.stop - start) for shard in inside]

    def samples(self, x: Any, t: Any, runs: Sequence[Run], vectors: Vectors) -> int:
        n = length(t)
        mine = self.rows(runs, n, vectors)
        if len(x) not in (n, mine.stop - mine.start):
            raise DataError(f"{len(x)} samples, but {n} targets")
        return n

    def parts(self, parts: list[Any]) -> list[Any]:
        return self._all(parts) if self.synchronised else parts

    def add_in_order(self, memory: RunMemory, gradients: list[GradientVector]) -> None:
        to_host, asarray = memory.vectors.backend.to_host, memory.vectors.backend.asarray
        every = self._all([to_host(gradient.vector) for gradient in gradients]) if memory.slots else []
        memory.gradients += gradients
        for i, vector in enumerate(every):
            gradient = memory.direct if i == 0 else memory.gradient()
            gradient.vector[...] = asarray(vector)
            memory.add(i, gradient, last=i == len(every) - 1)

    def add_gradients(self, vectors: Vectors, barriers: frozenset[str], n: int) -> None:
        if self.ordered:
            return
        if n == 0:
            vectors.grads[...] = 0
        elif self.synchronised and self.rank:  # all have computed the same gradients of these layers
            for slot in vectors.trained:
                if slot.path in barriers:
                    vectors.grads[slot.place] = 0
        self.communicator.sum_(vectors.grads)

    def losses(self, losses: list[Any], out: Array | None, mine: slice) -> list[Any]:
        own = [float(loss) for loss in losses], None if out is None else out[mine], self.asks
        every = self.communicator.gather(own)
        self.asked = any(asks for _, _, asks in every)
        sums = [sum(losses) for losses, _, _ in every]
        self.found = next((rank for rank, total in enumerate(sums) if total - total != 0), None)
        if out is not None:
            start = 0
            for _, part, _ in every:
                out[start : start + len(part)] = part
                start += len(part)
        return [loss for losses, _, _ in every for loss in losses]

    def average(self, vectors: Vectors, barriers: frozenset[str], share: float) -> None:
        places = [slot.place for slot in vectors.kept if slot.path in barriers]
        if self.synchronised or not places:
            return
        flat = vectors.backend.xp.concatenate([vectors.buffers[place] for place in places]).astype("float64") * share
        self.communicator.sum_(flat)
        for place in places:
            vectors.buffers[place], flat = flat[: place.stop - place.start], flat[place.stop - place.start :]

    def _all(self, parts: list[Any]) -> list[Any]:
        return [part for parts in self.communicator.gather(parts) for part in parts]
