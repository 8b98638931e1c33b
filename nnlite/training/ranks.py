"""What the processes of one `fit` do together besides their gradients: they compare, decide and write as one."""

import os
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np

from nnlite.backend import length, share_cores, usable_cores
from nnlite.engine.exchange import ALONE, Communicator, Exchange, Together
from nnlite.errors import DataError, DeviceError, StateError
from nnlite.model import Sequential
from nnlite.tools.debug import locate

T = TypeVar("T")
B = TypeVar("B", bound=tuple[Any, ...])
_LISTED = 16  # processes that are shown


class DivergedError(StateError):
    """Processes that should be equal are not: what they have now must not be saved."""


class Ranks:
    """The processes that train a model together, one of them this one; a single one without a communicator.

    sharing: whether `outputs` shares the batch among the processes.
    """

    def __init__(self, communicator: Communicator | None = None) -> None:
        self.communicator, self.sharing = communicator, False
        self.exchange: Exchange = ALONE if communicator is None else Together(communicator)
        self.rank, self.size = (0, 1) if communicator is None else (communicator.rank, communicator.size)

    @property
    def is_first(self) -> bool:
        """Whether this process shows progress, calls what writes, and writes checkpoints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes."""
        return [value] if self.communicator is None else self.communicator.gather(value)

    def working(self) -> AbstractContextManager[None]:
        """While the block runs in process 0, which writes and shows, the others wait for it as long as it takes."""
        return self.communicator.working() if self.communicator is not None and self.is_first else nullcontext()

    # ---- before training

    def check(self, model: Sequential, batch_size: int) -> None:
        """Raise DeviceError for arrays that the communicator does not take, DataError for batches with empty parts."""
        communicator = self.communicator
        if communicator is not None and communicator.device != model.device:
            raise DeviceError(
                f"the model is on {model.device}, the communicator takes arrays of {communicator.device}: "
                f"nn.distributed.mpi(device={model.device!r})"
            )
        if batch_size < self.size:
            raise DataError(
                f"a batch of {batch_size} has no sample for each of {self.size} processes: give a larger batch_size"
            )

    def all_do(self, work: Callable[[], T]) -> T:
        """What `work()` returns; if it fails in one process, an error in all."""
        if self.communicator is None:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        self._fail_together(failure)
        return result

    def first_does(self, work: Callable[[], T]) -> T:
        """What `work()`, which process 0 alone does, returns there; an error there is an error in all."""
        if self.communicator is None:
            return work()
        failure, result = None, None
        try:
            with self.working():
                result = work() if self.is_first else None
        except Exception as error:
            failure = error
        self._fail_together(failure)
        return self.gather(result)[0]  # type: ignore[return-value]

    def _fail_together(self, failure: Exception | None) -> None:
        texts = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            failure.add_note(f"raised by rank {self.rank} of {self.size}")
            raise failure
        for rank, text in enumerate(texts):
            if text is not None:
                raise StateError(f"rank {rank} of {self.size} failed: {text}")

    def begin(self, model: Sequential) -> None:
        """Give all processes the parameters and statistics of the first."""
        if self.communicator is not None:
            self.communicator.broadcast_(model.params)
            if len(model.buffers):
                self.communicator.broadcast_(model.buffers)

    def introduce(self) -> str:
        """Share the cores with the others on this machine. Returns which processes these are."""
        me = os.getpid(), platform.node(), usable_cores()
        every = self.gather(me)
        share_cores(sum(node == me[1] and not cores.isdisjoint(me[2]) for _, node, cores in every))
        names = [f"rank {rank}: process {number} on {node}" for rank, (number, node, _) in enumerate(every)]
        return ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)

    # ---- while training

    @contextmanager
    def training(self, model: Sequential) -> Iterator[None]:
        """While the block runs, `loss_and_grad` of this model shares its batches."""
        model.engine.exchange = self.exchange
        try:
            yield
        finally:
            model.engine.exchange = ALONE

    def part_for(self, model: Sequential) -> Callable[[int], slice] | None:
        """The part of a batch of n samples that this process trains on; None for one alone."""
        if self.communicator is None:
            return None
        return lambda n: self.exchange.rows(model.plan.training, n, model.vectors)

    def in_step(self, batches: Iterable[B]) -> Iterator[B]:
        """The batches (x, t, w) of an iterable. Raises StateError where those of another process end, or have other lengths."""
        batches = iter(batches)
        while True:
            batch = next(batches, None)
            every = self.gather(0 if batch is None else length(batch[1]))
            for rank, n in enumerate(every):
                if n != every[0]:
                    raise StateError(
                        f"rank {rank} of {self.size} and rank 0 differ in the samples of their next batch: {n} and {every[0]}; "
                        "all processes iterate over the same batches"
                    )
            if batch is None:
                return
            yield batch

    def samples(self, x: Any, t: Any) -> int:
        """The samples of a batch, of which x may be this process's part."""
        return len(x) if self.communicator is None else length(t)

    def part_of_outputs(self, model: Sequential) -> Callable[[int], slice] | None:
        """While `sharing`: the part of a batch of n samples whose outputs this process computes; None for all.

        If the bits must be those of one process, each computes all.
        """
        if not self.sharing or self.communicator is None or self.exchange.ordered:
            return None
        return lambda n: self.exchange.rows([model.plan.inference], n, model.vectors)

    def outputs(self, model: Sequential, x: Any, t: Any) -> Any:
        """`model(x)`; while `sharing`, each process computes a part, which x may be."""
        part = self.part_of_outputs(model)
        if part is None:
            return model(x)
        mine, n = part(length(t)), self.exchange.samples(x, t, [model.plan.inference], model.vectors)
        own = x[mine] if len(x) == n else x
        z = model.backend.to_host(model(own)) if len(own) else np.empty((0, *model.out_shape), model.dtype)
        return model.backend.asarray(np.concatenate(self.gather(z)))

    def any_asks(self, asks: bool) -> bool:
        """After a step: whether a process asks for a pause; of several all hear of it one step later, and pause together."""
        if not isinstance(self.exchange, Together):
            return asks
        asked, self.exchange.asks, self.exchange.asked = self.exchange.asked, asks, False
        return asked

    def locate(self, model: Sequential, x: Any, t: Any, w: Any, rows: Any) -> str:
        """Where in a batch the first value is not finite, and in which process; see `nnlite.tools.debug.locate`."""
        if not isinstance(self.exchange, Together):
            return locate(model, x, t, w, rows)
        found, text, n = self.exchange.found or 0, "", length(t)
        if self.rank == found:
            mine = self.exchange.rows(model.plan.training, n, model.vectors)
            own = [values if values is None else values[mine] for values in (t, w, rows)]
            text = locate(model, x[mine] if len(x) == n else x, *own)
        return f"rank {found}: {self.gather(text)[found]}"

    def compare(self, model: Sequential) -> None:
        """Raise DivergedError, naming it, for a process whose parameters or statistics are not those of most."""
        if self.communicator is None:
            return
        sums = self.gather([zlib.crc32(model.backend.to_host(vector).tobytes()) for vector in (model.params, model.buffers)])
        usual = max(sums, key=sums.count)
        others = [rank for rank, values in enumerate(sums) if values != usual]
        if others:
            raise DivergedError(
                f"rank {others[0]} of {self.size} has other parameters or statistics than rank {sums.index(usual)}: it changed "
                "them by itself, or its memory is bad; nothing after the last checkpoint can be used"
            )
