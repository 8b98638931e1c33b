"""Threads that wait awake for blocks of a kernel: the same bits with any number of them, and nobody waits for ever."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend.cpu.threads import map_shards
from nnlite.backend.native import loader, operations
from nnlite.backend.native.team import helpers

DTYPES = ["float32", "float64"]


def factors(m, k, n, dtype="float32", transposed=False):
    rng = np.random.default_rng(0)
    b = rng.standard_normal((n, k)).astype(dtype).T if transposed else rng.standard_normal((k, n)).astype(dtype)
    return rng.standard_normal((m, k)).astype(dtype), b, rng.standard_normal(n).astype(dtype)


def with_threads(threads, compute):
    nn.set_num_threads(threads)
    return compute()


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(30, 90), st.integers(250, 400), st.sampled_from([256, 300, 385, 512]), st.booleans())
def test_products_of_any_number_of_threads(native, dtype, m, k, n, transposed):
    a, b, bias = factors(m, k, n, dtype, transposed)
    results = [with_threads(threads, lambda: native.biased_product(a, b, bias, None, True)) for threads in (1, 2, 3, 4)]
    np.testing.assert_allclose(results[0], np.maximum(a @ b + bias, 0), rtol=1e-4, atol=1e-3)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [32_768, 49_153, 300_001])
def test_updates_of_any_number_of_threads(native, dtype, n):
    vectors = [np.random.default_rng(i).standard_normal(n).astype(dtype) ** 2 for i in range(4)]

    def update(p, g, m, v):
        native.adam(p, g, m, v, (0.9, 0.99), 1e-8, 0.01, 0.999)
        native.rmsprop(p, g, v, 0.9, 1e-8, 0.01)
        native.sgd(p, g, m, 0.1, 0.9, True)
        return p, g, m, v

    results = [with_threads(threads, lambda: update(*(v.copy() for v in vectors))) for threads in (1, 2, 3)]
    pieces = [update(*(v[at : at + 999].copy() for v in vectors)) for at in range(0, n, 999)]
    results.append([np.concatenate(parts) for parts in zip(*pieces, strict=True)])
    assert all(np.array_equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_c_and_python_agree_on_the_memory_that_a_small_product_has():
    found = re.search(r"#define OWN (\d+)", (loader.FOLDER / "product.c").read_text())
    assert found and int(found[1]) == operations._OWN_ROOM


def test_calls_of_several_threads_at_once(native):
    """One of them has the team, the others compute alone; a helper that has to let others go first is waited for."""
    nn.set_num_threads(4)
    a, b, _ = factors(64, 300, 512)
    expected, wrong = native.product(a, b, None), list[int]()

    def work(i):
        for _ in range(200):
            out = np.full_like(expected, np.nan)  # not what an earlier call left
            if not np.array_equal(native.product(a, b, out), expected):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_helpers_come_when_shards_call_them_and_leave_when_nobody_does(native):
    nn.set_num_threads(2)
    a, b, _ = factors(64, 300, 512)
    expected = native.product(a, b, None)
    for _ in range(50):
        assert np.array_equal(native.product(a, b, None), expected)
        both = threading.Barrier(2)
        map_shards(lambda i, both=both: both.wait(10), 2)  # breaks unless the helper comes
    native.product(a, b, None)
    end = time.monotonic() + 10
    while helpers.awake():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_has_helpers_of_its_own(native):
    nn.set_num_threads(2)
    a, b, _ = factors(64, 300, 512)
    expected = native.product(a, b, None)  # the helper is awake
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if all(np.array_equal(native.product(a, b, None), expected) for _ in range(20)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_ends_while_helpers_are_awake():
    lines = (
        "import numpy as np, nnlite as nn",
        "nn.set_num_threads(3)",
        "model = nn.Sequential(nn.Dense(512), input_shape=(300,))",
    )
    code = "\n".join((*lines, "model(np.ones((64, 300)))"))
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
