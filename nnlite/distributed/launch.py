"""The processes that a launcher started."""

import os
from collections.abc import Mapping

from nnlite.arguments import choice, flag, number
from nnlite.distributed.communicator import MPICommunicator
from nnlite.distributed.nccl import NCCLCommunicator
from nnlite.errors import StateError

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MV2_COMM_WORLD_SIZE")  # set by launchers


def mpi(
    *, deterministic: bool = False, sync_batch_norm: bool = False, deadline: float = 300.0, device: str = "cpu"
) -> "MPICommunicator":
    """The processes that `mpiexec` or `srun` started, for `Trainer(..., communicator=...)`; each calls this once, early.

    deterministic: whether gradients are added in the order of the shards of the whole batch, which takes more time and memory:
    with the native kernels, and batch norm absent or synchronised, the bits are those of one process. Without it two runs with
    the same number of processes still have the same bits.
    sync_batch_norm: whether batch norm uses the statistics of the whole batch; otherwise each process uses those of its part,
    and the running statistics are their means.
    deadline: in seconds, how long a process waits for the others before it ends all, naming those that are missing; longer than
    the longest difference between their times of reading data. Writing a checkpoint may take longer.
    device: of the model, "cpu" or "cuda"; there gradients are added by NCCL.
    From here on an uncaught exception of one process ends all.
    Raises StateError without a launcher, and where that started more processes than MPI finds; ImportError without mpi4py,
    DeviceError without NCCL.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            "nnlite.distributed needs mpi4py 4.1 or later and an MPI: pip install 'nnlite-numpy[mpi]'; "
            "without an MPI on this machine also pip install mpich"
        ) from error
    world = MPI.COMM_WORLD
    refuse_other_launchers(world.size, os.environ)
    kind = NCCLCommunicator if choice("device", device, "cpu", "cuda") == "cuda" else MPICommunicator
    return kind(
        world,
        flag("deterministic", deterministic),
        flag("sync_batch_norm", sync_batch_norm),
        float(number("deadline", deadline, above=0)),
    )


def refuse_other_launchers(size: int, environment: Mapping[str, str]) -> None:
    """Raise StateError where a launcher is missing, or is of another MPI."""
    asked = [int(environment[name]) for name in _SIZES if environment.get(name, "").isdigit()]
    if size == 1 and not asked:
        raise StateError(
            "nn.distributed.mpi() found one process and no launcher: start the script with mpiexec -n 2 python script.py"
        )
    if size < max(asked, default=1):
        raise StateError(
            f"the launcher started {max(asked)} processes, MPI finds {size}: mpi4py uses another MPI than this launcher is of; "
            "use the mpiexec of that MPI"
        )
