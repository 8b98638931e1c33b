"""Numbers of all sizes: no overflow, no NaN, and what float64 gives."""

import warnings

import numpy as np
import pytest
from cases import ACTIVATIONS, CASES, OF_REALS
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

SIZES = [0.0, 1e-38, 1e-20, 1e-4, 1.0, 1e4]


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("size", [*SIZES, 1e30])
def test_cross_entropy(size):
    z = np.array([[1, -1, 0.5], [-1, 1, 0.25], [0, 0, 0]], "float32") * np.float32(size)
    t = np.array([1, 1, 2])
    loss, delta = nn.CrossEntropy(label_smoothing=0.1)(z, t)
    expected, expected_delta = nn.CrossEntropy(label_smoothing=0.1)(z.astype("float64"), t)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(delta, expected_delta, atol=1e-6)
    assert np.isfinite(nn.softmax(z)).all()


@pytest.mark.parametrize("z", [1e4, -1e4, 88.0, -104.0, 0.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_binary_cross_entropy(z, t):
    a, target = np.array([[z]], "float32"), np.array([[t]], "float32")
    loss, delta = nn.BinaryCrossEntropy()(a, target)
    assert loss == pytest.approx(max(z, 0) - z * t + np.log1p(np.exp(-abs(z))), rel=1e-6)
    assert delta.item() == pytest.approx((1.0 if z > 50 else 0.0 if z < -50 else 0.5) - t, abs=1e-6)


@pytest.mark.parametrize("layer", [*(row.layer for row in ACTIVATIONS), nn.Softmax()], ids=repr)
@pytest.mark.parametrize("size", [*SIZES, 1e15, 1e30])
def test_activations_of_huge_and_tiny_inputs(layer, size):
    a = np.array([[-1.0, 1.0, -0.5, 0.25]]) * size
    results = []
    for dtype in ("float32", "float64"):
        model = nn.Sequential(type(layer)(**layer.config()), input_shape=(4,), dtype=dtype)
        with np.errstate(under="ignore"):
            y = model.forward(a, training=True)
            results.append((y.copy(), model.backward(np.ones_like(y)).copy()))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: repr(row.layer))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_of_infinite_inputs_are_their_limits(row, dtype):
    """0 times infinity is NaN: nothing is multiplied by zero that may be infinite."""
    layer = row.layer
    model = nn.Sequential(type(layer)(**layer.config()), input_shape=(3,), dtype=dtype)
    a = np.array([[-np.inf, np.inf, 1.0]], dtype)
    y, alone = model.forward(a, training=True).copy(), model(a[:, [2, 2, 2]])
    assert tuple(y[0, :2]) == row.limits and y[0, 2] == alone[0, 0] and np.array_equal(model(a), y)
    slopes = model.backward(np.ones_like(y))[0, :2]
    slope = getattr(layer, "slope", 0.0)
    assert slopes == pytest.approx([slope, 1.0] if np.isinf(y[0, 1]) else [0.0, 0.0], abs=1e-12)


def test_an_infinite_delta_stays_at_its_value():
    model = nn.Sequential(nn.LeakyReLU(0.0), input_shape=(3,))
    model.forward(np.array([[-1.0, 1.0, 2.0]]), training=True)
    assert model.backward(np.array([[np.inf, np.inf, 1.0]])).tolist() == [[0.0, np.inf, 1.0]]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4, -1e6, 1e-30])
def test_batch_norm_of_constant_channels(value):
    model = nn.Sequential(nn.BatchNorm(), input_shape=(5, 5, 3))
    x = np.full((8, 5, 5, 3), value, "float32")
    y = model.forward(x, training=True)
    assert np.allclose(y, 0, atol=1e-3) and np.isfinite(model.backward(np.ones_like(y))).all()
    assert np.allclose(model[0].running_mean, 0.1 * value, rtol=1e-6) and np.allclose(model[0].running_var, 0.9, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_batch_norm_far_from_zero(offset):
    x = np.random.default_rng(0).standard_normal((64, 4)) + offset
    y32, y64 = (
        nn.Sequential(nn.BatchNorm(), input_shape=(4,), dtype=d).forward(x.astype(d), training=True)
        for d in ("float32", "float64")
    )
    exact = nn.Sequential(nn.BatchNorm(), input_shape=(4,), dtype="float64").forward(x.astype("float32"), training=True)
    np.testing.assert_allclose(y32, exact, atol=1e-2 if offset > 1e4 else 1e-4)
    assert y64.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("case", OF_REALS)
@given(data=st.data())
def test_every_layer_on_tiny_and_large_inputs(case, data):
    layers, shape = data.draw(CASES[case])
    size = data.draw(st.sampled_from([0.0, 1e-30, 1e4]))
    model = nn.Sequential(*layers, input_shape=shape, seed=3)
    x = (np.random.default_rng(0).standard_normal((3, *shape)) * size).astype("float32")
    with np.errstate(under="ignore"):
        z = model.forward(x, training=True)
        assert np.isfinite(z).all() and np.isfinite(model.backward(np.ones_like(z))).all()
        assert np.isfinite(model.grads).all() and np.isfinite(model.buffers).all() and np.isfinite(model(x)).all()
