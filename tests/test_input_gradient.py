"""dJ/dx in inference: what explanations of predictions are made of."""

import numpy as np
import pytest
from cases import CASES, OF_REALS
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

rng = np.random.default_rng(0)


def trained(*layers, shape):
    """A float64 model whose running statistics are not those of the beginning."""
    model = nn.Sequential(*layers, input_shape=shape, dtype="float64")
    model.buffers += rng.random(len(model.buffers))
    return model


def differences(model, x, delta, v, step=1e-6):
    return ((model(x + step * v) - model(x - step * v)) * delta).sum() / (2 * step)


@pytest.mark.parametrize("case", OF_REALS)
@given(data=st.data())
def test_central_differences_of_inference(case, data):
    layers, shape = data.draw(CASES[case])
    model = trained(*layers, shape=shape)
    x = rng.standard_normal((3, *shape))
    delta, v = rng.standard_normal((3, *model.out_shape)), rng.standard_normal(x.shape)
    dx = model.input_gradient(x, delta)
    one, half = differences(model, x, delta, v), differences(model, x, delta, v, 1e-7)
    if abs(one - half) < 1e-6 * (1 + abs(one)):  # no kink is near
        assert (dx * v).sum() == pytest.approx(one, rel=1e-5, abs=1e-6)


def net():
    convolution = nn.Conv2D(4, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Residual(nn.BatchNorm(), nn.Conv2D(4, 1))
    dense = nn.Dropout(0.5), nn.Flatten(), nn.Dense(8), nn.BatchNorm(), nn.Tanh(), nn.Dense(3)
    return trained(*convolution, *dense, shape=(8, 8, 2))


def test_everything_else_stays_as_it_is():
    model, x = net(), rng.standard_normal((5, 8, 8, 2))
    z = model.forward(x, training=True)
    model.grads = np.arange(len(model.grads))
    before = model.grads.copy(), model.buffers.copy(), model.passes
    delta = np.ones_like(z)
    dx = model.input_gradient(x, delta)
    assert np.array_equal(model.grads, before[0]) and np.array_equal(model.buffers, before[1]) and model.passes == before[2]
    after = model.backward(delta)
    model.forward(x, training=True, pass_id=1)
    assert np.array_equal(model.backward(delta), after) and dx.shape == x.shape


@pytest.mark.parametrize("threads", [1, 2])
def test_each_sample_has_its_own(threads):
    nn.set_num_threads(threads)
    model, x = net(), rng.standard_normal((5, 8, 8, 2))
    delta = rng.standard_normal((5, 3))
    whole = model.input_gradient(x, delta)
    alone = np.concatenate([model.input_gradient(x[i : i + 1], delta[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(whole, alone, rtol=1e-10, atol=1e-12)
    model.rewrite = False
    np.testing.assert_allclose(model.input_gradient(x, delta), whole, rtol=1e-10, atol=1e-12)


def test_changed_parameters_are_seen():
    model, x, delta = net(), rng.standard_normal((2, 8, 8, 2)), np.ones((2, 3))
    before = model.input_gradient(x, delta)
    model.params *= 2
    assert not np.allclose(model.input_gradient(x, delta), before)


def test_wrong_shapes_are_refused():
    model, x = net(), np.zeros((2, 8, 8, 2))
    with pytest.raises(nn.ShapeError, match="delta must have the shape of the outputs"):
        model.input_gradient(x, np.zeros((2, 4)))
    with pytest.raises(nn.ShapeError, match="layer 0"):
        model.input_gradient(x[:, :4], np.zeros((2, 3)))


def test_a_layer_of_the_whole_batch_is_refused():
    class Centred(nn.Layer):
        """y = a - mean of the batch"""

        samplewise = False

        def forward(self, a, ctx):
            return a - a.mean(axis=0)

        def backward(self, delta, ctx):
            return delta - delta.mean(axis=0)

    model = nn.Sequential(Centred(), nn.Dense(2), input_shape=(3,))
    with pytest.raises(nn.StateError, match="whole batch"):
        model.input_gradient(np.zeros((2, 3)), np.zeros((2, 2)))
