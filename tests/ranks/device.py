"""Run by mpiexec: what both communicators exchange; NCCL's with a stand-in for CuPy, whose device is host memory."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

import nnlite as nn

WAITS = 3  # times that the device says that it is not done


class Stream:
    """Work that is done later, in order."""

    ptr = 1234

    def __init__(self):
        self.work = []


STREAM = Stream()


class DeviceArray(np.ndarray):
    """An array with an address, as CuPy's."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Event:
    def __init__(self, disable_timing):
        assert disable_timing

    def record(self, stream):
        assert stream is STREAM
        self.polls = 0

    @property
    def done(self):
        self.polls += 1
        if self.polls == WAITS:
            for work in STREAM.work:
                work()
            STREAM.work.clear()
        return self.polls >= WAITS


class Group:
    """Of NCCL's names: `allReduce` and `broadcast`, by MPI."""

    def __init__(self, size, name, rank):
        assert (size, rank) == (MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank) and name == ("name", 0)

    def allReduce(self, send, receive, count, kind, operation, stream):
        assert send == receive and operation == nccl.NCCL_SUM and stream == STREAM.ptr
        STREAM.work.append(lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, view(send, count, kind)))

    def broadcast(self, send, receive, count, kind, root, stream):
        assert send == receive and root == 0 and stream == STREAM.ptr
        STREAM.work.append(lambda: MPI.COMM_WORLD.Bcast(view(send, count, kind)))


def view(address, count, kind):
    number = {nccl.NCCL_FLOAT32: ctypes.c_float, nccl.NCCL_FLOAT64: ctypes.c_double}[kind]
    return np.ctypeslib.as_array((number * count).from_address(address))


nccl = SimpleNamespace(
    available=True,
    NCCL_FLOAT32=7,
    NCCL_FLOAT64=8,
    NCCL_SUM=0,
    NcclCommunicator=Group,
    get_unique_id=lambda: ("name", MPI.COMM_WORLD.rank),
)
cuda = SimpleNamespace(nccl=nccl, Event=Event, get_current_stream=lambda: STREAM)
sys.modules |= {"cupy": SimpleNamespace(cuda=cuda), "cupy.cuda": cuda, "cupy.cuda.nccl": nccl}


def check(communicator, kind):
    rank, size = communicator.rank, communicator.size
    ranks = size * (size - 1) // 2
    for dtype in ("float32", "float64"):
        for n in (1, 1000):
            values = (np.arange(n, dtype=dtype) + rank).view(kind)
            communicator.sum_(values)
            assert (values == size * np.arange(n) + ranks).all()
            values = np.full(n, rank + 1, dtype).view(kind)
            communicator.broadcast_(values)
            assert (values == 1).all()
    for give in (lambda r: r, lambda r: {"a": [r, "text"]}, lambda r: np.arange(r * 10_000), lambda r: "x" * (1000 + 7 * r)):
        for found, expected in zip(communicator.gather(give(rank)), map(give, range(size)), strict=True):
            assert np.array_equal(found, expected)
    communicator.barrier()


check(nn.distributed.mpi(deadline=20.0), np.ndarray)
check(nn.distributed.mpi(deadline=20.0, device="cuda"), DeviceArray)
assert not STREAM.work
