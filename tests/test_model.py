"""The model's promises: views, names, nesting, freezing, errors that name the layer."""

import copy
from fnmatch import fnmatchcase

import numpy as np
import pytest

import nnlite as nn

rng = np.random.default_rng(0)


def make(**options):
    return nn.Sequential(
        nn.Conv2D(4, 3),
        nn.ReLU(),
        nn.BatchNorm(),
        nn.Residual(nn.Conv2D(4, 1), nn.ReLU(), shortcut=nn.Conv2D(4, 1)),
        nn.Flatten(),
        nn.Dense(3),
        input_shape=(5, 6, 2),
        **options,
    )


X = rng.standard_normal((8, 5, 6, 2)).astype(np.float32)
T = rng.integers(0, 3, 8)


def test_names():
    model = make()
    weights = ["0.W", "0.b", "2.gamma", "2.beta", "3.0.W", "3.0.b", "3.shortcut.0.W", "3.shortcut.0.b", "5.W", "5.b"]
    assert list(model.named_params()) == list(model.named_grads()) == weights
    assert list(model.named_buffers()) == ["2.running_mean", "2.running_var"]
    assert len(model) == 6 and model[5] is model.layers[5] and model[:2] == model.layers[:2]
    assert model.device == "cpu" and model.to("cpu") is model


def test_assignment_copies_into_the_view():
    model = make()
    model[5].W = np.ones((3, 48))
    model[5].W += 1
    model[5].b = [1, 2, 3]
    assert np.shares_memory(model[5].W, model.params)
    assert np.all(model.named_params()["5.W"] == 2) and model.params[-3:].tolist() == [1, 2, 3]
    with pytest.raises(nn.ShapeError, match=r"Dense\(3\): W has shape \(3, 48\), not \(48, 3\)"):
        model[5].W = np.ones((48, 3))


def test_snapshot_and_restore():
    model = make()
    before, held = model(X), model.snapshot()
    model.loss_and_grad(X, T, nn.CrossEntropy())
    nn.SGD(0.1).step(model)
    assert not np.array_equal(before, model(X))
    model.restore(held)
    assert np.array_equal(before, model(X))


def test_a_deep_copy_lives_its_own_life():
    model = make()
    other = copy.deepcopy(model)
    other[5].W += 1
    other.loss_and_grad(X, T, nn.CrossEntropy())
    nn.SGD(0.1).step(other)
    assert not np.array_equal(model(X), other(X))
    layer = copy.deepcopy(model[5])
    layer.W += 1
    assert not np.array_equal(layer.W, model[5].W)
    assert np.array_equal(nn.Sequential(layer, input_shape=(48,))[0].W, layer.W)


def test_a_built_model_moves_into_another():
    backbone = nn.Sequential(nn.Dense(5), nn.BatchNorm(), nn.ReLU(), input_shape=(4,), seed=7)
    x = rng.standard_normal((6, 4)).astype(np.float32)
    backbone.forward(x, training=True)
    values, outputs = backbone.params.copy(), backbone(x)
    model = nn.Sequential(backbone, nn.Dense(2), input_shape=(4,))
    assert np.array_equal(model.params[: len(values)], values)
    assert np.shares_memory(backbone.params, model.params) and np.shares_memory(backbone[0].W, model.params)
    assert np.array_equal(backbone(x), outputs), "it is still a model of its own"
    model.loss_and_grad(x, T[:6] % 2, nn.CrossEntropy())
    nn.SGD(1.0).step(model)
    assert not np.array_equal(backbone(x), outputs), "on the values of the whole"


def test_transfer():
    """A trained backbone in a new model, frozen; the old model says that its layers are gone."""
    old = make()
    W = old[0].W.copy()
    new = nn.Sequential(*old.layers[:-1], nn.Dense(5), input_shape=(5, 6, 2), seed=1)
    new.freeze("[0-4].*")
    assert np.array_equal(new[0].W, W)
    for _ in range(3):
        new.loss_and_grad(X, T, nn.CrossEntropy())
        nn.Adam(0.1).step(new)
    assert np.array_equal(new[0].W, W)
    with pytest.raises(nn.StateError, match="another model"):
        old(X)


