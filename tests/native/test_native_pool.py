"""Pooling in C against NumPy's, for any window, on any shape and at every vector width."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import Memory, Window, get_numpy_backend

DTYPES = st.sampled_from(["float32", "float64"])
pairs = st.tuples(st.integers(1, 5), st.integers(1, 5))
padding = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def windows(draw):
    """Any window that meets the image everywhere."""
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 3, 7, 16, 17, 33, 40])))
    try:
        window = Window.of(shape, draw(pairs), draw(pairs), (draw(padding), draw(padding)), draw(pairs), draw(st.booleans()))
    except nn.ShapeError:
        assume(False)
    assume(not any(0 in window.taps_met(axis, with_padding=False) for axis in (0, 1)))
    return window


class Kept(Memory):
    """Memory of a shard that goes backward."""

    needs_backward = True


def drawn(shape, dtype, seed=0):
    """Few values, so that many are equal."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def max_pooled(backend, window, a, delta):
    plan, memory = backend.max_pool_plan(window), Kept(backend)
    return plan.forward(a, memory, None).copy(), plan.backward(delta, memory, None).copy()


def average_pooled(backend, window, a, delta, count_padding=True):
    plan = backend.average_pool_plan(window, count_padding)
    return plan.forward(a, None).copy(), plan.backward(delta, None).copy()


def batch(window, n, dtype):
    return drawn((n, *window.in_shape), dtype), drawn((n, *window.out_size, window.in_shape[2]), dtype, 1)


@settings(max_examples=80)
@given(window=windows(), n=st.integers(1, 3), dtype=DTYPES, displace=st.booleans())
def test_the_largest(native, displaced, window, n, dtype, displace):
    a, delta = batch(window, n, dtype)
    expected = max_pooled(get_numpy_backend(), window, a, delta)
    actual = max_pooled(native, window, *map(displaced, (a, delta)) if displace else (a, delta))
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == dtype and np.array_equal(x, y)
    assert np.array_equal(native.max_pool_plan(window).forward(a, Memory(native), None), expected[0])


@settings(max_examples=80)
@given(window=windows(), n=st.integers(1, 3), dtype=DTYPES, count_padding=st.booleans())
def test_means(native, window, n, dtype, count_padding):
    a, delta = batch(window, n, dtype)
    expected = average_pooled(get_numpy_backend(), window, a, delta, count_padding)
    for x, y in zip(average_pooled(native, window, a, delta, count_padding), expected, strict=True):
        assert x.dtype == dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("kernel", [(40, 40), (1, 500), (500, 1)], ids=str)
def test_large_windows_lose_no_digits(native, kernel):
    window = Window.of((kernel[0] + 30, kernel[1] + 30, 2), kernel, 1)
    ones = np.full((1, *window.in_shape), 0.1, "float32"), np.full((1, *window.out_size, 2), 0.1, "float32")
    exact = average_pooled(native, window, *(x.astype("float64") for x in ones))
    for x, y in zip(average_pooled(native, window, *ones), exact, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)


@given(window=windows(), dtype=DTYPES, bad=st.sampled_from([np.nan, np.inf, -np.inf]), seed=st.integers(0, 99))
def test_values_that_are_not_finite(native, window, dtype, bad, seed):
    """The first NaN of a window wins; minus infinity wins where nothing else is."""
    a, delta = batch(window, 2, dtype)
    a[np.random.default_rng(seed).random(a.shape) < 0.3] = bad
    delta[...] = np.arange(delta.size).reshape(delta.shape) + 1
    y, da = max_pooled(native, window, a, delta)
    expected = np.zeros_like(a)
    (top, _), (left, _) = window.padding
    (kh, kw), (sh, sw), (dh, dw), (h, w, _) = window.kernel, window.stride, window.dilation, window.in_shape
    for n, i, j, c in np.ndindex(y.shape):
        places = [(i * sh - top + p * dh, j * sw - left + q * dw) for p, q in itertools.product(range(kh), range(kw))]
        values = [(a[n, p, q, c], p, q) for p, q in places if 0 <= p < h and 0 <= q < w]
        best = values[0]
        for value in values[1:]:
            if value[0] > best[0] or (np.isnan(value[0]) and not np.isnan(best[0])):
                best = value
        assert np.array_equal(y[n, i, j, c], best[0], equal_nan=True)
        expected[n, best[1], best[2], c] += delta[n, i, j, c]
    assert np.array_equal(da, expected)


def test_targets_and_inputs_of_any_strides(native):
    window = Window.of((6, 7, 3), 3, 2, 1)
    a, delta = batch(window, 4, "float32")
    expected = [*max_pooled(native, window, a, delta), *average_pooled(native, window, a, delta)]
    others = np.asfortranarray(a), np.repeat(delta, 2, axis=0)[::2]
    for x, y in zip([*max_pooled(native, window, *others), *average_pooled(native, window, *others)], expected, strict=True):
        assert np.array_equal(x, y)
    out = np.empty(expected[0].shape[::-1], "float32").T
    assert native.max_pool_plan(window).forward(a, Memory(native), out) is out and np.array_equal(out, expected[0])


def test_images_of_another_shape_are_refused(native):
    window = Window.of((6, 7, 3), 2, 2)
    with pytest.raises(nn.ShapeError, match=r"expects samples of shape \(6, 7, 3\), got \(6, 7, 4\)"):
        native.max_pool_plan(window).forward(np.zeros((1, 6, 7, 4), "float32"), Memory(native), None)


def test_nothing_is_written_beside_a_shard(native):
    """Vectors reach over into the next pixel, but not into the next shard."""
    window = Window.of((4, 4, 3), 2, 2)
    a, delta = batch(window, 2, "float32")
    y, da = np.full((5, 2, 2, 3), 7, "float32"), np.full((5, 4, 4, 3), 7, "float32")
    for pool in (native.max_pool_plan(window), native.average_pool_plan(window)):
        memory = [Kept(native)] if hasattr(pool, "all_taps") else []
        pool.forward(a, *memory, y[1:3])
        pool.backward(delta, *memory, da[1:3])
        for whole in (y, da):
            assert (whole[[0, 3, 4]] == 7).all() and (whole[1:3] != 7).all()


def test_the_same_bits_at_every_width(same_bits, native):
    def work():
        for dtype, channels in itertools.product(("float32", "float64"), (1, 5, 16, 35)):
            for window in (Window.of((9, 8, channels), 3, 2, 1, 2), Window.of((8, 9, channels), (8, 9), (8, 9))):
                a, delta = (np.random.default_rng(0).standard_normal(x.shape).astype(dtype) for x in batch(window, 2, dtype))
                yield from (*max_pooled(native, window, a, delta), *average_pooled(native, window, a, delta))

    assert same_bits(work, "pool")
