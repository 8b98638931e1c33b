"""Metrics of real outputs agree with scikit-learn, over batches of any cut."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from test_metrics import stream

import nnlite as nn

FIGURES = (
    (nn.metrics.MAE, sk.mean_absolute_error),
    (nn.metrics.RMSE, sk.root_mean_squared_error),
    (nn.metrics.R2, sk.r2_score),
)


@given(
    seed=st.integers(0, 10_000), n=st.integers(2, 30), outputs=st.sampled_from([(), (1,), (3,)]), size=st.integers(1, 10),
    spread=st.sampled_from([0, 1e-6, 1, 1e3]), mean=st.sampled_from([0, 0.1, 1e4]),
)  # fmt: skip
def test_as_scikit_learn(seed, n, outputs, size, spread, mean):
    """R2 of equal targets, whose variance is zero, too; the mean may be far from zero."""
    rng = np.random.default_rng(seed)
    t = mean + spread * rng.standard_normal((n, *outputs))
    z, w = t + rng.integers(0, 2) * rng.standard_normal(t.shape), rng.uniform(0.1, 2, n)
    for mine, theirs in FIGURES:
        for weight in (None, w):
            expected = theirs(t, z, sample_weight=weight)
            if mine is nn.metrics.R2 and spread == 0:
                expected = float((z == t).all())  # scikit-learn's own mean of equal targets need not be exact
            assert stream(mine(), z, t, size, weight) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_flat_targets_of_a_column_and_integers():
    z, t = np.array([[1.0], [2.0], [4.0]], "float32"), np.array([1, 3, 3], "uint8")
    for mine, theirs in FIGURES:
        assert stream(mine(), z, t, 2) == pytest.approx(theirs(t, z[:, 0]))


def test_a_million_values_lose_nothing():
    rng = np.random.default_rng(0)
    t = (1e3 + rng.standard_normal(10**6)).astype("float32")
    z = t + rng.standard_normal(10**6).astype("float32")
    for mine, theirs in FIGURES:
        assert stream(mine(), z, t, 1024) == pytest.approx(theirs(t.astype(float), z.astype(float)), rel=1e-9)


def test_r2_of_equal_targets():
    """The sum of 0.1 three times is not 0.3: their variance would not be zero."""
    t = np.full(9, 0.1)
    for z, r2 in ((t, 1.0), (t + 1e-9, 0.0)):
        assert stream(nn.metrics.R2(), z, t, 3) == stream(nn.metrics.R2(), z, t, 7, np.linspace(0.1, 1, 9)) == r2


def test_r2_of_one_sample_does_not_exist():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(stream(nn.metrics.R2(), np.ones(1), np.zeros(1), 1))
        assert math.isnan(stream(nn.metrics.R2(), np.ones(3), np.arange(3), 2, np.array([0.0, 1.0, 0.0])))


def test_another_metric_goes_on_from_the_state():
    z, t = np.arange(8.0), np.arange(8.0) ** 2
    for mine, theirs in FIGURES:
        first, second = mine(), mine()
        first.update(z[:3], t[:3])
        second.load_state(first.state())
        second.update(z[3:], t[3:])
        assert second.result() == pytest.approx(theirs(t, z))


def test_bad_input():
    for mine, _ in FIGURES:
        for z, t in ((np.ones((3, 2)), np.ones(3)), (np.ones((3, 2)), np.ones((2, 2))), (np.ones(3), np.ones((3, 2)))):
            with pytest.raises(nn.DataError):
                mine().update(z, t)
        with pytest.raises(nn.DataError, match="no sample"):
            mine().result()
        mine().update(np.ones((3, 2)), np.array([[1, np.nan], [1, 2], [3, 4]]), np.array([0, 1, 1]))
        assert np.isfinite(stream(mine(), np.ones(3), np.array([np.nan, 1, 2]), 1, np.array([0, 1, 1])))


def test_of_a_fit_the_history_has_them():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 3)).astype("float32")
    model = nn.Sequential(nn.Dense(1), input_shape=(3,))
    trainer = nn.Trainer(model, nn.MSE(), nn.Adam(0.1), metrics=[mine() for mine, _ in FIGURES])
    history = trainer.fit((x, x.sum(axis=1)), epochs=20, validation=(x, x.sum(axis=1)), progress=False)
    assert history["val_r2"][-1] > 0.9 > history["val_r2"][0]
    for name, (_, theirs) in zip(("mae", "rmse", "r2"), FIGURES, strict=True):
        assert history[f"val_{name}"][-1] == pytest.approx(theirs(x.sum(axis=1), model(x)[:, 0]))
        assert trainer.greater_is_better(f"val_{name}") is (name == "r2")
