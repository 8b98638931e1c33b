"""Functions, random values and data that are the same bits on every processor."""

import hashlib
import math
import os
import subprocess
import sys
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend.exact import cos_pi, power, standard_normal
from nnlite.backend.linear import eigenvectors, orthonormal, product

ROOT = Path(__file__).resolve().parent.parent
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def ulps(value, exact):
    return abs(Decimal(value) - exact) / Decimal(math.ulp(float(exact)))


def cosine(x):
    """cos(pi x) with 60 digits."""
    square, term, total = (PI * Decimal(x)) ** 2, Decimal(1), Decimal(1)
    for k in range(1, 100, 2):
        term *= -square / (k * (k + 1))
        total += term
    return total


@example(x=0.5)
@example(x=0.24999)
@example(x=0.25001)
@given(x=st.one_of(st.floats(0, 1), st.floats(0.49, 0.51), st.floats(0, 4)))
def test_cosine(x):
    with localcontext() as context:
        context.prec = 60
        assert 2 * x % 2 == 1 or ulps(cos_pi(x), cosine(x)) <= 2
    assert cos_pi(x) == pytest.approx(math.cos(math.pi * x), abs=1e-12)


def test_cosine_is_exact_where_it_is_known():
    assert [cos_pi(x) for x in (0, 0.5, 1, 1.5, 2, 3)] == [1, 0, -1, 0, 1, -1]


@given(base=st.floats(1e-6, 10), exponent=st.one_of(st.floats(0, 200), st.integers(0, 200)))
def test_power(base, exponent):
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(base) ** Decimal(exponent)
        assert exact < Decimal("1e-307") or ulps(power(base, exponent), exact) <= 1


def test_power_at_the_ends():
    assert [power(0, 0), power(0, 2), power(1, 1e9), power(0.5, 1e9), power(np.float32(0.5), np.int64(3))] == [
        1,
        0,
        1,
        0,
        0.125,
    ]


def test_schedules_have_their_old_values():
    for step in range(120):
        assert nn.schedules.cosine(0.3, 97, final=0.01)(step) == pytest.approx(
            0.01 + 0.29 * (1 + math.cos(math.pi * min(step / 97, 1))) / 2, rel=1e-12
        )
        assert nn.schedules.exponential(0.3, 0.97, every=7)(step) == pytest.approx(0.3 * 0.97 ** (step / 7), rel=1e-12)
        assert nn.schedules.step(0.3, 7, factor=0.3)(step) == pytest.approx(0.3 * 0.3 ** (step // 7), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_normal_values_are_those_of_numpy(dtype):
    """To the last digits: its tables are rounded otherwise. The generator is left in the same state."""
    for seed, shape in ((0, ()), (1, (0,)), (2, (7,)), (3, (300, 1000)), *((seed, (29,)) for seed in range(4, 200))):
        ours, numpy_s = np.random.default_rng(seed), np.random.default_rng(seed)
        values, expected = standard_normal(ours, shape, dtype), numpy_s.standard_normal(shape, dtype)
        assert values.dtype == dtype and values.shape == shape
        np.testing.assert_allclose(values, expected, atol=32 * np.finfo(dtype).eps, rtol=0)
        assert ours.bit_generator.state == numpy_s.bit_generator.state, "the next values follow"
    assert abs(values).max() > 2


def test_normal_values_beyond_the_base_are_those_of_numpy():
    """They are one in four thousand."""
    values = standard_normal(np.random.default_rng(5), (200_000,))
    far = abs(values) > 3.6541528853610088
    assert 20 < far.sum() < 120 and (values[far] > 0).any() and (values[far] < 0).any()
    np.testing.assert_allclose(values, np.random.default_rng(5).standard_normal(200_000), atol=1e-14, rtol=0)


@given(rows=st.integers(0, 40), terms=st.integers(0, 40), columns=st.integers(1, 40), scale=st.sampled_from([1e-200, 1, 1e150]))
def test_product(rows, terms, columns, scale):
    rng = np.random.default_rng(rows)
    a, b = rng.standard_normal((rows, terms)) * scale, rng.standard_normal((terms, columns))
    np.testing.assert_allclose(product(a, b), a @ b, atol=1e-14 * max(1, terms) * scale, rtol=0)


def test_product_of_many_terms():
    """More than a sum of slices may have."""
    a = np.full((1, 20_000), 1 / 3)
    assert product(a, a.T)[0, 0] == pytest.approx(20_000 / 9, rel=1e-15)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (150, 150), (70, 200)])
def test_orthonormal_rows(rows, columns):
    a = np.random.default_rng(rows).standard_normal((rows, columns))
    q, r = np.linalg.qr(a.T)
    np.testing.assert_allclose(orthonormal(a), (q * np.sign(np.diag(r))).T, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 27])
def test_eigenvectors(n):
    a = np.random.default_rng(n).standard_normal((n, 2 * n))
    symmetric = a @ a.T
    values, vectors = eigenvectors(symmetric)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(symmetric)[::-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(vectors.T * values @ vectors, symmetric, atol=1e-11)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(n), atol=1e-13)


def arrays():
    """What a seed must give everywhere."""
    for name in ("normal", "uniform"):
        for law in ("he", "glorot", "lecun"):
            yield getattr(nn.init, f"{law}_{name}")((64, 3, 3, 20), np.random.default_rng(0))
    schedules = nn.schedules.cosine(0.3, 97), nn.schedules.exponential(0.3, 0.97, every=7), nn.schedules.step(0.3, 7)
    yield np.array([schedule(step) for schedule in schedules for step in range(100)])
    images = nn.data.shapes(200).train.images
    yield images
    normal = standard_normal(np.random.default_rng(0), (40, 7, 333), "float32")
    for sums in (normal, normal.T, normal[:, :, ::2]):
        yield from (sums.sum(axis=axis) for axis in (None, 0, 1, 2, (0, 1), (1, 2)))  # nnlite leaves these to NumPy
    yield scores(*normal[:, 0, :6].reshape(2, 20, 6))
    yield nn.init.orthogonal((100, 7, 20), np.random.default_rng(0))
    yield nn.init.whitening(images / 256)((24, 2, 2, 3))


def scores(z, t):
    metrics = nn.metrics.RMSE(), nn.metrics.R2(), nn.metrics.ROCAUC(multilabel=True)
    for metric, target in zip(metrics, (t, t, (t > 0).astype(int)), strict=True):
        metric.update(z, target, np.arange(20) / 3)
    return np.array([metric.result() for metric in metrics])


def digest():
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays())).hexdigest()[:16]


GOLDEN = "f2c0935720bb7ebf"


def test_a_seed_gives_the_same_values_everywhere():
    """This hash holds for all processors; who changes a function in `backend/exact.py` or `linear.py` changes it."""
    assert digest() == GOLDEN


def test_a_seed_gives_the_same_values_without_the_newest_instructions():
    """In NumPy and in its BLAS."""
    known = np._core._multiarray_umath
    disabled = [name for name in known.__cpu_dispatch__ if known.__cpu_features__[name]]
    run = [sys.executable, "-c", "from tests.test_exact import digest; print(digest())"]
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(disabled), "OPENBLAS_CORETYPE": "Prescott"}
    result = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert result.stdout.strip() == GOLDEN