def test_frozen_parameters_have_no_gradient_and_statistics_go_on_where_that_is_asked_for():
    model = make()
    model.loss_and_grad(X, T, nn.CrossEntropy())
    full = {name: g.copy() for name, g in model.named_grads().items()}
    for pattern in ("0.*", "[0-2].*", "5.*", "3.0.*", "3.shortcut.*", "*"):
        model.freeze(pattern, statistics=False)
        statistics = model.buffers.copy()
        model.loss_and_grad(X, T, nn.CrossEntropy())
        assert not np.array_equal(statistics, model.buffers)
        for name, g in model.named_grads().items():
            matches = not g.any()
            assert matches == fnmatchcase(name, pattern), (name, pattern)
            if not matches:
                np.testing.assert_allclose(g, full[name], rtol=1e-4, atol=1e-6)
        model.unfreeze("*")


def test_backward_stops_at_the_first_trained_layer():
    class Loud(nn.Dense):
        def backward(self, delta, ctx):
            calls.append((self.units, ctx.needs_delta, ctx.trained))
            return super().backward(delta, ctx)

    calls = []
    model = nn.Sequential(Loud(4), nn.ReLU(), Loud(3), nn.ReLU(), Loud(2), input_shape=(4,))
    x, t = rng.standard_normal((5, 4)), T[:5] % 2
    model.loss_and_grad(x, t, nn.CrossEntropy())
    assert calls == [(2, True, True), (3, True, True), (4, False, True)]
    calls.clear()
    model.freeze("0.*")
    model.loss_and_grad(x, t, nn.CrossEntropy())
    assert calls == [(2, True, True), (3, False, True)]
    calls.clear()
    model.freeze("4.*")
    model.forward(x, training=True)
    assert model.backward(np.ones((5, 2))).shape == x.shape
    assert calls == [(2, True, False), (3, True, True), (4, True, False)]


def test_a_layer_written_by_a_user():
    class Scale(nn.Layer):
        """y = s a"""

        def __init__(self, start=1.0):
            self.start = start

        def build(self, in_shape):
            self.declare("s", in_shape, nn.init.constant(self.start))
            return in_shape

        def forward(self, a, ctx):
            ctx.a = a
            return a * self.s

        def backward(self, delta, ctx):
            ctx.ds[...] = (delta * ctx.a).sum(axis=0)
            return delta * self.s

    class Center(nn.Layer):
        """y = a - mean over the batch: needs the batch in one piece"""

        samplewise = False

        def forward(self, a, ctx):
            return a - a.mean(axis=0)

        def backward(self, delta, ctx):
            return delta - delta.mean(axis=0)

    model = nn.Sequential(nn.Dense(4), nn.ReLU(), Scale(2.0), Center(), nn.ReLU(), Scale(), input_shape=(3,))
    assert repr(model[2]) == "Scale(start=2.0)" and repr(model[5]) == "Scale()"
    with_sums = rng.standard_normal((7, 3))
    nn.gradcheck(model, with_sums)
    assert np.all(model[2].s == 2)


def test_pass_id_decides_the_masks():
    model = nn.Sequential(nn.Dropout(0.5), input_shape=(50,), seed=3)
    x = np.ones((6, 50))
    first, second = model.forward(x, training=True), model.forward(x, training=True)
    assert model.passes == 2
    assert not np.array_equal(first, second)
    assert np.array_equal(first, model.forward(x, training=True, pass_id=1)) and model.passes == 2
    assert not np.array_equal(first[0], first[1])
    assert abs(first.mean() - 1) < 0.2 and set(np.unique(first)) == {0, 2}
    part = nn.Sequential(nn.Dropout(0.5), input_shape=(50,), seed=3).forward(x[:2], training=True)
    assert np.array_equal(part, first[:2]), "a sample's mask does not depend on its neighbours"
    assert np.array_equal(model(x), x)


