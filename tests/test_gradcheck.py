"""The gradient check finds what is wrong, says where, and changes nothing. These are bugs that others shipped."""

import numpy as np
import pytest

import nnlite as nn

X = np.random.default_rng(0).standard_normal((5, 4))


class TanhReturningTanh(nn.Tanh):
    def backward(self, delta, ctx):
        return delta * ctx.y


class SoftmaxAssumingCrossEntropy(nn.Softmax):
    def backward(self, delta, ctx):
        return delta.copy()


class ZeroSoftmax(nn.Softmax):
    """With a cotangent of ones this one passes."""

    def backward(self, delta, ctx):
        return np.zeros_like(delta)


class ZeroBatchNorm(nn.BatchNorm):
    """So does this one."""

    def backward(self, delta, ctx):
        return np.zeros_like(delta)


class BatchNormWithoutMean(nn.BatchNorm):
    def backward(self, delta, ctx):
        return super().backward(delta, ctx) + self.gamma * ctx.batch.normalization.inv_std * delta.mean(axis=0)


class DenseWithWrongBias(nn.Dense):
    def backward(self, delta, ctx):
        result = super().backward(delta, ctx)
        ctx.db /= len(delta)
        return result


class ReLUOfItsArgument(nn.Layer):
    """Backward is right for the output, but forward has overwritten what its neighbour keeps."""

    keeps = "output"

    def forward(self, a, ctx):
        a += 1
        ctx.y = np.maximum(a, 0, out=a)
        return ctx.y

    def backward(self, delta, ctx):
        return delta * (ctx.y > 0)


@pytest.mark.parametrize(
    ("layers", "where"),
    [
        ([TanhReturningTanh()], "TanhReturningTanh"),
        ([SoftmaxAssumingCrossEntropy()], "SoftmaxAssumingCrossEntropy"),
        ([ZeroSoftmax()], "ZeroSoftmax"),
        ([ZeroBatchNorm()], "ZeroBatchNorm"),
        ([BatchNormWithoutMean()], "BatchNormWithoutMean"),
        ([nn.Dense(3), nn.Tanh(), DenseWithWrongBias(2)], r"DenseWithWrongBias\(2\), dJ/d\(2.b\)"),
        ([nn.Dense(3), nn.Sigmoid(), ReLUOfItsArgument()], "dJ/d"),
    ],
)
def test_wrong_layers_are_caught(layers, where):
    model = nn.Sequential(*layers, input_shape=(4,))
    with pytest.raises(nn.GradientError, match=where + r".*central differences give .*backward gives"):
        nn.gradcheck(model, X)


class NoBackward(nn.Tanh):
    def backward(self, delta, ctx):
        return None


class NaN(nn.Tanh):
    def backward(self, delta, ctx):
        return delta * np.nan


@pytest.mark.parametrize("layer", [NoBackward(), NaN()])
def test_a_delta_that_is_no_number_is_no_kink(layer):
    with pytest.raises(nn.GradientError, match="= nan; error nan"):
        nn.gradcheck(layer, X)


def test_the_message_holds_both_numbers():
    with pytest.raises(nn.GradientError, match=r"= -?\d+\.\d+.*= -?\d+\.\d+.*error \d"):
        nn.gradcheck(TanhReturningTanh(), X)


def test_a_layer_alone_and_a_model():
    nn.gradcheck(nn.Dense(3), X)
    nn.gradcheck(nn.Sequential(nn.Dense(3), nn.GELU(), nn.Dropout(0.5), input_shape=(4,)), X)


def test_kinks_are_left_with_a_warning():
    with pytest.warns(UserWarning, match="kink"):
        nn.gradcheck(nn.ReLU(), np.zeros((3, 4)))
    with pytest.warns(UserWarning, match="kink"):
        nn.gradcheck(nn.MaxPool2D(2), np.ones((1, 4, 4, 1)))


def test_nothing_changes():
    model = nn.Sequential(nn.Dense(3), nn.BatchNorm(), input_shape=(4,), dtype="float32")
    before, x = (*model.snapshot(), model.grads.copy(), model.passes), X.copy()
    nn.gradcheck(model, X)
    after = (*model.snapshot(), model.grads, model.passes)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.array_equal(x, X)
    assert model.dtype == "float32"
    nn.Adam().step(model)  # still its own model
