"""What the processes of MPI exchange, on host arrays, with a deadline for each exchange."""

import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

_SPINS = 0.01  # seconds that a waiting process polls without a pause, which Python's shortest sleep is: 60 us, many in a sum
_POLLS = 1.0  # seconds that it polls before it sleeps between polls
_SLEEP = 1e-3
_LENGTH, _FIRST = 8, 1024  # bytes of a value's length, and of the value, that are exchanged first
_READ = 0.5  # seconds in which a launcher reads a last message
_LATER = 2.0  # seconds after which other processes than the first print an error, if that has not ended all with the same
_HERE = 32_077  # the tag of notes: (rank, the meeting in which it waits)
_WORKS = -1  # instead of a meeting: it works, the others wait for it


class MPICommunicator:
    """See `nn.distributed.mpi`, which makes it, and `Communicator` in nnlite/engine/exchange.py."""

    device = "cpu"

    def __init__(self, world: Any, deterministic: bool, sync_batch_norm: bool, deadline: float) -> None:
        self.world, self.rank, self.size = world, int(world.rank), int(world.size)
        self.deterministic, self.sync_batch_norm, self.deadline = deterministic, sync_batch_norm, deadline
        self.meetings = 0
        self.channel = world  # of notes; `_comm` once that is made
        self.notes: list[Any] = []  # that it has sent
        self.beaten = 0.0  # when another one said that it works, by the clock of this one
        self.seen: dict[int, int] = {}  # the last meeting at which other processes said that they are there
        self._end_all_on_errors()

    def __repr__(self) -> str:
        return f"<process {self.rank} of {self.size}>"

    # ---- what processes exchange

    def sum_(self, flat: Any) -> None:
        """Replace the array by the sum of those of all processes, the same bits in each."""
        from mpi4py import MPI

        self._meet("the sum of gradients", self._comm.Iallreduce(MPI.IN_PLACE, flat))

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; anything that pickles."""
        own = pickle.dumps(value, protocol=5)
        head = np.frombuffer(len(own).to_bytes(_LENGTH, "little") + own[:_FIRST].ljust(_FIRST, b"\0"), np.uint8)
        heads = np.empty((self.size, len(head)), np.uint8)
        self._meet("an exchange of values", self._comm.Iallgather(head, heads))
        lengths = [int.from_bytes(each[:_LENGTH].tobytes(), "little") for each in heads]
        rests = [max(0, length - _FIRST) for length in lengths]
        tails = np.empty(sum(rests), np.uint8)
        if len(tails):  # one collective is enough for small values
            tail = np.frombuffer(own[_FIRST:], np.uint8)
            self._meet("an exchange of values", self._comm.Iallgatherv(tail, (tails, rests)))
        parts = zip(heads[:, _LENGTH:], lengths, np.split(tails, np.cumsum(rests[:-1])), strict=True)
        return [pickle.loads(first[:length].tobytes() + tail.tobytes()) for first, length, tail in parts]

    def broadcast_(self, flat: Any) -> None:
        """Replace the array by that of process 0."""
        self._meet("the broadcast of values", self._comm.Ibcast(flat))

    def barrier(self) -> None:
        """Wait for all."""
        self._meet("a barrier", self._comm.Ibarrier())

    # ---- waiting

    @cached_property
    def _comm(self) -> Any:
        """Apart from messages of the user's own."""
        comm, request = self.world.Idup()
        self._wait("the first exchange", request)
        self._hear()  # what was said in the world of the user's messages
        self.channel = comm
        return comm

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs, in one process, the others wait for it as long as it takes, unless it is stopped."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.deadline / 4):
                self._tell(_WORKS)

        thread = threading.Thread(target=beat, name="nnlite", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _meet(self, what: str, request: Any) -> None:
        self.meetings += 1
        self._wait(what, request)

    def _wait(self, what: str, request: Any) -> None:
        """Until the request is done; after the deadline end all processes."""
        limit, begun, said = self.deadline, time.monotonic(), False
        while not request.Test():
            waited = time.monotonic() - max(begun, self.beaten)
            if waited < _SPINS:
                os.sched_yield()
            else:
                time.sleep(0 if waited < _POLLS else _SLEEP)
            if waited > min(_POLLS, limit / 2):
                # All that wait here say so once one of them has waited for long: the others are missing.
                said = self._call_roll(said, waited > limit / 2)
            if waited > limit:
                others = (rank for rank in range(self.size) if rank != self.rank)
                missing = [rank for rank in others if self.seen.get(rank) != self.meetings]
                self.end_all(f"{_names(missing)} did not come to {what} within {limit:g} s")

    def _call_roll(self, said: bool, late: bool) -> bool:
        """Hear who else waits in this meeting; tell the others, once. Returns whether that is done."""
        self._hear()
        if said or not (late or self.meetings in self.seen.values()):
            return said
        self._tell(self.meetings)
        return True

    def _hear(self) -> None:
        while self.channel.Iprobe(tag=_HERE):
            note = np.empty(2, np.int64)
            self.channel.Recv(note, tag=_HERE)
            if note[1] == _WORKS:
                self.beaten = time.monotonic()
            else:
                self.seen[int(note[0])] = int(note[1])

    def _tell(self, what: int) -> None:
        for rank in range(self.size):
            if rank != self.rank:
                note = np.array([self.rank, what])
                self.notes.append((note, self.channel.Isend(note, rank, _HERE)))

    # ---- the end of all

    def end_all(self, text: str) -> None:
        """Print why, and end all processes."""
        print(f"rank {self.rank} of {self.size}: {text}; all processes end", file=sys.stderr, flush=True)
        time.sleep(_READ)
        self.world.Abort(1)
        os._exit(1)  # MPI returns where it cannot reach its launcher

    def _end_all_on_errors(self) -> None:
        """Without this a process with an uncaught exception would wait for the others at its end, and they for it."""
        usual = sys.excepthook

        def hook(kind: Any, error: Any, trace: Any) -> None:
            time.sleep(_LATER if self.rank else 0)  # what all raise is printed once
            usual(kind, error, trace)
            self.end_all(f"{kind.__name__}: {error}".removesuffix(": "))

        if self.size > 1:
            sys.excepthook = hook


def _names(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "a rank"
