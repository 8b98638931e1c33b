"""Run by mpiexec: the code of docs/distributed.md, that for several GPUs on a pretended device."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mpi4py import MPI

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cuda"))

import fake_cupy  # noqa: E402

rank, used = MPI.COMM_WORLD.rank, []
with pytest.MonkeyPatch.context() as patch:
    cuda = fake_cupy.install(patch).cuda
    cuda.Device, cuda.nccl = (lambda number: SimpleNamespace(use=lambda: used.append(number))), SimpleNamespace(available=True)
    sys.modules |= {"cupy.cuda": cuda, "cupy.cuda.nccl": cuda.nccl}
    os.environ["SLURM_LOCALID"] = str(rank)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL):
        exec(block, names)
assert used == [rank] and names["model"].device == names["communicator"].device == "cuda"