@pytest.mark.parametrize(
    ("layers", "shape", "words"),
    [
        ([nn.Conv2D(3, 7)], (5, 5, 3), r"layer 0 Conv2D\(3, 7\): .*\(7, 7\).*\(5, 5\)"),
        ([nn.Flatten(), nn.Conv2D(3, 3)], (5, 5, 3), r"layer 1 .*\(75,\)"),
        ([nn.Dense(3)], (5, 5), r"layer 0 Dense\(3\): .*\(5, 5\)"),
        ([nn.Residual(nn.Dense(3))], (4,), r"layer 0 .*\(3,\).*\(4,\)"),
        ([nn.Residual(nn.Conv2D(3, 9), nn.ReLU())], (4, 4, 3), r"layer 0 .*: layer 0 Conv2D\(3, 9\)"),
        ([nn.Conv2D(4, 3, groups=3)], (5, 5, 3), "groups=3"),
        ([nn.MaxPool2D(2, padding=2)], (5, 5, 3), "padding 2"),
        ([nn.MaxPool2D(6)], (5, 5, 3), r"\(6, 6\)"),
        ([nn.Reshape((4, -1))], (5,), r"\(5,\)"),
        ([nn.Normalize((1, 2), 1)], (5, 5, 3), "2 values"),
        ([nn.BatchNorm()], (5, 5, 5, 5), r"\(5, 5, 5, 5\)"),
        ([nn.GlobalAvgPool2D()], (5,), r"\(5,\)"),
        ([], (5,), "at least one"),
    ],
)
def test_shapes_that_do_not_fit(layers, shape, words):
    with pytest.raises(nn.ShapeError, match=words):
        nn.Sequential(*layers, input_shape=shape)


def test_wrong_arguments():
    for bad in (lambda: nn.Sequential(3), lambda: nn.ReLU(3)):
        with pytest.raises(TypeError):
            bad()
    for bad in (
        lambda: nn.Sequential(nn.ReLU(), input_shape=(3,), dtype="float16"),
        lambda: nn.Dropout(1.0),
        lambda: nn.LeakyReLU(-1),
        lambda: nn.GELU("erf"),
        lambda: nn.Normalize(0, 0),
        lambda: make().freeze("nothing"),
        lambda: nn.set_num_threads(0),
    ):
        with pytest.raises(ValueError):
            bad()


def test_a_layer_object_used_twice():
    layer = nn.Dense(4)
    with pytest.raises(nn.StateError, match=r"0 and 2\.0"):
        nn.Sequential(layer, nn.ReLU(), nn.Residual(layer), input_shape=(4,))


def test_inputs_that_do_not_fit():
    model, criterion = make(), nn.CrossEntropy()
    for x in (X[0], X[..., :1], X.reshape(8, -1)):
        with pytest.raises(nn.ShapeError, match=r"layer 0 Conv2D\(4, 3\).*\(N, 5, 6, 2\), got"):
            model(x)
    for x in (X.astype(complex), X.astype(object), np.full(X.shape, "a")):
        with pytest.raises(nn.DataError, match="real numbers"):
            model(x)
    for call in (lambda: model(X[:0]), lambda: model.loss_and_grad(X[:0], T[:0], criterion)):
        with pytest.raises(nn.DataError, match="empty"):
            call()
    with pytest.raises(nn.DataError, match="8 samples, but 7"):
        model.loss_and_grad(X, T[:7], criterion)
    with pytest.raises(nn.ShapeError, match="out must have shape"):
        model.loss_and_grad(X, T, criterion, out=np.empty((8, 4)))
    with pytest.raises(nn.DeviceError, match=r"'cpu'.*'cuda'"):
        model(type("Array", (), {"__cuda_array_interface__": {}})())
    with pytest.raises(nn.DeviceError, match="tpu"):
        model.to("tpu")


def test_inputs_and_outputs_may_be_written_to_before_backward():
    model = nn.Sequential(nn.Dense(4), nn.Tanh(), input_shape=(3,))
    x, delta = rng.standard_normal((5, 3)).astype(np.float32), np.ones((5, 4))
    model.forward(x, training=True)
    expected = model.backward(delta), model.grads.copy()
    z = model.forward(x, training=True)
    z *= 0
    x *= 0
    assert np.array_equal(model.backward(delta), expected[0]) and np.array_equal(model.grads, expected[1])


