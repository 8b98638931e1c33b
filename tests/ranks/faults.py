"""Run by mpiexec: training in which something goes wrong in process 1, in the second epoch, after a checkpoint."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import nnlite as nn

DEADLINE, SLOW = 3.0, 3.7


class Fault(nn.Callback):
    """What the first argument of the script says, in process 1."""

    def __init__(self, fault):
        self.fault = fault

    def on_step_end(self, trainer):
        if trainer.steps == 6 and self.fault == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.steps == 6 and trainer.communicator.rank == 1:
            Path(sys.argv[2], "begun").touch()
            getattr(self, self.fault)(trainer)

    def exception(self, trainer):
        raise RuntimeError("the disk is on fire")

    def exit(self, trainer):
        sys.exit(3)

    def kill(self, trainer):
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, trainer):
        os.kill(os.getpid(), signal.SIGSTOP)

    def diverge(self, trainer):
        trainer.model.params[3] += 1

    def long(self, trainer):
        """Now checks/hosts.py cuts the cable."""

    def slow(self, trainer):
        """Process 0 takes longer than the deadline to read the data and to write: see below."""

    def terminate(self, trainer):
        """All processes get a signal, as from a launcher: see below."""

    def writer(self, trainer):
        """Process 0 stops while it writes: see below."""

    def early(self, trainer):
        """Process 1 ends before training: see below."""

    def log(self, trainer):
        """The log of process 0 cannot be written: see below."""


class Writer(nn.Callback):
    """Writes at the end of the second epoch: for longer than the deadline, or until it is stopped."""

    only_first = True

    def __init__(self, fault):
        self.fault = fault

    def on_epoch_end(self, trainer, row):
        if trainer.epochs == 2 and self.fault == "slow":
            time.sleep(SLOW)
        if trainer.epochs == 2 and self.fault == "writer":
            os.kill(os.getpid(), signal.SIGSTOP)


class SlowData(nn.data.Dataset):
    """Takes longer than the deadline to be hashed."""

    def digest(self):
        time.sleep(SLOW)
        return super().digest()


def main(fault, folder):
    Path(folder).mkdir(exist_ok=True)
    model = nn.Sequential(nn.Dense(16), nn.ReLU(), nn.Dense(3), input_shape=(8,))
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(64, 8)), rng.integers(0, 3, 64)
    communicator = nn.distributed.mpi(deadline=DEADLINE)
    if fault == "early" and communicator.rank == 1:
        sys.exit("no data here")
    callbacks = [Fault(fault), Writer(fault), *([nn.CSVLog(folder)] if fault == "log" else [])]
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(1e-2), callbacks=callbacks, communicator=communicator)
    options = {"steps_per_epoch": 1_000_000} if fault == "long" else {"checkpoint": Path(folder)}
    trainer.fit(SlowData(x, t) if fault == "slow" else (x, t), 3, 16, **options)


main(*sys.argv[1:])
