"""The threads that shards run on, the turnstile that keeps sums in order, and the lock between readers and writers."""

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from queue import SimpleQueue
from weakref import WeakSet

from nnlite.arguments import shortened, whole
from nnlite.backend.cpu.blas import single_threaded_blas

_local = threading.local()
calls = ctypes.c_long(0)  # changes when `map_shards` calls its helpers; those that wait for other work watch it


class _Errand:
    """Work for a helper thread, unless the caller finishes before one begins it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.done, self._claims, self._ended = work, False, dict[str, int](), threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        """Do the work, unless it was settled before."""
        if self._is_mine():
            self.work()
            self.done = True
            self._ended.release()

    def settle(self) -> None:
        """Wait until it is done, or prevent it from beginning. An interrupted call can be repeated."""
        if not self._is_mine():
            while not self.done:
                self._ended.acquire()

    def _is_mine(self) -> bool:
        """Whether this thread is the first to claim it."""
        me = threading.get_ident()
        return self._claims.setdefault("first", me) == me


class _Crew:
    """The threads behind `map_shards`, which sleep until there is work: started on first use, and again after a fork.

    The futures of an executor would take as long as a small product.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads, self.default, self._helpers = threads, 0, list[threading.Thread]()
        self._lock, self._errands = threading.Lock(), SimpleQueue[_Errand]()

    def size(self) -> int:
        """How many threads compute, including the calling one."""
        if self.threads is not None:
            return self.threads
        self.default = self.default or _default_threads()
        return self.default

    def give(self, errands: list[_Errand]) -> None:
        """Wake a helper for each errand while there are idle ones."""
        with self._lock:
            while len(self._helpers) < self.size() - 1:
                helper = threading.Thread(target=self._run_errands, name="nnlite", daemon=True)
                try:
                    helper.start()
                except RuntimeError:  # the system has no thread left: the others do the work
                    break
                self._helpers.append(helper)
        for errand in errands:
            self._errands.put(errand)

    def _run_errands(self) -> None:
        while True:
            self._errands.get().run()


