"""One BLAS thread inside nnlite's products, and the caller's number of threads back afterwards."""

import sys
import threading
import warnings
from types import TracebackType
from typing import Any


class SingleThreadedBLAS:
    """A re-entrant, shared limit: the first entry sets one BLAS thread, the last exit restores what was there.

    threadpoolctl's own limits restore wrongly when they overlap in time across threads, and making a controller costs
    milliseconds; so there is one controller and one count for the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._libraries: list[Any] | None = None
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._count == 0:
                self._limit()
            self._count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._restore()

    def _limit(self) -> None:
        if self._libraries is None:
            self._libraries = _find_libraries()
        self._before = [library.num_threads for library in self._libraries]
        for library, threads in zip(self._libraries, self._before, strict=True):
            if threads != 1:
                library.set_num_threads(1)

    def _restore(self) -> None:
        for library, threads in zip(self._libraries or [], self._before, strict=True):
            if threads != 1:
                library.set_num_threads(threads)

    def _after_fork(self) -> None:
        # The lock and the count may have been held by a thread that does not exist in the child.
        if self._count:
            self._restore()
        self._lock, self._count = threading.Lock(), 0


def _find_libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    libraries = list(ThreadpoolController().select(user_api="blas").lib_controllers)
    if not libraries and sys.platform == "darwin":
        warnings.warn(
            "this NumPy's BLAS (Accelerate) cannot be held to one thread: results may vary with its threads",
            RuntimeWarning,
            stacklevel=2,
        )
    return libraries


single_threaded_blas = SingleThreadedBLAS()
