"""exp, log, tanh and erf in C: errors in units of the last place, special values, bits at every width of a vector."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite.backend import get_numpy_backend

MOST = 2.0  # units in the last place
N = 40_000
DTYPES = ["float32", "float64"]
FUNCTIONS = ["exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf"]
long_erf = np.frompyfunc(math.erf, 1, 1)


def true_values(name, x):
    """In a longer format: float64 for float32, the platform's longest for float64; erf in float64."""
    wide = x.astype("float64" if x.dtype == np.float32 or name == "erf" else np.longdouble)
    with np.errstate(all="ignore"):
        return np.asarray(long_erf(wide), "float64") if name == "erf" else getattr(get_numpy_backend(), name)(wide)


def samples(name, dtype):
    rng, wide = np.random.default_rng(0), dtype == "float64"
    small = 10.0 ** rng.uniform(-300 if wide else -36, 0, N)
    if name == "log":
        large = 10.0 ** rng.uniform(-320 if wide else -44, 308 if wide else 38, N)
        return np.concatenate([large, rng.uniform(0.5, 2, N), 1 + 10.0 ** rng.uniform(-16, 0, N)]).astype(dtype)
    parts = [rng.uniform(-1, 1, N), rng.uniform(-12, 12, N), small, -small]
    if name in ("exp", "expm1", "sigmoid"):
        parts.append(rng.uniform(-746, 710, N) if wide else rng.uniform(-104, 89, N))
    x = np.concatenate(parts)
    return x[x > -1].astype(dtype) if name == "log1p" else x.astype(dtype)


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no longer format to compare float64 with")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_below_two_units_in_the_last_place(native, name, dtype):
    x = samples(name, dtype)
    y, true = getattr(native, name)(x), true_values(name, x)
    with np.errstate(all="ignore"):
        rounded = true.astype(dtype)
        unit = np.maximum(np.spacing(abs(rounded)), np.finfo(dtype).smallest_subnormal)
        error = abs(y.astype(np.longdouble) - true) / unit
    finite = np.isfinite(rounded)
    assert np.array_equal(y[~finite], rounded[~finite], equal_nan=True)
    assert error[finite].max() < MOST, (x[finite][error[finite].argmax()], error[finite].max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(native, name, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, -1, np.finfo(dtype).max, -np.finfo(dtype).max], dtype)
    with np.errstate(all="ignore"):
        y, true = getattr(native, name)(x), true_values(name, x).astype(dtype)
    np.testing.assert_allclose(y, true, rtol=4 * np.finfo(dtype).eps)
    assert np.array_equal(np.signbit(y[3:5]), np.signbit(true[3:5]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_are_monotonous_where_pieces_meet(native, dtype):
    for name, place in (("tanh", 0.625), ("erf", 1.0), ("exp", math.log(2) / 2), ("log", math.sqrt(0.5))):
        x = np.sort(np.unique((place * (1 + np.arange(-500, 501) * np.finfo(dtype).eps)).astype(dtype)))
        steps = np.diff(getattr(native, name)(x))
        assert steps.min() >= -2 * np.spacing(np.asarray(1, dtype)), name


def test_the_same_bits_at_every_width(same_bits):
    from nnlite.backend.native.backend import NativeBackend

    def work():
        native, rng = NativeBackend(), np.random.default_rng(0)
        for dtype in DTYPES:
            x = rng.uniform(-9, 9, 1003).astype(dtype)
            yield from (native.exp(x), native.expm1(x), native.log(abs(x)), native.log1p(abs(x)), native.tanh(x), native.erf(x))
            yield native.sigmoid(x)
            yield from native.cross_entropy_of_labels(x.reshape(17, 59), np.arange(17))
            yield native.relu(x, None)

    assert same_bits(lambda: list(work()), "pointwise", "loss")


@given(n=st.integers(0, 70), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_sweeps_agree_with_numpys(native, displaced, n, dtype, seed):
    rng, plain = np.random.default_rng(seed), get_numpy_backend()
    a, y = (rng.standard_normal(n).astype(dtype) for _ in range(2))
    mask = (rng.random(n) > 0.5).astype(dtype) * dtype_of(dtype)(2)
    a[rng.random(n) < 0.2] = rng.choice([np.nan, np.inf, -np.inf, 1e-40])
    with np.errstate(all="ignore"):
        for ours, theirs in (
            (native.relu(displaced(a), None), plain.relu(a, None)),
            (native.relu_delta(displaced(a), displaced(y), None), plain.relu_delta(a, y, None)),
            (native.drop(displaced(a), displaced(mask), None), plain.drop(a, mask, None)),
        ):
            assert np.array_equal(ours, theirs, equal_nan=True)


def dtype_of(name):
    return np.dtype(name).type


@given(m=st.integers(1, 9), n=st.integers(1, 40), relu=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_bias(native, m, n, relu, dtype):
    rng = np.random.default_rng(0)
    z, b = rng.standard_normal((m, n)).astype(dtype), rng.standard_normal(n).astype(dtype)
    expected = np.maximum(z + b, 0) if relu else z + b
    native.add_bias(z, b, relu)
    assert np.array_equal(z, expected)


@given(n=st.integers(1, 40), classes=st.integers(1, 40), dtype=st.sampled_from(DTYPES), scale=st.sampled_from([1, 30, 1000]))
def test_cross_entropy_of_labels(native, n, classes, dtype, scale):
    rng = np.random.default_rng(n)
    z, t = (scale * rng.standard_normal((n, classes))).astype(dtype), rng.integers(0, classes, n)
    losses, delta = native.cross_entropy_of_labels(z, t)
    expected = get_numpy_backend().cross_entropy_of_labels(z, t)
    tolerance = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(losses, expected[0], rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_allclose(delta, expected[1], rtol=0, atol=tolerance)


def test_labels_outside_never_write_outside(native):
    losses, delta = native.cross_entropy_of_labels(np.zeros((3, 4), "f"), np.array([-1, 4, 1 << 40]))
    assert np.isnan(losses).all() and np.array_equal(delta, np.full((3, 4), 0.25, "f"))


def test_a_row_that_is_not_finite(native):
    z = np.zeros((4, 5), "f")
    z[0, 1], z[1, 2], z[2, 3] = np.nan, np.inf, -np.inf
    losses, _ = native.cross_entropy_of_labels(z, np.array([0, 0, 0, 0]))
    assert np.isnan(losses[:2]).all() and np.isfinite(losses[2:]).all()