def _default_threads(processes: int = 1) -> int:
    """processes: how many share the cores."""
    given = os.environ.get("NNLITE_NUM_THREADS")
    if given is not None:
        if not given.isdigit() or int(given) < 1:
            raise ValueError(f"NNLITE_NUM_THREADS must be a positive integer, not {shortened(given)}")
        return int(given)
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdigit() and int(given) >= 1:
        return int(given)
    return max(1, len(usable_cores()) // processes)


def usable_cores() -> set[int]:
    """The numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def share_cores(processes: int) -> None:
    """Unless a number of threads was given, compute on a share of the cores, which so many processes use."""
    _crew.default = _default_threads(processes)


_crew = _Crew()


def set_num_threads(threads: int) -> None:
    """Set how many threads nnlite computes on. The results are the same bits for every number.

    Default: `NNLITE_NUM_THREADS` where it is set, else `OMP_NUM_THREADS`, else the cores that this process may use. Where
    no thread can be started, those that run do all the work.
    Raises ValueError for anything but a positive integer.
    """
    _crew.threads = int(whole("threads", threads, 1))


def get_num_threads() -> int:
    """How many threads nnlite computes on."""
    return _crew.size()


def is_one_of_many() -> bool:
    """Whether the calling thread is inside `map_shards` with more than one index, whatever the number of threads."""
    return getattr(_local, "busy", False)


def map_shards(work: Callable[[int], None], count: int, on_error: Callable[[], None] = lambda: None) -> None:
    """Call `work(0)` ... `work(count - 1)`, begun in this order, on the calling thread and its helpers.

    An exception cancels the indices that have not begun and is raised here once all others are done; `on_error()` is called
    immediately, for those that wait for each other. Calls from within such work run the indices one after another.
    """
    if count == 1 or is_one_of_many():
        for index in range(count):
            work(index)
        return
    indices, errors, one_at_a_time = itertools.count(), list[BaseException](), threading.Lock()
    # Helpers limit BLAS if the caller does; an optimiser's sweeps have no products, and the limit costs as much as a sweep.
    limit = single_threaded_blas if single_threaded_blas.is_on else nullcontext()

    def next_index() -> int:
        # In a Python without the global lock `next` might give two threads the same number.
        with one_at_a_time:
            return next(indices)

    def loop() -> None:
        try:
            _local.busy = True
            with limit:
                while not errors and (index := next_index()) < count:
                    work(index)
        except BaseException as error:
            errors.append(error)
            on_error()
        finally:
            _local.busy = False

    errands = [_Errand(loop) for _ in range(min(_crew.size(), count) - 1)]
    try:
        calls.value += 1
        _crew.give(errands)
        loop()
        for errand in errands:
            errand.settle()
    except BaseException as error:  # an interrupt, or a thread that could not start
        errors.append(error)
        on_error()
        for errand in errands:
            errand.settle()
    _local.busy = False  # an interrupt of `loop` may have left it
    if errors:
        raise errors[0]


def lend(work: Callable[[], None]) -> None:
    """Let a helper do this work, which ends soon, or when `calls` changes."""
    _crew.give([_Errand(work)])


class Turnstile:
    """Lets the shards of a batch through in order: `with turnstile.turn(i):` waits for 0 ... i - 1."""

    def __init__(self, count: int) -> None:
        self._gates = [SimpleQueue[None]() for _ in range(count + 1)]
        self._gates[0].put(None)

    @contextmanager
    def turn(self, index: int) -> Iterator[None]:
        """Run the block once all earlier shards have passed."""
        self._gates[index].get()
        yield
        self._gates[index + 1].put(None)

    def break_open(self) -> None:
        """Let all shards through: one failed, so the sum is lost anyway."""
        for gate in self._gates:
            gate.put(None)


class _Visit:
    """A reader's or writer's time in a lock, for a `with`. An interrupt on the way in leaves nothing held."""

    def __init__(self, lock: "ReadersWriterLock", writes: bool) -> None:
        self.lock, self.writes, self.thread = lock, writes, threading.get_ident()

    def __enter__(self) -> None:
        try:
            self.lock.enter(self)
        except BaseException:
            self.lock.leave(self)
            raise

    def __exit__(self, *error: object) -> None:
        self.lock.leave(self)


class ReadersWriterLock:
    """Many readers or one writer: inference reads the parameters, an optimiser's step writes them.

    First come, first served, so no thread waits for ever. A thread that is inside may enter again, except a reader that
    wants to write.
    """

    def __init__(self) -> None:
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        """Reset after a fork: the threads that were inside do not exist in the child."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside, self._queue = set[_Visit](), list[_Visit]()

    def reading(self) -> _Visit:
        """Keep the parameters unchanged until the block ends."""
        return _Visit(self, writes=False)

    def writing(self) -> _Visit:
        """Wait until there are no readers; none enter until the block ends."""
        return _Visit(self, writes=True)

    def enter(self, visit: _Visit) -> None:
        """Wait for the visit's turn. The condition is entered by its lock: one step of Python that cannot be interrupted."""
        with self._lock:
            self._queue.append(visit)
            self._changed.wait_for(lambda: self._may_enter(visit))
            self._queue.remove(visit)
            self._inside.add(visit)

    def leave(self, visit: _Visit) -> None:
        """End the visit, waiting or inside, and let others in."""
        with self._lock:
            self._inside.discard(visit)
            self._queue = [other for other in self._queue if other is not visit]
            self._changed.notify_all()

    def _may_enter(self, visit: _Visit) -> bool:
        own = [other for other in self._inside if other.thread == visit.thread]
        if any(other.writes for other in own):
            return True
        if visit.writes:
            return not self._inside and self._queue[0] is visit
        # A thread that reads already, or works for one that does, would deadlock with a waiting writer.
        ahead = [] if own or is_one_of_many() else self._queue[: self._queue.index(visit)]
        return not any(other.writes for other in (*self._inside, *ahead))


_locks: WeakSet[ReadersWriterLock] = WeakSet()


def _after_fork() -> None:
    global _crew
    _crew, _local.busy = _Crew(_crew.threads), False
    single_threaded_blas._after_fork()
    for lock in _locks:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
