"""Initialisers: moments, structure, seeds."""

import math

import numpy as np
import pytest

import nnlite as nn

DENSE, CONV = (300, 200), (64, 3, 5, 32)


@pytest.mark.parametrize("shape", [DENSE, CONV])
@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("he", lambda fan_in, fan_out: 2 / fan_in),
        ("glorot", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("lecun", lambda fan_in, fan_out: 1 / fan_in),
    ],
)
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_variance(shape, name, variance, law):
    values = getattr(nn.init, f"{name}_{law}")(shape, np.random.default_rng(0))
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[1:-1])
    assert values.mean() == pytest.approx(0, abs=0.02 * values.std())
    assert values.var() == pytest.approx(variance(fan_in, fan_out), rel=0.03)
    widest = abs(values).max() / values.std()
    assert widest < math.sqrt(3) + 0.02 if law == "uniform" else widest > 3


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (6, 3, 3, 2)])
def test_orthogonal(shape):
    W = nn.init.orthogonal(shape, np.random.default_rng(0)).reshape(shape[0], -1)
    product = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 5)])
def test_dirac_is_the_identity(kernel):
    layer = nn.Conv2D(5, kernel, padding="same", init="dirac", bias=False)
    nn.set_conv_algorithm("direct")  # to the last bit
    model = nn.Sequential(layer, input_shape=(6, 7, 5))
    nn.set_conv_algorithm("auto")
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)
    np.testing.assert_array_equal(model(x), x)


def test_constants_and_functions():
    model = nn.Sequential(nn.Dense(3, init=nn.init.constant(0.25)), input_shape=(2,))
    assert np.all(model[0].W == 0.25)
    assert np.all(model[0].b == 0)
    assert nn.init.zeros((2, 3)).sum() == 0


def test_seed_decides_and_dtypes_begin_alike():
    def make(seed, dtype="float32"):
        return nn.Sequential(nn.Dense(5), nn.Dense(4), input_shape=(3,), seed=seed, dtype=dtype).params

    assert np.array_equal(make(1), make(1))
    assert not np.array_equal(make(1), make(2))
    assert np.array_equal(make(1), make(1, "float64").astype(np.float32))


def test_bad_names_and_shapes():
    with pytest.raises(ValueError, match="he_normal"):
        nn.Sequential(nn.Dense(2, init="kaiming"), input_shape=(2,))
    with pytest.raises(ValueError, match="convolutions"):
        nn.Sequential(nn.Dense(2, init="dirac"), input_shape=(2,))
