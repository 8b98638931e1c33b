"""Sums in C against float64, on any shape and at every vector width; how exact they are: tests/test_sums.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite.backend import get_numpy_backend

DTYPES = st.sampled_from(["float32", "float64"])
SIZES = st.tuples(st.one_of(st.integers(0, 300), st.sampled_from([513, 4097])), st.integers(1, 140))


def drawn(shape, dtype, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) + 1).astype(dtype)


def wide(a):
    return a.astype("float64")


def assert_near(actual, terms, axis=0):
    """As near to the sum of these terms as their size allows."""
    eps = 4 * np.finfo(terms.dtype).eps if terms.dtype == "float32" else 1e-14
    assert actual.dtype == np.float64
    assert (abs(actual - wide(terms).sum(axis)) <= eps * abs(wide(terms)).sum(axis)).all()


@given(size=SIZES, dtype=DTYPES, displace=st.booleans())
def test_sums_of_columns(native, displaced, size, dtype, displace):
    a, b = drawn(size, dtype), drawn(size, dtype, 1)
    first, second = (displaced(a), displaced(b)) if displace else (a, b)
    assert_near(native.column_sums(first), a)
    exact = wide(a) * wide(b)
    np.testing.assert_allclose(
        native.column_products(first, second), exact.sum(0), atol=2e-6 * abs(exact).sum(0).max(initial=1e-9)
    )
    assert np.array_equal(native.column_sums(np.asfortranarray(a)), native.column_sums(a))  # any strides
    assert np.array_equal(native.column_sums(np.repeat(a, 2, axis=0)[::2]), native.column_sums(a))


@given(size=SIZES, dtype=DTYPES)
def test_a_column_has_the_bits_that_it_has_in_any_wide_matrix(native, size, dtype):
    a = drawn((size[0], size[1] + 16), dtype)
    sums = native.column_sums(a)
    assert np.array_equal(native.column_sums(a[:, :16]), sums[:16]) and np.array_equal(
        native.column_sums(a[:, -16:]), sums[-16:]
    )


@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40)), dtype=DTYPES)
def test_sums_over_pixels_and_means_of_rows(native, shape, dtype):
    a = drawn(shape, dtype)
    assert_near(native.pixel_sums(a), a, (1, 2))
    means = native.row_means(a)
    assert means.dtype == dtype and means.shape == (*shape[:-1], 1)
    np.testing.assert_allclose(means, wide(a).mean(-1, keepdims=True), rtol=1e-6, atol=1e-6)


@given(rows=st.integers(0, 60), n=st.integers(1, 20), columns=st.integers(1, 70), dtype=DTYPES,
       ids=st.sampled_from(["int64", "uint8"]), strided=st.booleans())  # fmt: skip
def test_sums_of_rows_by_id(native, displaced, rows, n, columns, dtype, ids, strided):
    """The same bits as NumPy's, which adds them in their order, too."""
    ids = np.random.default_rng(2).integers(0, n, rows).astype(ids)
    a, out, expected = drawn((rows, columns), dtype), np.empty((columns, n), dtype).T, np.empty((n, columns), dtype)
    get_numpy_backend().add_rows(ids, a, expected)
    sums = out if strided else out.copy()
    native.add_rows(displaced(ids), displaced(a), sums)
    assert np.array_equal(sums, expected)


def test_ids_outside_never_write_outside(native):
    """As of an array that was changed between forward and backward."""
    sums = np.empty((3, 2), "float32")
    native.add_rows(np.array([-1, 1, 3, 1 << 40]), np.ones((4, 2), "float32"), sums)
    assert np.array_equal(sums, [[0, 0], [1, 1], [0, 0]])


@given(size=st.tuples(st.integers(1, 700), st.integers(1, 70)), dtype=DTYPES, far=st.sampled_from([0, 1, 30, 1e4]))
def test_moments(native, displaced, size, dtype, far):
    a = drawn(size, dtype) + np.asarray(far, dtype)
    a[:, 0] = a[0, 0]
    mean, deviations = native.moments(displaced(a))
    np.testing.assert_allclose(mean, wide(a).mean(0), rtol=1e-6, atol=1e-6)
    exact = (wide(a) - wide(a)[0]).var(0) * len(a)
    np.testing.assert_allclose(deviations, exact, rtol=2e-6, atol=1e-30)
    assert mean[0] == a[0, 0] and deviations[0] == 0


def test_moments_where_the_guess_is_far_off(native):
    """The rows that the guess looks at are outliers."""
    a = drawn((4096, 20), "float32")
    a[::256] += 1e4
    mean, deviations = native.moments(a)
    np.testing.assert_allclose(mean, wide(a).mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviations, wide(a).var(0) * len(a), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(size=st.integers(1, 300), dtype=DTYPES, data=st.data())
def test_what_is_not_finite_is_seen(native, bad, size, dtype, data):
    v = drawn(size, dtype)
    v[0] = np.finfo(dtype).max  # its square is infinite
    assert native.all_finite(v) and np.isfinite(native.norm(v))
    v[data.draw(st.integers(0, size - 1))] = bad
    assert not native.all_finite(v) and not np.isfinite(native.norm(v)) and not np.isfinite(native.column_sums(v[:, None])[0])
    with np.errstate(invalid="ignore"):
        assert np.isnan(native.moments(v[:, None])[1][0])


def test_small_and_large_values(native):
    tiny = np.full(100, np.finfo("float32").smallest_subnormal)
    assert native.column_sums(tiny[:, None])[0] == 100 * float(tiny[0]) and native.all_finite(tiny)
    large = np.full(100, 1e30, "float32")
    np.testing.assert_allclose(native.norm(large), 1e31, rtol=1e-6)
    assert native.norm(np.zeros(5, "float32")) == 0 == native.norm(np.zeros(0, "float32"))


def test_other_types_are_left_to_numpy(native):
    integers = np.arange(60).reshape(20, 3)
    assert np.array_equal(native.column_sums(integers), integers.sum(0)) and native.all_finite(integers)
    mixed = native.column_products(integers.astype("float32"), integers.astype("float64"))
    assert np.array_equal(mixed, (integers**2).sum(0))


def test_the_same_bits_at_every_width(same_bits, native):
    def work():
        for dtype in ("float32", "float64"):
            for rows, columns in [(1, 1), (5, 3), (700, 1), (33, 15), (129, 16), (1000, 17), (300, 65), (40, 130)]:
                a, b = drawn((rows, columns), dtype), drawn((rows, columns), dtype, 1)
                yield from (native.column_sums(a), native.column_products(a, b), native.row_means(a), *native.moments(a))
                yield native.pixel_sums(a[None, :, None])

    assert same_bits(work, "samplenorm", "sums")
