"""Embedding: rows by id, gradients in a fixed order, ids that are refused."""

import numpy as np
import pytest

import nnlite as nn

pytestmark = pytest.mark.usefixtures("both_kernels")
rng = np.random.default_rng(0)


def net(n=7, dim=3, shape=(4,), dtype="float32"):
    return nn.Sequential(nn.Embedding(n, dim), nn.Flatten(), nn.Dense(2), input_shape=shape, dtype=dtype)


def test_it_is_a_dense_layer_of_one_hot_ids():
    model, ids = net(dtype="float64"), rng.integers(0, 7, (5, 4))
    one_hot = np.eye(7)[ids]
    W, delta = model[0].W, rng.standard_normal((5, 2))
    z = model.forward(ids, training=True)
    np.testing.assert_allclose(z, (one_hot @ W).reshape(5, -1) @ model[2].W.T + model[2].b)
    dx = model.backward(delta)
    da = (delta @ model[2].W).reshape(5, 4, 3)
    np.testing.assert_allclose(model.named_grads()["0.W"], np.einsum("ntk,ntd->kd", one_hot, da), rtol=1e-12, atol=1e-14)
    assert dx.shape == ids.shape and not dx.any()


def test_initial_values_have_variance_one():
    W = nn.Sequential(nn.Embedding(500, 400), input_shape=(1,))[0].W
    assert W.std() == pytest.approx(1, abs=0.01) and W.mean() == pytest.approx(0, abs=0.01)


def test_gradients_of_many_places_lose_no_digits():
    """A million places with one id: 0.1 added one after another in float32 is 100,958."""
    delta, ids, sums = np.full((10**6, 1), 0.1, "float32"), np.full(10**6, 1), np.empty((2, 1), "float32")
    nn.Sequential(nn.Embedding(2, 1), input_shape=(1,)).backend.add_rows(ids, delta, sums)
    np.testing.assert_allclose(sums[:, 0], [0, 1e5], rtol=1e-7)


def test_the_same_bits_on_any_number_of_threads():
    ids, t = rng.integers(0, 50, (6000, 20)), rng.integers(0, 2, 6000)
    model, grads = net(50, 64, (20,)), []
    for threads in (1, 2, 3):
        nn.set_num_threads(threads)
        model.loss_and_grad(ids, t, nn.CrossEntropy())
        grads.append(model.grads.copy())
    assert np.array_equal(grads[0], grads[1]) and np.array_equal(grads[0], grads[2])


@pytest.mark.parametrize("bad", [-1, 7, 2**24 + 1, 2**40])
def test_ids_outside_are_refused_before_anything_changes(bad):
    model, ids = net(), rng.integers(0, 7, (6, 4))
    ids[4, 2] = bad
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam())
    before = model.params.copy()
    for call in (lambda: model(ids), lambda: trainer.fit((ids, [0, 1] * 3), epochs=1, progress=False)):
        with pytest.raises(nn.DataError, match=rf"Embedding\(7, 3\) takes ids from 0 to 6: these are from .*{bad}"):
            call()
    assert np.array_equal(model.params, before)


def test_floats_are_refused():
    model = net()
    for x in (np.ones((2, 4)), np.ones((2, 4), bool)):
        with pytest.raises(nn.DataError, match="takes ids, integers from 0 to 6, not float32: as the first layer"):
            model(x)
    with pytest.raises(nn.DataError, match="takes ids"):  # what another layer makes is no id
        nn.Sequential(nn.Dense(2), nn.Embedding(3, 2), input_shape=(2,))(np.zeros((1, 2)))


def test_ids_have_no_gradient():
    with pytest.raises(nn.StateError, match="have no gradient"):
        net().input_gradient(np.zeros((2, 4), int), np.zeros((2, 2)))
    with pytest.raises(nn.StateError, match="occlusion takes them"):
        nn.insight.explain.saliency(net(), np.zeros((2, 4), int))
    model, ids = net(), rng.integers(1, 7, (2, 4))
    covered = ids.copy()
    covered[:, 1] = 0
    found = nn.insight.explain.occlusion(model, ids, 1, 1)
    np.testing.assert_allclose(found[:, 1], (model(ids) - model(covered))[:, 1], rtol=1e-5, atol=1e-6)


def test_frozen_rows_stay():
    model, ids = net(), rng.integers(0, 7, (6, 4))
    model.freeze("0.*")
    before = model[0].W.copy()
    nn.Trainer(model, nn.CrossEntropy(), nn.Adam()).fit((ids, [0, 1] * 3), epochs=1, progress=False)
    assert np.array_equal(model[0].W, before) and not model.named_grads()["0.W"].any()


def test_weights_of_pytorch_have_its_name():
    state = nn.interop.torch.state_dict(net())
    assert state["0.weight"].shape == (7, 3)
    model = net()
    nn.interop.torch.load({name: array + 1 for name, array in state.items()}, model)
    np.testing.assert_array_equal(model[0].W, state["0.weight"] + 1)