@pytest.mark.parametrize(
    "first",
    [nn.ReLU(), nn.Dropout(0.5), nn.Normalize(0, 2), nn.Normalize((1, 2), 2), nn.Residual(nn.ReLU()), nn.Reshape((6, 5, 2))],
    ids=repr,
)
def test_inputs_are_read_where_they_lie(first):
    """No layer writes to the user's array, and where its axes lie otherwise the result is the same."""
    model = nn.Sequential(copy.deepcopy(first), nn.ReLU(), nn.Flatten(), nn.Dense(3), input_shape=(5, 6, 2))
    x = X.copy()
    x.flags.writeable = False
    turned = np.asfortranarray(x)
    assert np.array_equal(model(x), model(turned)) and np.array_equal(model(x), model(x.astype(np.float64)))
    losses = [model.loss_and_grad(batch, T, nn.CrossEntropy(), pass_id=1) for batch in (x, turned)]
    assert losses[0] == losses[1] and np.array_equal(x, X)


def test_backward_needs_a_training_forward():
    model = make()
    delta = np.ones((8, 3))
    for prepare in (lambda: None, lambda: model(X), lambda: model.forward(X, training=False)):
        prepare()
        with pytest.raises(nn.StateError, match="training=True"):
            model.backward(delta)
    model.forward(X, training=True)
    with pytest.raises(nn.ShapeError, match=r"\(8, 3\), not \(8, 2\)"):
        model.backward(delta[:, :2])
    model.backward(delta)
    with pytest.raises(nn.StateError):
        model.backward(delta)


def test_without_input_shape_it_is_only_a_part():
    part = nn.Sequential(nn.ReLU())
    for use in (lambda: part(X), part.summary, part.named_params):
        with pytest.raises(nn.StateError, match="input_shape"):
            use()


def test_summary(capsys):
    make().summary()
    text = capsys.readouterr().out
    for words in ("Conv2D(4, 3)", "(3, 4, 4)", "3.shortcut.0 Conv2D(4, 1)", "76", "271 trained", "MFLOP"):
        assert words in text, text


def test_what_a_pass_returns_is_not_written_by_the_next():
    """Memory is used again inside; outputs, gradients of the input and user arrays are not part of it."""
    model = nn.Sequential(
        nn.Conv2D(4, 3, padding=1),
        nn.BatchNorm(),
        nn.Residual(nn.BatchNorm(), nn.ReLU(), nn.Conv2D(4, 3, padding=1)),
        nn.BatchNorm(),
        input_shape=(6, 6, 4),
    )
    x, other = rng.standard_normal((2, 5, 6, 6, 4)).astype(np.float32)
    delta = rng.standard_normal((5, 6, 6, 4))
    given = x.copy(), delta.copy()
    z = model.forward(x, training=True)
    dx = model.backward(delta)
    kept = z.copy(), dx.copy()
    for _ in range(2):
        model.forward(other, training=True)
        model.backward(2 * delta)
        model.loss_and_grad(other, delta, nn.MSE())
    assert np.array_equal(z, kept[0]) and np.array_equal(dx, kept[1])
    assert np.array_equal(x, given[0]) and np.array_equal(delta, given[1])


def test_inference_follows_every_change_of_the_parameters():
    """Filters are prepared once and kept; whoever writes to a parameter, by whatever view, is noticed."""
    x = rng.standard_normal((2, 8, 8, 4))
    model = nn.Sequential(nn.Conv2D(8, 3), nn.ReLU(), nn.Conv2D(4, 1), input_shape=(8, 8, 4), dtype="float64")

    def expect(*changes):
        for change in changes:
            before = model(x)
            assert np.array_equal(before, model(x))
            change()
            after = model(x)
            fresh = nn.Sequential(nn.Conv2D(8, 3), nn.ReLU(), nn.Conv2D(4, 1), input_shape=(8, 8, 4), dtype="float64")
            fresh.params = model.params
            assert not np.array_equal(before, after) and np.array_equal(after, fresh(x))

    def write(array, value):
        array[...] = value

    expect(
        lambda: write(model[0].W, 2 * model[0].W),
        lambda: write(model[0].b, 1.0),
        lambda: write(model.params[:3], 0.5),
        lambda: write(model.named_params()["2.W"], 0.1),
        lambda: model.restore((model.params + 1, model.buffers)),
    )


