"""One BLAS thread inside nnlite's products; the caller's number of threads is restored afterwards."""

import sys
import threading
import warnings
from types import TracebackType
from typing import Any

Limits = list[tuple[Any, int]]
SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")  # OpenBLAS's names of processors with AVX-512


class SingleThreadedBLAS:
    """A re-entrant, shared limit: the first entry sets one BLAS thread, the last exit restores what was there.

    threadpoolctl's own limits are restored wrongly when they overlap in time across threads, and making a controller costs
    milliseconds; so there is one controller and one count per process. An OpenBLAS on OpenMP has a limit per thread, so it
    gets a count per thread too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._count = 0
        self._before: Limits = []
        self._libraries: list[Any] | None = None
        self._common, self._by_thread = list[Any](), list[Any]()  # libraries with one limit, and with one per thread
        self._small_kernels: bool | None = None

    def __enter__(self) -> None:
        counted = False
        try:
            with self._lock:
                self._find()
                if self._count == 0:
                    self._before = _threads_of(self._common)
                self._count += 1
                counted = True  # nothing interrupts between the two
                if self._count == 1:
                    _set_threads(self._before, to=1)
            if self._by_thread:
                self._enter_thread()
        except BaseException:
            if counted:
                self._leave()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._by_thread:
            self._local.depth -= 1
            if self._local.depth == 0:
                _set_threads(self._local.before)
        self._leave()

    def _find(self) -> None:
        if self._libraries is None:
            libraries = _find_libraries()
            self._common = [library for library in libraries if not _counts_by_thread(library)]
            self._by_thread = [library for library in libraries if _counts_by_thread(library)]
            self._libraries = libraries

    def _enter_thread(self) -> None:
        depth = getattr(self._local, "depth", 0)
        if depth == 0:
            self._local.before = _threads_of(self._by_thread)
            _set_threads(self._local.before, to=1)
        self._local.depth = depth + 1

    def _leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                _set_threads(self._before)

    @property
    def is_on(self) -> bool:
        """Whether any thread is inside."""
        return self._count > 0

    @property
    def has_small_kernels(self) -> bool:
        """Whether NumPy's products of small matrices are faster than those of large ones, inside the limit."""
        if self._small_kernels is None:
            libraries = self._libraries or _find_libraries()
            self._small_kernels = any(getattr(lib, "architecture", None) in SMALL_KERNELS for lib in libraries)
        return self._small_kernels

    def _after_fork(self) -> None:
        # The lock and the count may have been held by a thread that does not exist in the child.
        if self._count:
            _set_threads(self._before)
        self._lock, self._local, self._count = threading.Lock(), threading.local(), 0


def _counts_by_thread(library: Any) -> bool:
    return bool(library.internal_api == "openblas" and library.threading_layer == "openmp")


def _threads_of(libraries: list[Any]) -> Limits:
    return [(library, library.num_threads) for library in libraries]


def _set_threads(before: Limits, to: int | None = None) -> None:
    """Set the libraries that had several threads to this number; None: to what they had."""
    for library, threads in before:
        if threads != 1:
            # From threadpoolctl 3.8 on, only the first calling thread is obeyed until it releases; others are ignored silently.
            let_go = getattr(library, "clear_controlling_thread", lambda force: None)
            let_go(force=True)
            library.set_num_threads(to or threads)
            let_go(force=True)


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
