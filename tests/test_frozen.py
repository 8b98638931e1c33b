"""What is frozen does not move: parameters, running statistics, outputs."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.layers.norm import FrozenBatchNorm

rng = np.random.default_rng(0)
X, T = rng.standard_normal((24, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 24)


def backbone(scale=True, shift=True):
    def norm():
        return nn.BatchNorm(scale=scale, shift=shift)

    residual = nn.Residual(nn.Conv2D(4, 3, padding=1), norm(), nn.ReLU(), shortcut=[nn.Conv2D(4, 1), norm()])
    return nn.Sequential(nn.Conv2D(4, 3), norm(), nn.ReLU(), residual, norm(), nn.MaxPool2D(2), nn.Flatten())


def make(dtype="float32", **options):
    model = nn.Sequential(backbone(**options), nn.Dense(5), nn.BatchNorm(), nn.Dense(3), input_shape=(6, 6, 2), dtype=dtype)
    for _ in range(3):  # statistics and parameters of their own
        model.forward(X, training=True)
        model.params += 0.1 * np.random.default_rng(1).standard_normal(model.params.shape)
    return model


def fit(model, epochs=3, **settings):
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(0.01))
    trainer.fit((3 * X + 1, T), epochs=epochs, batch_size=8, progress=False, **settings)
    return trainer


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"scale": False, "shift": False}], ids=str)
def test_a_frozen_backbone_does_not_move(options):
    model = make(**options)
    model.freeze("0.*")
    before, head = model[0](X).copy(), model[2].running_mean.copy()
    fit(model)
    assert np.array_equal(model[0](X), before)
    assert not np.array_equal(model[2].running_mean, head), "the head's statistics go on"


def test_with_statistics_false_they_go_on():
    model = make()
    model.freeze("0.*", statistics=False)
    before, params = model[0](X).copy(), model[0].params.copy()
    fit(model)
    assert np.array_equal(model[0].params, params) and abs(model[0](X) - before).max() > 0.1


def test_frozen_it_is_in_training_what_it_is_in_inference():
    model = make("float64")
    model.freeze("*")
    np.testing.assert_allclose(model.forward(X, training=True), model(X), rtol=1e-12)
    assert len(model.plan.training) == 1, "there is no barrier"


@given(seed=st.integers(0, 100), threads=st.integers(1, 3))
def test_its_delta_is_that_of_a_constant_map(seed, threads):
    nn.set_num_threads(threads)
    model = make("float64")
    model.freeze("0.*")
    nn.gradcheck(model, np.random.default_rng(seed).standard_normal((5, 6, 6, 2)))


def test_by_the_formula():
    model = nn.Sequential(nn.BatchNorm(eps=1e-3), input_shape=(3,), dtype="float64")
    norm, (a, delta) = model[0], np.random.default_rng(0).standard_normal((2, 7, 3))
    model.params += np.arange(6)
    model.forward(2 * a + 1, training=True)
    model.freeze("*")
    s = norm.gamma / np.sqrt(norm.running_var + 1e-3)
    np.testing.assert_allclose(model.forward(a, training=True), (a - norm.running_mean) * s + norm.beta, rtol=1e-12)
    np.testing.assert_allclose(model.backward(delta), delta * s, rtol=1e-12)
    assert not model.grads.any()


def test_it_is_frozen_once_all_its_parameters_are_and_goes_on_when_one_is_trained_again():
    model = make()
    for pattern, moves in (("0.1.gamma", True), ("0.1.beta", False)):
        model.freeze(pattern)
        before = model[0][1].running_mean.copy()
        model.loss_and_grad(X, T, nn.CrossEntropy())
        assert np.array_equal(before, model[0][1].running_mean) != moves
    for pattern in ("0.1.beta", "*.running_*"):
        model.freeze("0.1.*")
        model.unfreeze(pattern)
        before = model[0][1].running_mean.copy()
        model.loss_and_grad(X, T, nn.CrossEntropy())
        assert not np.array_equal(before, model[0][1].running_mean)


def test_statistics_alone_cannot_be_frozen():
    with pytest.raises(ValueError, match="matches only statistics"):
        make().freeze("*.running_mean")


def other_process(path):
    code = f"import numpy as np, nnlite as nn; m = nn.load({str(path)!r}); x = np.load({str(path) + '.npy'!r}); "
    code += "print(m(x).tobytes().hex()); print(m.forward(x, training=True).tobytes().hex()); print(m.buffers.tobytes().hex())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_copies_files_and_other_processes_know_what_is_frozen(tmp_path):
    model = make()
    model.freeze("0.*")
    model.freeze("2.gamma")
    model.save(tmp_path / "m.safetensors")
    np.save(tmp_path / "m.safetensors.npy", X)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.load(tmp_path / "m.safetensors")]
    z, z_training = model(X), model.forward(X, training=True, pass_id=1)
    for other in copies:
        assert other.vectors.frozen_names == model.vectors.frozen_names
        assert np.array_equal(other(X), z) and np.array_equal(other.forward(X, training=True, pass_id=1), z_training)
        assert np.array_equal(other.buffers, model.buffers)
    expected = [array.tobytes().hex() for array in (z, z_training, model.buffers)]
    assert other_process(tmp_path / "m.safetensors") == expected


def test_a_run_goes_on_with_what_was_frozen_only(tmp_path):
    whole, half = make(), make()
    for model in (whole, half):
        model.freeze("0.*")
    fit(whole, 4)
    fit(half, 2, checkpoint=tmp_path)
    again = make()
    with pytest.raises(nn.StateError, match="frozen"):
        fit(again, 4, checkpoint=tmp_path, resume=True)
    again.freeze("0.*", statistics=False)
    with pytest.raises(nn.StateError, match=r"running_mean"):
        fit(again, 4, checkpoint=tmp_path, resume=True)
    again.freeze("0.*")
    fit(again, 4, checkpoint=tmp_path, resume=True)
    assert np.array_equal(again.params, whole.params) and np.array_equal(again.buffers, whole.buffers)


def test_debug_and_averages_take_it_as_it_is():
    model = make()
    model.freeze("0.*")
    before = model[0].buffers.copy()
    with nn.debug(model):
        model.loss_and_grad(X, T, nn.CrossEntropy())
        assert any(isinstance(step.layer, FrozenBatchNorm) for step in model.plan.training[0].steps if hasattr(step, "layer"))
    average = nn.WeightAverage(0.5)
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.SGD(0.1), callbacks=[average])
    trainer.fit((X, T), progress=False)
    np.testing.assert_allclose(model[0].buffers, before, rtol=1e-6)


FOLDED = {
    "norm": lambda: [nn.Conv2D(6, 3, bias=False), nn.BatchNorm()],
    "bias": lambda: [nn.Conv2D(6, 3, padding=1), nn.BatchNorm(scale=False)],
    "relu": lambda: [nn.Conv2D(6, 3, stride=2), nn.BatchNorm(shift=False), nn.ReLU()],
    "pool": lambda: [nn.Conv2D(6, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2)],
    "groups": lambda: [nn.Conv2D(6, 3, groups=3), nn.BatchNorm(), nn.ReLU()],
    "before": lambda: [nn.BatchNorm(), nn.ReLU(), nn.Conv2D(6, 3, padding=1), nn.BatchNorm(), nn.ReLU()],
}


@pytest.mark.parametrize("layers", FOLDED)
def test_inference_with_norms_in_the_filters(both_kernels, layers):
    """The outputs of the layers one by one, also after each array of the model has changed."""
    model = nn.Sequential(*FOLDED[layers](), nn.Flatten(), nn.Dense(3), input_shape=(8, 8, 3))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 8, 8, 3)).astype("f")
    for _ in range(3):
        model.forward(x * 3 + 1, training=True)
    before = model(x)
    for name, array in {"": model.params[:0], **model.named_params(), **model.named_buffers()}.items():
        array[...] = array * 1.5 + 0.1
        joined = model(x)
        assert not name or not np.array_equal(joined, before), name
        model.rewrite = False
        np.testing.assert_allclose(joined, model(x), rtol=1e-4, atol=1e-4)
        model.rewrite = True
        before = model(x)
