"""Every layer and composition of the table has every property."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from cases import ACTIVATIONS, CASES
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.engine import cut
from nnlite.layers.base import Elementwise

pytestmark = pytest.mark.usefixtures("both_kernels")

each_case = pytest.mark.parametrize("case", CASES)
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


class SquaredSum(nn.Loss):
    """A criterion for outputs of any shape."""

    def per_sample(self, backend, z, t):
        d = z - t
        return (d * d).reshape(len(z), -1).sum(axis=1), 2 * d


def draw_model(data, case, dtype="float64"):
    layers, shape = data.draw(CASES[case])
    return nn.Sequential(*layers, input_shape=shape, seed=3, dtype=dtype), shape


def draw_batch(data, model, n=None):
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    n = n or data.draw(st.integers(1, 7))
    x = rng.standard_normal((n, *model.in_shape)).astype(model.dtype)
    if model.plan.takes_integers:
        x = rng.integers(0, model[0].n, x.shape)
    return x, rng.standard_normal((n, *model.out_shape)).astype(model.dtype)


def train(model, x, t, pass_id=1):
    """Everything that a training pass gives, by forward, criterion and backward."""
    z = model.forward(x, training=True, pass_id=pass_id)
    loss, delta = SquaredSum()(z, t)
    return [z.copy(), loss, model.backward(delta), model.grads.copy(), model.buffers.copy()]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@each_case
@given(data=st.data())
def test_gradient(case, data):
    model, _ = draw_model(data, case)
    x, _ = draw_batch(data, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # x may be moved off a kink
        nn.gradcheck(model, x)


@each_case
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_shape_and_dtype(case, data, dtype):
    model, _ = draw_model(data, case, dtype)
    x, t = draw_batch(data, model)
    z, _, dx, grads, _ = train(model, x, t)
    assert model(x).shape == z.shape == t.shape
    assert dx.shape == x.shape
    assert {a.dtype for a in (z, dx, grads, model(x), model.params, model.buffers)} == {np.dtype(dtype)}


@each_case
@given(data=st.data())
def test_arguments_are_not_written_to(case, data):
    model, _ = draw_model(data, case)
    x, delta = draw_batch(data, model)
    before = x.copy(), delta.copy()
    x.flags.writeable = delta.flags.writeable = False
    z = model.forward(x, training=True)
    kept = z.copy()
    model.backward(delta)
    model(x)
    assert same(before, (x, delta))
    assert np.array_equal(kept, z), "backward wrote to the outputs that forward returned"


@each_case
@given(data=st.data())
def test_any_real_input(case, data):
    model, _ = draw_model(data, case, "float32")
    x, t = draw_batch(data, model)
    of_ids = model.plan.takes_integers
    x = (x if of_ids else 10 * x).astype(np.int16)
    expected = train(model, x if of_ids else x.astype(np.float32), t)
    strided = np.repeat(x, 2, axis=0)[::2]
    fortran = np.asfortranarray(x.astype(np.uint64 if of_ids else np.float64))
    for variant in (x, strided, fortran):
        assert same(expected[:4], train(model, variant, t)[:4])
    wide = np.repeat(t, 2, axis=-1)[..., ::2]
    assert same(expected[:4], train(model, x, wide)[:4])


@each_case
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_batch_equals_rows(case, data, dtype):
    model, _ = draw_model(data, case, dtype)
    x, t = draw_batch(data, model)
    train(model, x, t)  # moves the running statistics
    whole, rows = model(x), np.concatenate([model(row[None]) for row in x])
    np.testing.assert_allclose(whole, rows, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@each_case
@given(data=st.data())
def test_short_last_shard_and_many_shards(case, data):
    """Cut finely or not at all, the mathematics is the same; cut alike, the bits are, on any number of threads."""
    model, _ = draw_model(data, case)
    x, t = draw_batch(data, model, n=7)
    start = model.snapshot()
    whole = train(model, x, t)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BUDGET", 1), ("WORTH_CUTTING", 0), ("FLOPS_PER_SUMMED_VALUE", 0)):
            patch.setattr(cut, name, value)
        for threads in (1, 2, 3):
            nn.set_num_threads(threads)
            model.restore(start)
            model.rewrite = True  # a new plan, cut anew
            results.append(train(model, x, t))
            assert all(run.whole or len(run.cut(7, 8)) > 1 for run in model.plan.training)
    assert same(results[0], results[1]) and same(results[0], results[2])
    for a, b in zip(whole, results[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@each_case
@given(data=st.data())
def test_sweep_equals_forward_and_backward(case, data):
    model, _ = draw_model(data, case, "float32")
    x, t = draw_batch(data, model, n=7)
    start = model.snapshot()
    z, loss, _, grads, buffers = train(model, x, t)
    model.restore(start)
    out = np.empty_like(z)
    assert model.loss_and_grad(x, t, SquaredSum(), out=out, pass_id=1) == pytest.approx(loss, rel=1e-6)
    assert same((z, grads, buffers), (out, model.grads, model.buffers))


@each_case
@given(data=st.data())
def test_rewriting_changes_no_bit(case, data):
    """Except of convolutions that pool, whose sums have another order, and of inference by filters that include a norm."""
    model, _ = draw_model(data, case)
    x, t = draw_batch(data, model)
    pools = any(getattr(layer.plan, "taps", 1) > 1 for layer in model.plan.training[0].layers if hasattr(layer, "plan"))
    folds = any(len(step.paths) > 1 and hasattr(step.layer, "norm") for step in model.plan.inference.steps)
    start, rewritten = model.snapshot(), [*train(model, x, t), model(x)]
    model.rewrite = False
    model.restore(start)
    plain = [*train(model, x, t), model(x)]
    assert pools or same(rewritten[: -1 if folds else None], plain[: -1 if folds else None])
    for a, b in zip(rewritten, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@each_case
@given(data=st.data())
def test_copies_are_the_same_model(case, data, tmp_path):
    model, _ = draw_model(data, case, "float32")
    x, t = draw_batch(data, model)
    train(model, x, t)
    model.params += 0.01
    model.save(tmp_path / "m.safetensors")
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.load(tmp_path / "m.safetensors")]
    expected = model(x), *train(model, x, t)
    for other in copies:
        assert repr(other) == repr(model)
        assert not np.shares_memory(other.params, model.params)
        assert same(expected, (other(x), *train(other, x, t)))


@each_case
@given(data=st.data())
def test_values_that_change_before_backward_are_refused(case, data):
    model, _ = draw_model(data, case, "float32")
    x, delta = draw_batch(data, model)
    if not len(model.params):
        return
    model.forward(x, training=True)
    i = data.draw(st.integers(0, len(model.params) - 1))
    model.params[i] += 1
    with pytest.raises(nn.StateError, match="parameters changed after forward"):
        model.backward(delta)
    model.forward(x, training=True)
    model.backward(delta)


def test_in_place_and_in_the_same_memory():
    """`elementwise` layers may overwrite their input; only results of `shares_memory` layers may be their input."""
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Layer)]
    named = {flag: {kind.__name__ for kind in kinds if getattr(kind, flag)} for flag in ("elementwise", "shares_memory")}
    assert named["elementwise"] == {
        "Dropout",
        "SpatialDropout2D",
        "Normalize",
        "PReLU",
        *(type(row.layer).__name__ for row in ACTIVATIONS),
    }
    assert {kind.__name__ for kind in kinds if not kind.samplewise} == {"BatchLayer", "BatchNorm"}
    assert named["elementwise"] == {kind.__name__ for kind in kinds if issubclass(kind, Elementwise)}
    # The last four are no layers of their own: their parts say it.
    assert named["shares_memory"] == {
        "Dropout",
        "SpatialDropout2D",
        "Flatten",
        "Reshape",
        "Layer",
        "Concat",
        "Residual",
        "Sequential",
    }


def test_flops_and_memory_are_those_of_the_definition():
    """Of one sample, a product and a sum counted as two."""
    layers = nn.Dense(7), nn.Conv2D(6, (3, 2), stride=2, groups=2, bias=False), nn.ReLU(), nn.Conv2D(5, 3, padding=1)
    shapes = (4,), (9, 8, 4), (6,), (6, 7, 2)
    models = [nn.Sequential(layer, input_shape=shape) for layer, shape in zip(layers, shapes, strict=True)]
    assert [model[0].flops() for model in models] == [2 * 4 * 7, 2 * 4 * 4 * 6 * 3 * 2 * 2, 0, 2 * 6 * 7 * 5 * 9 * 2]
    assert models[0][0].weights() == 4 * 7 + 7 and models[2][0].weights() == models[2][0].temporaries() == 0


@each_case
@given(data=st.data())
def test_every_array_is_a_view_of_the_flat_vectors(case, data):
    model, _ = draw_model(data, case, "float32")
    for named, vector in ((model.named_params(), model.params), (model.named_buffers(), model.buffers)):
        assert sum(view.size for view in named.values()) == vector.size
        for i, view in enumerate(named.values()):
            view[...] = i
        assert all(np.all(view == i) for i, view in enumerate(named.values()))
        assert np.array_equal(np.concatenate([v.ravel() for v in named.values()] or [vector]), vector)


def test_batch_norm_combines_shards_of_different_means():
    model = nn.Sequential(nn.BatchNorm(), input_shape=(3,), dtype="float64")
    a = np.random.default_rng(0).standard_normal((50, 3)) + np.arange(50)[:, None]
    m, mean, var, _ = model[0].combine([model[0].statistics(part) for part in (a[:7], a[7:20], a[20:])])
    assert m == 50
    np.testing.assert_allclose(mean, a.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(var, a.var(axis=0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: repr(row.layer))
def test_activations_have_the_values_of_their_equations(row):
    a = np.linspace(-6, 6, 49)
    model = nn.Sequential(type(row.layer)(**row.layer.config()), input_shape=(49,), dtype="float64")
    np.testing.assert_allclose(model(a[None])[0], row.f(a), rtol=1e-12, atol=1e-15)


def test_softmax_has_the_values_of_its_equation():
    a = np.linspace(-6, 6, 49)
    model = nn.Sequential(nn.Softmax(), input_shape=(49,), dtype="float64")
    np.testing.assert_allclose(model(a[None])[0], np.exp(a) / np.exp(a).sum(), rtol=1e-12, atol=1e-15)


def test_every_layer_of_images_says_so():
    layers = [kind for kind in vars(nn.layers).values() if isinstance(kind, type) and issubclass(kind, nn.Layer)]
    others = {kind.__name__ for kind in layers if kind.images is False and not kind.elementwise}
    of_sequences = {"Conv1D", "MaxPool1D", "AvgPool1D", "GlobalMaxPool1D"}
    assert others == {"Layer", "BatchLayer", "Dense", "Flatten", "Reshape", "Residual", "Concat", "Embedding", *of_sequences}
