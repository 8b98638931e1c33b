"""Run by mpiexec: what both communicators exchange; NCCL's with a stand-in for it, whose device is host memory.

The argument says what: "exchange"; "train" on the pretended device of tests/cuda; "alone", where process 1 does not come.
"""

import ctypes
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

import nnlite as nn
from nnlite.engine.exchange import Together

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
    waits = WAITS

    def __init__(self, disable_timing):
        assert disable_timing

    def record(self, stream):
        assert stream is STREAM
        self.polls = 0

    @property
    def done(self):
        self.polls += 1
        if self.polls == self.waits:
            for work in STREAM.work:
                work()
            STREAM.work.clear()
        return self.polls >= self.waits


class NcclError(RuntimeError):
    """As CuPy's."""


class Group:
    """Of NCCL's names: `allReduce` and `broadcast`, by MPI. fails: what raises an error, as NCCL's does."""

    fails = ""

    def __init__(self, size, name, rank):
        assert (size, rank) == (MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank) and name == ("name", 0)
        self.fail("begin")

    def fail(self, what):
        if self.fails == what:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")

    def allReduce(self, send, receive, count, kind, operation, stream):
        self.fail("sum")
        assert send == receive and operation == nccl.NCCL_SUM and stream == STREAM.ptr
        STREAM.work.append(lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, view(send, count, kind)))

    def broadcast(self, send, receive, count, kind, root, stream):
        self.fail("broadcast")
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
    NcclError=NcclError,
    NcclCommunicator=Group,
    get_unique_id=lambda: ("name", MPI.COMM_WORLD.rank),
)
parts = {"nccl": nccl, "Event": Event, "get_current_stream": lambda: STREAM}


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
    with communicator.working():
        pass


def check_errors():
    """Each error of NCCL is one of nnlite's own, that names the process."""
    values = np.ones(3, "float32").view(DeviceArray)
    for what in ("begin", "sum", "broadcast"):
        communicator = nn.distributed.mpi(deadline=20.0, device="cuda")
        Group.fails = what
        said = (
            f"NCCL failed in process {communicator.rank} of {communicator.size}: NCCL_ERROR_INVALID_USAGE: .* a GPU of its own"
        )
        with pytest.raises(nn.DeviceError, match=said):
            (communicator.broadcast_ if what == "broadcast" else communicator.sum_)(values)
    Group.fails = ""


def exchange():
    cuda = SimpleNamespace(**parts)
    sys.modules |= {"cupy": SimpleNamespace(cuda=cuda), "cupy.cuda": cuda, "cupy.cuda.nccl": nccl}
    check(nn.distributed.mpi(deadline=20.0), np.ndarray)
    check(nn.distributed.mpi(deadline=20.0, device="cuda"), DeviceArray)
    assert not STREAM.work
    check_errors()


def alone():
    cuda = SimpleNamespace(**parts)
    sys.modules |= {"cupy": SimpleNamespace(cuda=cuda), "cupy.cuda": cuda, "cupy.cuda.nccl": nccl}
    communicator = nn.distributed.mpi(deadline=2.0, device="cuda")
    values = np.ones(3, "float32").view(DeviceArray)
    communicator.sum_(values)
    Event.waits = 1 << 60
    if communicator.rank == 1:
        time.sleep(60)
    communicator.sum_(values)


def model_on(device):
    layers = nn.Dense(7), nn.BatchNorm(), nn.Dropout(0.2), nn.Dense(3)  # few kinds of kernels to compile
    return nn.Sequential(*layers, input_shape=(6,)).to(device)


def train():
    """The gradients are those of one process on the CPU, and training leaves all processes with the same values."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda"))
    import emulator
    import fake_cupy

    if emulator.COMPILER is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        cuda = fake_cupy.install(patch).cuda
        vars(cuda).update(parts)
        sys.modules |= {"cupy.cuda": cuda, "cupy.cuda.nccl": nccl}
        rng = np.random.default_rng(0)
        for n in (13, 1):
            x, t = rng.normal(size=(n, 6)), rng.integers(0, 3, n)
            one = model_on("cpu")
            loss = one.loss_and_grad(x, t, nn.CrossEntropy())
            for deterministic in (False, True):
                model = model_on("cuda")
                options = {"deterministic": deterministic, "sync_batch_norm": True}
                model.engine.exchange = Together(nn.distributed.mpi(deadline=20.0, device="cuda", **options))
                assert abs(float(model.loss_and_grad(x, t, nn.CrossEntropy())) - loss) < 1e-6 * loss
                for own, wanted in ((model.grads, one.grads), (model.buffers, one.buffers)):
                    np.testing.assert_allclose(own.get(), wanted, rtol=1e-5, atol=1e-6)
        communicator, model = nn.distributed.mpi(deadline=20.0, device="cuda"), model_on("cuda")
        trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(), [nn.Accuracy()], communicator=communicator)
        x, t = rng.normal(size=(30, 6)), rng.integers(0, 3, 30)
        trainer.fit((x, t), 2, 8, validation=(x[:9], t[:9]), progress=False)  # which compares the values
        assert trainer.steps == 8 and len(set(communicator.gather(trainer.history["val_loss"][1]))) == 1


{"exchange": exchange, "train": train, "alone": alone}[sys.argv[1]]()
