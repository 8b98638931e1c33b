"""A loss or a gradient that is not finite changes nothing: no parameter, no state of an optimiser, no statistic, no file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

OPTIMISERS = {
    "SGD": lambda: nn.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: nn.Adam(0.01, clip_norm=1.0),
    "AdamW": lambda: nn.AdamW(0.01),
    "RMSProp": lambda: nn.RMSProp(0.01),
    "Muon": lambda: nn.ParameterGroups({"*.W": nn.Muon(0.05), "*": nn.SGD(0.1, momentum=0.9)}, clip_norm=1.0),
}
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy's own
each_optimiser = pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
bad_numbers = st.sampled_from([np.nan, np.inf, -np.inf])


class BadDelta(nn.MSE):
    """A finite loss whose delta holds a bad number wherever the target is 7."""

    def __init__(self, bad):
        self.bad = bad

    def per_sample(self, backend, z, t):
        losses, delta = super().per_sample(backend, z, t)
        return losses, np.where(t == 7, self.bad, delta)


def make_model():
    return nn.Sequential(nn.Dense(5), nn.BatchNorm(), nn.ReLU(), nn.Dense(2), input_shape=(3,))


def batches(bad_step=None, steps=4):
    rng = np.random.default_rng(0)
    found = [(rng.standard_normal((6, 3)), rng.standard_normal((6, 2))) for _ in range(steps)]
    if bad_step is not None:
        found[bad_step][1][1] = 7
    return found


def values(model, optimizer):
    parts = getattr(optimizer, "groups", {"": optimizer}).values()
    state = [vector for part in parts for vector in part.state_vectors.values()]
    return [array.copy() for array in (model.params, model.buffers, *state)]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@each_optimiser
@given(bad_numbers, st.integers(0, 3))
def test_a_skipped_step_leaves_everything_as_if_it_had_not_been(make, bad, step):
    runs = []
    for data in (batches(step), batches()[:step] + batches()[step + 1 :]):
        model, optimizer = make_model(), make()
        trainer = nn.Trainer(model, BadDelta(bad), optimizer)
        if len(data) == 4:
            with pytest.warns(RuntimeWarning, match="the gradient of 0.W"):
                trainer.fit(data, nonfinite="skip", progress=False)
        else:
            trainer.fit(data, progress=False)
        runs.append(values(model, optimizer))
        assert trainer.steps == 3
    assert same(*runs)


@each_optimiser
@given(bad_numbers, st.integers(0, 3))
def test_a_run_ends_before_a_bad_gradient_is_applied(make, bad, step):
    runs = []
    for data in (batches(step), batches()[:step]):
        model, optimizer = make_model(), make()
        trainer = nn.Trainer(model, BadDelta(bad), optimizer)
        if len(data) == 4:
            with pytest.raises(nn.NonFiniteError, match=rf"step {step} .*the gradient of 0.W"):
                trainer.fit(data, progress=False)
        elif data:
            trainer.fit(data, progress=False)
        runs.append(values(model, optimizer)[: 2 if step == 0 else None])
        assert trainer.steps == step
    assert same(*(run[: len(runs[1])] for run in runs))


@each_optimiser
@given(bad_numbers)
def test_a_loop_by_hand_is_told_and_nothing_is_changed(make, bad):
    model, optimizer = make_model(), make()
    (x, t), (again, bad_t) = batches(1, steps=2)
    model.loss_and_grad(x, t, BadDelta(bad))
    optimizer.step(model)
    before = values(model, optimizer)
    model.loss_and_grad(again, bad_t, BadDelta(bad))
    with pytest.raises(nn.NonFiniteError, match=r"the gradient of 0\.W"):
        optimizer.step(model)
    assert same(before, values(model, optimizer))
    parts = getattr(optimizer, "groups", {"": optimizer}).values()
    assert [part.steps for part in parts] == [1] * len(parts)


def test_the_first_bad_gradient_is_named():
    model = make_model()
    model.named_grads()["1.beta"][2] = np.nan
    model.named_grads()["3.W"][0, 0] = np.inf
    with pytest.raises(nn.NonFiniteError, match=r"the gradient of 1\.beta is not finite"):
        nn.SGD(0.1).step(model)


def test_a_gradient_that_overflows_where_the_loss_does_not(tmp_path):
    """Inputs of 1e25 by weights of 1e-7: the loss is 1e36, its gradient beyond float32."""
    model = nn.Sequential(nn.Dense(1, bias=False), input_shape=(1,))
    model.params[...] = 1e-7
    x, t = np.full((64, 1), 1e25), np.zeros((64, 1))
    trainer = nn.Trainer(model, nn.MSE(), nn.Adam(clip_norm=1.0))
    with pytest.raises(nn.NonFiniteError, match=r"the loss is 9\.\d+e\+35 at step 0 .*the gradient of 0\.W is not finite"):
        trainer.fit((x, t), progress=False, checkpoint=tmp_path)
    assert model.params == np.float32(1e-7)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_clipping_by_a_norm_whose_square_overflows(dtype, data):
    largest = float(np.finfo(dtype).max) / 4
    scale = data.draw(st.sampled_from([1e-3, 1.0, 1e10, largest**0.5 * 3, largest / 10, largest]))
    model = nn.Sequential(nn.Dense(2, bias=False), input_shape=(1,), dtype=dtype)
    for clip_norm, step in ((1.0, min(1.0, 5 * scale)), (1e-3, min(1e-3, 5 * scale))):
        model.params[...] = 0
        model.grads[...] = [3 * scale, 4 * scale] if scale < largest else [0.6 * scale, 0.8 * scale]
        nn.SGD(1.0, clip_norm=clip_norm).step(model)
        np.testing.assert_allclose(model.params, [-0.6 * step, -0.8 * step], rtol=1e-3 if step < 1e-2 else 1e-5)
