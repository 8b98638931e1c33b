"""Training in many processes, started by `mpiexec` or `srun`: `Trainer(..., communicator=nn.distributed.mpi())`."""

from nnlite.distributed.communicator import MPICommunicator
from nnlite.distributed.launch import mpi
from nnlite.distributed.nccl import NCCLCommunicator

__all__ = ["MPICommunicator", "NCCLCommunicator", "mpi"]
