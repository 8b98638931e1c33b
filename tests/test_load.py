"""Many threads, many layers, many samples, other processes; and the same answers."""

import copy
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import fuzz
import numpy as np
import pytest
import soak
from threadpoolctl import threadpool_info

import nnlite as nn


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_sixteen_threads_get_the_answers_of_one():
    model, rng = soak.make_model(), np.random.default_rng(0)
    inputs = [rng.standard_normal((1 + i, 16, 16, 3)).astype("float32") for i in range(16)]
    expected = [model(x) for x in inputs]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            answers = list(pool.map(model, inputs))
            assert all(np.array_equal(a, b) for a, b in zip(answers, expected, strict=True))


def test_inference_beside_training_sees_whole_parameters():
    """Every answer is that of the parameters before or after some step, never of a mixture."""
    model = nn.Sequential(nn.Dense(64, init="ones"), nn.Dense(1, init="ones"), input_shape=(64,))
    x, answers, done = np.ones((3, 64), "float32"), set(), threading.Event()

    def ask():
        while not done.is_set():
            answers.update(model(x).ravel().tolist())

    def scale(factor):
        with model.updating():
            for part in np.array_split(model.params, 50):
                part *= factor

    model.params[...] = 1.0
    asker = threading.Thread(target=ask)
    asker.start()
    allowed, value = set(), 1.0
    for _ in range(200):
        allowed.add(np.float32(64 * value * 64 * value + 64 * value * value + value).item())
        value = 2.0 if value == 1.0 else 1.0
        scale(2.0 if value == 2.0 else 0.5)
    done.set()
    asker.join()
    assert answers <= allowed


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_give_the_same_bits(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    model = soak.make_model()
    x = np.random.default_rng(0).standard_normal((40, 16, 16, 3)).astype("float32")
    expected = answer((model, x))  # on the helpers, before the fork
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads
        with multiprocessing.get_context(method).Pool(2) as pool:
            for theirs in pool.map(answer, [(model, x)] * 4):
                assert all(np.array_equal(a, b) for a, b in zip(theirs, expected, strict=True))


def answer(given):
    model, x = copy.deepcopy(given[0]), given[1]  # a pass moves the running statistics
    loss = model.loss_and_grad(x, np.arange(len(x)) % 10, nn.CrossEntropy(), pass_id=1)
    return [np.float64(loss), model.grads.copy(), model(x)]


def test_five_hundred_layers():
    layers = [layer for _ in range(249) for layer in (nn.Dense(8), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Dense(8), nn.Dense(3), input_shape=(8,))
    loss = model.loss_and_grad(np.ones((5, 8)), np.zeros(5, int), nn.CrossEntropy())
    assert len(model) == 500 and np.isfinite(loss)


def test_a_batch_of_65536():
    model = nn.Sequential(nn.Conv2D(4, 3), nn.BatchNorm(), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(3), input_shape=(6, 6, 1))
    x, t = np.random.default_rng(0).standard_normal((65_536, 6, 6, 1)).astype("float32"), np.arange(65_536) % 3
    assert np.isfinite(model.loss_and_grad(x, t, nn.CrossEntropy()))
    assert model(x).shape == (65_536, 3)


def test_blas_has_its_threads_back_after_any_mixture_of_calls_and_errors():
    before, model = blas_threads(), soak.make_model()
    x, t = np.ones((9, 16, 16, 3), "float32"), np.zeros(9, int)

    def call(i):
        if i % 3 == 0:
            with pytest.raises(nn.ShapeError):
                model(x[:, :5])
        elif i % 3 == 1:
            model(x)
        else:
            with pytest.raises(nn.DataError):
                model.loss_and_grad(x, t[:2], nn.CrossEntropy())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(60)))
    model.loss_and_grad(x, t, nn.CrossEntropy())
    assert blas_threads() == before


def test_a_short_soak_is_flat():
    result = soak.run(200)
    assert result["steps"] >= 200 and result["asked meanwhile"] > 0


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_some_damaged_files(tmp_path, reader):
    counts = fuzz.fuzz_reader(fuzz.Files(tmp_path), reader, 60)
    assert counts["tried"] >= 50 and counts["refused"] > 0
