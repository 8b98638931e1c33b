"""NCCL: sums and broadcasts of device arrays; everything else goes through MPI."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from nnlite.distributed.communicator import MPICommunicator
from nnlite.errors import DeviceError


class NCCLCommunicator(MPICommunicator):
    """Each process has a GPU of its own, chosen before, by CUDA_VISIBLE_DEVICES or `cupy.cuda.Device(i).use()`."""

    device = "cuda"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        try:
            from cupy.cuda import nccl
        except ImportError as error:
            raise DeviceError("sums of device arrays need CuPy: see docs/gpu.md") from error
        if not nccl.available:
            raise DeviceError(
                "sums of device arrays need NCCL: pip install nvidia-nccl-cu12 or nvidia-nccl-cu13, as CuPy's CUDA"
            )
        self._nccl = nccl

    def sum_(self, flat: Any) -> None:
        """Replace the array by the sum of those of all processes, the same bits in each."""
        self._call("the sum of gradients", "allReduce", flat, self._nccl.NCCL_SUM)

    def broadcast_(self, flat: Any) -> None:
        """Replace the array by that of process 0."""
        self._call("the broadcast of values", "broadcast", flat, 0)

    @cached_property
    def _group(self) -> Any:
        """The processes as NCCL knows them; process 0 makes the name of the group, which goes to the others by MPI."""
        name = self.gather(self._nccl.get_unique_id() if self.rank == 0 else None)[0]
        with self._clear_errors():
            return self._nccl.NcclCommunicator(self.size, name, self.rank)

    def _call(self, what: str, method: str, flat: Any, option: int) -> None:
        """Call NCCL, which works in the order of the stream, and wait."""
        from cupy.cuda import Event, get_current_stream

        group, stream, place = self._group, get_current_stream(), flat.data.ptr
        kind = {"float32": self._nccl.NCCL_FLOAT32, "float64": self._nccl.NCCL_FLOAT64}[flat.dtype.name]
        with self._clear_errors():
            getattr(group, method)(place, place, flat.size, kind, option, stream.ptr)
        done = Event(disable_timing=True)
        done.record(stream)
        self._meet(what, _Request(done))

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except self._nccl.NcclError as error:
            raise DeviceError(
                f"NCCL failed in process {self.rank} of {self.size}: {error}; each process needs a GPU of its own, "
                "by CUDA_VISIBLE_DEVICES, or cupy.cuda.Device(i).use() before anything else"
            ) from error


class _Request:
    """An event on the device, with the method of MPI's requests."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def Test(self) -> bool:
        """Whether it has happened."""
        return bool(self.event.done)
