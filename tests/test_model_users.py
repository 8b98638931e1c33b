"""What users do to models and write themselves: mistakes that leave everything as it was or are said, layers of their own."""

import copy

import numpy as np
import pytest

import nnlite as nn

rng = np.random.default_rng(0)
T = rng.integers(0, 3, 8)


@pytest.mark.parametrize("wrong", [(2, 2, 5), (6,)])
def test_a_model_that_cannot_be_built_leaves_the_one_its_layers_belong_to(wrong):
    model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(3), input_shape=(5,))
    untouched, x = copy.deepcopy(model), rng.standard_normal((8, 5))
    with pytest.raises(nn.ShapeError):
        nn.Sequential(*model.layers, input_shape=wrong)
    losses = [m.loss_and_grad(x, T, nn.CrossEntropy()) for m in (model, untouched)]
    assert losses[0] == losses[1] and np.array_equal(model.grads, untouched.grads)
    assert np.array_equal(model(x), untouched(x)) and model.layers[0].owner is model


def test_a_convolution_keeps_its_plan_when_another_model_cannot_be_built():
    model = nn.Sequential(nn.Conv2D(4, 3), nn.ReLU(), nn.GlobalAvgPool2D(), nn.Dense(3), input_shape=(9, 9, 2))
    x = rng.standard_normal((4, 9, 9, 2))
    z = model(x)
    with pytest.raises(nn.ShapeError):
        nn.Sequential(*model.layers[:2], nn.Reshape((5,)), input_shape=(8, 8, 2))
    assert np.array_equal(model(x), z)


def test_a_part_has_the_dtype_of_its_model():
    part = nn.Sequential(nn.Dense(4), nn.Tanh())
    nn.Sequential(part, nn.Dense(2), input_shape=(3,), dtype="float64")
    x = rng.standard_normal((5, 3))
    z = part(x)
    assert z.dtype == np.float64
    np.testing.assert_allclose(z[2:3], part(x[2:3]), rtol=1e-12)
    assert nn.Sequential(nn.Dense(1), input_shape=(1,), dtype=np.float64).dtype == "float64"


def test_a_model_that_lost_a_layer_says_so():
    part = nn.Sequential(nn.Dense(4), nn.Tanh())
    model = nn.Sequential(part, nn.Dense(3), input_shape=(5,))
    nn.Sequential(part[0], nn.Dense(2), input_shape=(5,))
    x = np.ones((8, 5))
    lost = pytest.raises(nn.StateError, match=r"layer Dense\(4\) now belongs to another model")
    for use in (
        lambda: model(x),
        lambda: part(x),
        lambda: part.loss_and_grad(x, T, nn.CrossEntropy()),
        lambda: nn.SGD(0.1).step(part),
        model.named_params,
        model.named_grads,
        model.named_buffers,
        model.snapshot,
        lambda: model.save("nowhere.safetensors"),
    ):
        with lost:
            use()


class Gate(nn.Layer):
    """y = inner(a) * factor: what a user may write, and what would be run as `inner` alone."""

    def __init__(self, inner, factor=None):
        self.inner, self.factor = inner, factor

    def children(self):
        return {"inner": self.inner}

    def build(self, in_shape):
        if self.factor is not None:
            self.declare("gain", (1,), "ones")
        return self.inner.declare_shapes(in_shape)


class ForwardGate(Gate):
    def forward(self, a, ctx):
        raise AssertionError("never called")


def test_a_layer_with_layers_inside_is_a_chain_or_refused():
    x = np.ones((2, 3))
    model = nn.Sequential(Gate(nn.Dense(3)), input_shape=(3,))
    assert np.array_equal(model(x), nn.Sequential(nn.Dense(3), input_shape=(3,))(x))
    for layer in (ForwardGate(nn.Dense(3)), Gate(nn.Dense(3), factor=2)):
        with pytest.raises(nn.StateError, match="has layers inside, which run one after another"):
            nn.Sequential(layer, input_shape=(3,))


class Scaled(nn.Layer):
    """y = (scale W) a, with what both make prepared once."""

    def build(self, in_shape):
        self.declare("W", (2, *in_shape), "ones")
        self.declare("scale", (1,), "ones", trained=False)
        return (2,)

    def prepare(self, memory):
        return self.scale * self.W

    def forward(self, a, ctx):
        return a @ ctx.prepared.T

    def backward(self, delta, ctx):
        return delta @ ctx.prepared


def test_inference_follows_every_change_of_what_a_layer_prepares_from():
    model = nn.Sequential(Scaled(), input_shape=(3,))
    x = np.ones((1, 3))
    model(x)
    held = model.snapshot()
    model[0].scale = [10]
    assert np.array_equal(model(x), [[30, 30]])
    model.restore(held)
    assert np.array_equal(model(x), [[3, 3]])