def test_residuals_across_barriers_are_carried_without_copies():
    block = (nn.BatchNorm(), nn.ReLU(), nn.Conv2D(4, 3, padding=1))
    model = nn.Sequential(
        nn.Conv2D(4, 1),
        nn.Residual(*block, nn.Residual(nn.BatchNorm(), nn.Tanh(), shortcut=(nn.BatchNorm(), nn.Conv2D(4, 1))), nn.BatchNorm()),
        nn.Residual(nn.BatchNorm(), nn.ReLU(), shortcut=nn.Conv2D(4, 1)),
        input_shape=(5, 5, 3),
        dtype="float64",
    )
    runs = model.plan.training
    stored = runs[0].makes
    assert len(stored) == 1 and stored <= runs[1].forward.gives and not stored & runs[1].makes
    assert [len(run.makes) for run in runs[:-1]] == [1] * (len(runs) - 1)
    nn.gradcheck(model, rng.standard_normal((3, 5, 5, 3)))


# ---- a batch prepared by hand, as a trainer does it


def prepared_case():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Dense(5), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(3), input_shape=(4,))
    return model, rng.standard_normal((9, 4)), rng.integers(0, 3, 9), rng.random(9)


@pytest.mark.parametrize("criterion", [nn.CrossEntropy(), nn.CrossEntropy(class_weight=[1, 2, 3], ignore_index=0)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_prepared_batch_gives_the_same_bits(criterion, weighted):
    model, x, t, w = prepared_case()
    weights, out = w if weighted else None, np.empty((9, 3), "float32")
    expected = model.loss_and_grad(x, t, criterion, weights, out), model.grads.copy(), out.copy()
    *batch, total = model.prepare_batch(x, t, criterion, weights, out)
    loss = model.loss_and_grad(*batch[:2], criterion, batch[2], out, pass_id=1, total=total)
    for got, want in zip((loss, model.grads, out), expected, strict=True):
        assert np.array_equal(got, want)
    assert model.loss_and_grad(*batch[:2], criterion, batch[2], pass_id=1, total=2 * total) == pytest.approx(loss / 2)


WRONG_BATCHES = {
    "x before t": (lambda x, t: (x[:, :3], t[:5], None, None), nn.ShapeError, r"layer 0 .*expects inputs \(N, 4\)"),
    "no samples": (lambda x, t: (x[:0], t[:5], None, None), nn.DataError, "the batch is empty"),
    "the number of targets before out": (lambda x, t: (x, t[:5], None, x), nn.DataError, "9 samples, but 5 targets"),
    "out before the values of t": (lambda x, t: (x, t + 9, None, x), nn.ShapeError, r"out must have shape \(9, 3\)"),
    "x before the weights": (lambda x, t: (x[:, :3], t, 0 * t, None), nn.ShapeError, r"layer 0 .*expects inputs \(N, 4\)"),
    "no weight": (lambda x, t: (x, t, 0 * t, None), nn.DataError, "the weights of the samples add up to zero"),
}


@pytest.mark.parametrize("wrong", WRONG_BATCHES)
def test_batches_are_refused_in_a_fixed_order_before_a_pass_begins(wrong):
    make, kind, words = WRONG_BATCHES[wrong]
    model, x, t, _ = prepared_case()
    x, t, w, out = make(x, t)
    for call in (model.prepare_batch, model.loss_and_grad):
        with pytest.raises(kind, match=words):
            call(x, t, nn.CrossEntropy(), w, out)
    assert model.passes == 0


def test_a_prepared_batch_that_does_not_fit_into_memory_says_what_there_is(monkeypatch):
    model, x, t, _ = prepared_case()

    class Huge(nn.CrossEntropy):
        def prepare(self, *batch):
            raise MemoryError("9 bytes")

    monkeypatch.setattr(type(model.backend), "out_of_memory", lambda self, error: nn.DeviceError(f"full: {error}"))
    with pytest.raises(nn.DeviceError, match="full: 9 bytes"):
        model.prepare_batch(x, t, Huge())
