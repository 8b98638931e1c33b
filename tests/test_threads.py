"""The threads behind shards: errors, interrupts, turns, and the lock between readers and writers."""

import contextlib
import dis
import gc
import itertools
import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import nnlite as nn
from nnlite.backend import ReadersWriterLock, Turnstile, get_num_threads
from nnlite.backend.cpu import blas as blas_module
from nnlite.backend.cpu import threads as threads_module
from nnlite.backend.cpu.threads import map_shards

rng = np.random.default_rng(0)


def test_map_shards_runs_all_even_from_inside():
    for count in (0, 1, 7):
        done = []
        map_shards(done.append, count)
        assert sorted(done) == list(range(count))
    done = []
    map_shards(lambda i: map_shards(lambda j: done.append((i, j)), 3), 4)
    assert len(set(done)) == 12


def test_as_many_threads_work_as_were_asked_for():
    for threads in (1, 3, 2):
        nn.set_num_threads(threads)
        together = threading.Barrier(threads)
        map_shards(lambda i, together=together: together.wait(10), threads)  # breaks unless all work at once
        seen = set()
        map_shards(lambda i, seen=seen: seen.add(threading.get_ident()), 200)
        assert len(seen) <= threads and threading.get_ident() in seen


def test_helpers_go_on_after_an_error_and_keep_nothing():
    class Values(list):
        pass

    nn.set_num_threads(2)
    for _ in range(5):
        values, here, both = Values(range(8)), threading.get_ident(), threading.Barrier(2)
        alive = weakref.ref(values)

        def work(i, values=values, here=here, both=both):
            if i < 2:
                both.wait(10)
            if threading.get_ident() != here:
                raise KeyError(values[i])

        with pytest.raises(KeyError) as error:
            map_shards(work, len(values))
        del values, work, error
        map_shards(lambda i, both=both: both.wait(10), 2)  # the helper has moved on
        gc.collect()
        assert alive() is None


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_an_interrupt_waits_for_the_helpers():
    nn.set_num_threads(2)
    here, both, ended = threading.get_ident(), threading.Barrier(2), []

    def work(i):
        both.wait(10)
        if threading.get_ident() != here:
            time.sleep(0.3)
            ended.append(i)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            map_shards(work, 2)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(ended) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment_leave_a_model_that_goes_on():
    nn.set_num_threads(2)
    layers = nn.Conv2D(16, 3, padding=1), nn.BatchNorm(), nn.ReLU(), nn.Flatten(), nn.Dense(3)
    model = nn.Sequential(*layers, input_shape=(32, 32, 3))
    x, t = rng.standard_normal((64, 32, 32, 3)).astype(np.float32), rng.integers(0, 3, 64)
    assert min(len(run.cut(64, 4)) for run in model.plan.training) > 1
    start, criterion = model.snapshot(), nn.CrossEntropy()
    loss = model.loss_and_grad(x, t, criterion)
    grads = model.grads.copy()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for k in range(60):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-4 * (k + 1))
                for _ in range(20):
                    model.loss_and_grad(x, t, criterion)
                signal.setitimer(signal.ITIMER_REAL, 0)  # it came while Python could not raise it
            model.restore(start)
            assert model.loss_and_grad(x, t, criterion) == loss and np.array_equal(model.grads, grads)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_where_no_helper_can_start_the_caller_does_the_work(monkeypatch):
    nn.set_num_threads(2)
    monkeypatch.setattr(threads_module, "_crew", threads_module._Crew(2))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _fail)
        done = []
        map_shards(done.append, 5)
        assert done == [0, 1, 2, 3, 4]
    both = threading.Barrier(2)
    map_shards(lambda i: both.wait(10), 2)


def _fail(self):
    raise RuntimeError("no thread")