class Centred(nn.layers.base.BatchLayer):
    """y = (a - mean over the batch) factor, the factor prepared: a barrier that uses all that the model gives it."""

    def prepare(self, memory):
        return 2.0

    def statistics(self, a):
        return len(a), a.sum(axis=0)

    def combine(self, parts):
        return sum(total for _, total in parts) / sum(count for count, _ in parts)

    def forward(self, a, ctx):
        return (a - ctx.batch) * ctx.prepared

    def delta_statistics(self, delta, ctx):
        assert ctx.a.shape == delta.shape
        return len(delta), delta.sum(axis=0)

    def combine_deltas(self, parts, ctx):
        return ctx.prepared * self.combine(parts)

    def backward(self, delta, ctx):
        assert ctx.a.shape == delta.shape
        return delta * ctx.prepared - ctx.delta_batch


def test_a_barrier_written_by_a_user():
    model = nn.Sequential(nn.Dense(4), Centred(), nn.Tanh(), nn.Dense(2), input_shape=(3,), dtype="float64")
    nn.gradcheck(model, rng.standard_normal((6, 3)))


def test_a_model_of_a_class_of_its_own_is_copied_whole():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Dense(2), input_shape=(3,))
            self.classes = ["cat", "dog"]

    assert copy.deepcopy(Net()).classes == ["cat", "dog"]


def test_training_is_the_second_argument_of_forward():
    model = nn.Sequential(nn.Dense(2), input_shape=(3,))
    model.backward(model.forward(np.ones((2, 3)), True))


@pytest.mark.parametrize(
    ("sample", "shape", "remedy", "put_right"),
    [
        ((5, 6, 1), (8, 5, 6), "x[..., None] adds the last axis, of one channel", lambda x: x[..., None]),
        ((1,), (8,), "x[..., None] adds the last axis, of one channel", lambda x: x[..., None]),
        ((5, 6, 3), (5, 6, 3), "x[None] is a batch of this one sample", lambda x: x[None]),
        ((4,), (4,), "x[None] is a batch of this one sample", lambda x: x[None]),
        ((5, 6, 3), (8, 3, 5, 6), "np.moveaxis(x, 1, -1) puts the channels last", lambda x: np.moveaxis(x, 1, -1)),
        ((5, 6, 3), (8, 6, 5, 3), None, None),
        ((5, 6, 3), (8, 5, 6), None, None),
    ],
)
def test_inputs_without_an_axis_say_how_to_add_it(sample, shape, remedy, put_right):
    model = nn.Sequential(nn.Flatten(), nn.Dense(2), input_shape=sample)
    x, wanted = rng.standard_normal(shape), f"(N, {', '.join(map(str, sample))}), got {shape}"
    with pytest.raises(nn.ShapeError) as caught:
        model(x)
    assert str(caught.value) == f"layer 0 Flatten(): expects inputs {wanted}{f': {remedy}' if remedy else ''}"
    if put_right:
        assert len(model(put_right(x))) in (1, 8)


class Embedding(nn.Layer):
    """y = W[a]      dJ/dW[i] = sum of delta where a = i"""

    keeps, shares_memory, takes_integers = "input", False, True

    def __init__(self, size, width):
        self.size, self.width = size, width

    def build(self, in_shape):
        self.declare("W", (self.size, self.width), lambda shape, rng: rng.standard_normal(shape))
        return (*in_shape, self.width)

    def forward(self, a, ctx):
        ctx.a = a % self.size
        return self.W[ctx.a]

    def backward(self, delta, ctx):
        ctx.dW[...] = 0
        np.add.at(ctx.dW, ctx.a, delta)


@pytest.mark.parametrize("dtype", ["int64", "uint32"])
def test_integers_reach_a_first_layer_that_wants_them(dtype):
    """Above 2^24 float32 knows only every second one."""
    model = nn.Sequential(Embedding(7, 3), nn.Flatten(), nn.Dense(2), input_shape=(2,))
    ids = np.array([[2**24, 2**24 + 1], [3, 2**31 - 1]], dtype)
    assert np.array_equal(model(ids), model(ids % 7))
    z = model.forward(ids, training=True)
    dx = model.backward(np.ones_like(z))
    grads = model.grads.copy()
    assert not dx.any() and set(np.flatnonzero(model.named_grads()["0.W"].any(axis=1))) == set((ids % 7).ravel())
    model.forward(ids % 7, training=True)
    model.backward(np.ones_like(z))
    assert np.array_equal(model.grads, grads)
    nn.Trainer(model, nn.CrossEntropy(), nn.Adam()).fit((ids, [0, 1]), epochs=2, progress=False)