def test_work_that_comes_from_several_threads_at_once():
    nn.set_num_threads(2)
    counts = [0] * 6

    def caller(k):
        for _ in range(50):
            done = []
            map_shards(done.append, 4)
            counts[k] += sorted(done) == list(range(4))

    threads = [threading.Thread(target=caller, args=(k,)) for k in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert counts == [50] * len(counts)


class OpenMP:
    """A BLAS library that has a number of threads in each thread."""

    internal_api, threading_layer = "openblas", "openmp"

    def __init__(self):
        self._own = threading.local()

    @property
    def num_threads(self):
        return getattr(self._own, "threads", 4)

    def set_num_threads(self, threads):
        self._own.threads = threads


def test_helpers_limit_a_blas_that_counts_by_thread_where_the_caller_does(monkeypatch):
    library = OpenMP()
    monkeypatch.setattr(blas_module, "_find_libraries", lambda: [library])
    limit = blas_module.SingleThreadedBLAS()
    monkeypatch.setattr(threads_module, "single_threaded_blas", limit)
    nn.set_num_threads(2)
    together = threading.Barrier(2)

    def look():
        seen = []
        map_shards(lambda i: (together.wait(10), seen.append(library.num_threads)), 2)
        return seen

    with limit:
        assert look() == [1, 1]
        with limit:
            assert look() == [1, 1]
        assert library.num_threads == 1
    assert look() == [4, 4] and library.num_threads == 4


def test_turnstile_lets_through_in_order():
    turnstile, order = Turnstile(8), []

    def pass_through(i):
        with turnstile.turn(i):
            order.append(i)

    threads = [threading.Thread(target=pass_through, args=(i,)) for i in reversed(range(8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_writers_wait_for_readers():
    lock, events = ReadersWriterLock(), []

    def write():
        with lock.writing():
            events.append("written")

    with lock.reading(), lock.reading():
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.05)
        events.append("read")
    thread.join()
    assert events == ["read", "written"]


def test_inference_on_two_threads_does_not_keep_a_writer_out():
    lock, stop, written = ReadersWriterLock(), threading.Event(), []
    overlap = threading.Barrier(2)

    def read():
        while not stop.is_set():
            with lock.reading(), contextlib.suppress(threading.BrokenBarrierError):
                overlap.wait(0.01)  # one is always inside when the other leaves

    def write():
        for _ in range(20):
            with lock.writing():
                written.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writer = threading.Thread(target=write, daemon=True)
    for thread in (*readers, writer):
        thread.start()
    writer.join(20)
    stop.set()
    for thread in readers:
        thread.join(20)
    assert len(written) == 20


def test_writers_one_after_another_let_a_reader_in():
    lock, read = ReadersWriterLock(), threading.Event()

    def reader():
        with lock.reading():
            read.set()

    with lock.writing():
        thread = threading.Thread(target=reader)
        thread.start()
        while not lock._queue:
            time.sleep(0.001)
    for _ in range(3):
        with lock.writing():
            pass
    assert read.is_set()
    thread.join()


def test_who_is_inside_may_enter_again():
    lock, entered = ReadersWriterLock(), []

    def write():
        with lock.writing():
            entered.append("writer")

    with lock.reading():
        thread = threading.Thread(target=write)
        thread.start()
        while not lock._queue:
            time.sleep(0.001)
        with lock.reading():
            entered.append("reader")
    thread.join(10)
    with lock.writing(), lock.reading(), lock.writing():
        entered.append("writer")
    assert entered == ["reader", "writer", "writer"] and not lock._inside and not lock._queue


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_leaves_no_reader_of_another_thread():
    lock, leave, inside = ReadersWriterLock(), threading.Event(), threading.Event()

    def read():
        with lock.reading():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=read)
    thread.start()
    inside.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        with lock.writing():
            os._exit(0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


LOOKS = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD", "RESUME"}  # instructions at which Python looks for signals


def interrupt_at(place, work):
    """Do `work` and interrupt it where Python looks for signals for the `place`-th time; None if it ends before that."""
    count, last = itertools.count(), {}

    def look(frame, event, argument):
        if event == "opcode":
            before, last[frame] = last.get(frame, "RESUME"), dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before in LOOKS and next(count) == place:
                sys.settrace(None)
                raise KeyboardInterrupt
        return look

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.endswith(("/threads.py", "/blas.py")):
            return None
        frame.f_trace_opcodes = True
        return look

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt as error:
        return error  # with its traceback, which keeps all frames alive
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("writes", [False, True])
def test_an_interrupt_on_the_way_in_leaves_nothing_held(writes):
    lock, limit = ReadersWriterLock(), blas_module.SingleThreadedBLAS()
    with limit:
        pass
    inside = []

    def work():
        with limit, lock.writing() if writes else lock.reading():
            inside.append(1)

    interrupt_at(-1, work)  # from Python 3.12 on, the first call of a function only prepares that its instructions are traced
    inside.clear()
    for place in itertools.count():
        error = interrupt_at(place, work)
        if inside:  # this one came on the way out, or not at all
            break
        assert error is not None and not lock._inside and not lock._queue and not limit.is_on, place
    assert place > 20


def test_number_of_threads(monkeypatch):
    nn.set_num_threads(3)
    assert get_num_threads() == 3
    monkeypatch.setenv("NNLITE_NUM_THREADS", "5")
    assert threads_module._default_threads() == 5
    monkeypatch.setenv("NNLITE_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="NNLITE_NUM_THREADS"):
        threads_module._default_threads()
    monkeypatch.delenv("NNLITE_NUM_THREADS")
    for value, threads in (("1", 1), ("7,2", 7), ("", None), ("dynamic", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads_module._default_threads() == (threads or len(os.sched_getaffinity(0)))


def test_processes_share_the_cores_unless_a_number_was_given(monkeypatch):
    monkeypatch.setattr(threads_module, "_crew", threads_module._Crew())
    monkeypatch.setattr(threads_module, "usable_cores", lambda: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("NNLITE_NUM_THREADS", raising=False)
    assert get_num_threads() == 8
    for processes, threads in ((3, 2), (20, 1)):
        threads_module.share_cores(processes)
        assert get_num_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    threads_module.share_cores(2)
    assert get_num_threads() == 5
    nn.set_num_threads(7)
    threads_module.share_cores(2)
    assert get_num_threads() == 7
