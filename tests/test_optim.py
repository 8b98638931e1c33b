"""Optimisers against their formulas, clipping, groups, freezing."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import single_threaded_blas
from nnlite.optim.optimizer import _blocks

STEPS = 20


def make_model(dtype="float64"):
    return nn.Sequential(nn.Dense(5), nn.Tanh(), nn.Dense(2), input_shape=(3,), seed=1, dtype=dtype)


def train(optimizer, model=None, steps=STEPS):
    """The parameters after some steps on fixed gradients."""
    model = model or make_model()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        model.grads = rng.standard_normal(model.grads.shape)
        optimizer.step(model)
    return model.params


def by_formula(update, steps=STEPS):
    """The same, with `update(p, g, t, state)` written for single numbers."""
    rng, p = np.random.default_rng(0), make_model().params.copy()
    states = [{} for _ in p]
    for t in range(1, steps + 1):
        g = rng.standard_normal(p.shape)
        p = np.array([update(p[i], g[i], t, states[i]) for i in range(len(p))])
    return p


def sgd(rate, momentum=0.0, nesterov=False, decay=0.0):
    def update(p, g, t, state):
        g = g + decay * p
        v = state["v"] = momentum * state.get("v", 0) + g
        return p - rate * (g + momentum * v if nesterov else v)

    return update


def adam(rate=1e-3, b1=0.9, b2=0.999, eps=1e-8, decay=0.0, decoupled=False):
    def update(p, g, t, state):
        g = g if decoupled else g + decay * p
        p = p - rate * decay * p if decoupled else p
        m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
        v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * g * g
        return p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return update


def rmsprop(rate=0.01, alpha=0.99, eps=1e-8, decay=0.0):
    def update(p, g, t, state):
        g = g + decay * p
        v = state["v"] = alpha * state.get("v", 0) + (1 - alpha) * g * g
        return p - rate * g / (np.sqrt(v) + eps)

    return update


@pytest.mark.parametrize(
    ("optimizer", "formula"),
    [
        (nn.SGD(), sgd(0.01)),
        (nn.SGD(0.1, momentum=0.9), sgd(0.1, 0.9)),
        (nn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1), sgd(0.1, 0.9, True, 0.1)),
        (nn.Adam(), adam()),
        (nn.Adam(0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1), adam(0.01, 0.8, 0.9, 1e-3, 0.1)),
        (nn.AdamW(), adam(decay=0.01, decoupled=True)),
        (nn.AdamW(0.1, weight_decay=0.3), adam(0.1, decay=0.3, decoupled=True)),
        (nn.RMSProp(), rmsprop()),
        (nn.RMSProp(0.1, alpha=0.9, weight_decay=0.2), rmsprop(0.1, 0.9, decay=0.2)),
    ],
)
def test_formula(optimizer, formula):
    np.testing.assert_allclose(train(optimizer), by_formula(formula), rtol=1e-11)


def make_muon():
    return nn.ParameterGroups({"*.W": nn.Muon(), "*": nn.SGD(0.1)})


@pytest.mark.parametrize(
    "make", [lambda: nn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01), nn.Adam, nn.AdamW, nn.RMSProp, make_muon]
)
def test_threads_and_blocks_change_no_bit(make):
    results = []
    for threads in (1, 2, 3):
        nn.set_num_threads(threads)
        model = nn.Sequential(nn.Dense(300), nn.Dense(100), input_shape=(200,))
        results.append(train(make(), model, 3).copy())
    assert all(np.array_equal(results[0], r) for r in results)


@pytest.mark.parametrize("threads", [1, 2])
def test_muon_multiplies_on_one_blas_thread(threads, monkeypatch):
    nn.set_num_threads(threads)
    seen = []

    def spy(backend, M, steps):
        seen.append(single_threaded_blas.is_on)
        return M

    monkeypatch.setattr("nnlite.optim.muon.orthogonalize", spy)
    model = nn.Sequential(nn.Dense(8, bias=False), nn.Dense(3, bias=False), input_shape=(5,))
    train(nn.Muon(), model, 2)
    assert seen == [True] * 4 and not single_threaded_blas.is_on


def test_blocks_begin_at_lines_of_the_cache_and_leave_nothing_out():
    places = [slice(3, 1003), slice(1010, 5000)]
    blocks = _blocks(places, 300)
    assert blocks[0].start == 3 and blocks[-1].stop == 5000
    for before, block in pairwise(blocks):
        assert block.start == before.stop or (before.stop, block.start) == (1003, 1010)
        assert block.start % 16 == 0 or block.start == 1010
    assert max(block.stop - block.start for block in blocks) < 300 + 16 and len(blocks) == 4 + 14


def test_learning_rate_may_change_and_follow_a_schedule():
    optimizer = nn.SGD(0.1)
    optimizer.learning_rate = 0.0
    before = make_model().params.copy()
    assert np.array_equal(train(optimizer), before)
    seen = []

    def schedule(step):
        seen.append(step)
        return 1.0 if step == 2 else 0.0

    model = make_model()
    train(nn.SGD(schedule), model, 2)
    assert np.array_equal(model.params, before)
    train(nn.SGD(schedule), model, 3)
    assert not np.array_equal(model.params, before)
    assert seen == [0, 1, 0, 1, 2]


def muon(p, gradients, rate, momentum, nesterov, decay, renormalize, steps):
    """Written out once more, by singular values: Newton-Schulz is a polynomial of each."""
    v, shape, p = 0, p.shape, p.reshape(len(p), -1)
    for g in gradients:
        v = momentum * v + g.reshape(p.shape)
        M = g.reshape(p.shape) + momentum * v if nesterov else v
        U, s, Vt = np.linalg.svd(M / (np.linalg.norm(M) + 1e-7), full_matrices=False)
        for _ in range(steps):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        if renormalize:
            p = p * np.sqrt(len(p)) / np.linalg.norm(p)
        p = (1 - rate * decay) * p - rate * (U * s) @ Vt
    return p.reshape(shape)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay", "renormalize", "steps"),
    [(0.95, True, 0.0, False, 5), (0.6, True, 0.0, True, 3), (0.9, False, 0.1, False, 1), (0.0, False, 0.0, True, 4)],
)
def test_muon(momentum, nesterov, decay, renormalize, steps):
    model = nn.Sequential(
        nn.Conv2D(4, 3, bias=False), nn.Flatten(), nn.Dense(40, bias=False), nn.Dense(3), input_shape=(4, 4, 2), dtype="float64"
    )
    options = {"momentum": momentum, "nesterov": nesterov, "renormalize": renormalize}
    optimizer = nn.Muon(0.1, weight_decay=decay, iterations=steps, **options)
    groups = nn.ParameterGroups({"*.W": optimizer, "*": nn.SGD(0.5)})
    rng, start = np.random.default_rng(0), {name: view.copy() for name, view in model.named_params().items()}
    gradients = {name: [] for name in start}
    for _ in range(3):
        model.grads = rng.standard_normal(model.grads.shape)
        for name, g in model.named_grads().items():
            gradients[name].append(g.copy())
        groups.step(model)
    for name, view in model.named_params().items():
        wanted = start[name] - 0.5 * sum(gradients[name])
        if name.endswith("W"):
            wanted = muon(start[name], gradients[name], 0.1, momentum, nesterov, decay, renormalize, steps)
        np.testing.assert_allclose(view, wanted, rtol=1e-9, atol=1e-9)


def test_muon_by_itself_makes_five_iterations_and_follows_a_schedule():
    model = nn.Sequential(nn.Dense(6, bias=False), input_shape=(4,), dtype="float64")
    rates, start = [0.1, 0.2, 0.05], model.params.reshape(6, 4).copy()
    optimizer = nn.Muon(rates.__getitem__, momentum=0)
    model.grads = np.random.default_rng(0).standard_normal(24)
    for _ in rates:
        optimizer.step(model)
    wanted = muon(start, [model.grads], sum(rates), 0, False, 0, False, steps=5)
    np.testing.assert_allclose(model.params.reshape(6, 4), wanted, rtol=1e-9)
    assert optimizer.steps == 3


@pytest.mark.parametrize("shape", [(30, 30), (10, 90), (90, 10)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    from nnlite.backend import get_backend
    from nnlite.optim.muon import orthogonalize

    M = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result, (U, _, Vt) = orthogonalize(get_backend("cpu"), M, 5), np.linalg.svd(M, full_matrices=False)
    np.testing.assert_allclose(result, U * np.diag(U.T @ result @ Vt.T) @ Vt, atol=1e-4)  # the same singular vectors
    values = np.linalg.svd(result, compute_uv=False)
    assert values.shape == (min(shape),) and values.max() < 1.3 and np.median(values) > 0.65


def test_muon_refuses_vectors_and_leaves_frozen_filters():
    model = make_model()
    with pytest.raises(nn.StateError, match=r"0\.b has shape \(5,\)"):
        nn.Muon().step(model)
    model.freeze("*.b")
    model.freeze("0.W")
    before = model.params.copy()
    model.grads = np.ones(len(model.grads))
    nn.Muon().step(model)
    changed = {name for name, view in model.named_params().items() if not np.array_equal(view.ravel(), before[: view.size])}
    assert np.array_equal(model[0].W.ravel(), before[:15]) and "2.W" in changed
    assert not np.array_equal(model.params, before)


def test_clipping_bounds_the_norm_of_all_gradients():
    model = make_model()
    model.grads = np.linspace(-3, 3, len(model.grads))
    wanted = model.grads * 0.5 / (np.linalg.norm(model.grads) + 1e-6)
    before = model.params.copy()
    nn.SGD(1.0, clip_norm=0.5).step(model)
    np.testing.assert_allclose(before - model.params, wanted, rtol=1e-9)
    model.grads = small = np.full(len(model.grads), 1e-3)
    before = model.params.copy()
    nn.SGD(1.0, clip_norm=0.5).step(model)
    np.testing.assert_allclose(before - model.params, small, rtol=1e-9)


def test_frozen_parameters_and_their_state_stay():
    model, optimizer = make_model(), nn.Adam(0.1)
    train(optimizer, model, 2)
    model.freeze("0.*")
    params = {name: view.copy() for name, view in model.named_params().items()}
    first = slice(0, model[0].W.size + model[0].b.size)
    state = {name: vector[first].copy() for name, vector in optimizer.state_vectors.items()}
    train(optimizer, model, 2)
    for name, view in model.named_params().items():
        assert np.array_equal(view, params[name]) == name.startswith("0.")
    assert all(np.array_equal(vector[first], state[name]) for name, vector in optimizer.state_vectors.items())
    model.unfreeze("*")
    train(optimizer, model, 1)
    assert not np.array_equal(model[0].W, params["0.W"])


def test_groups_have_their_own_rates_and_optimisers():
    model = make_model()
    before = {name: view.copy() for name, view in model.named_params().items()}
    groups = nn.ParameterGroups({"0.*": nn.SGD(0.5), "*.b": nn.SGD(0.0), "*": nn.AdamW(0.1)})
    model.grads = np.ones(len(model.grads))
    groups.step(model)
    after = model.named_params()
    np.testing.assert_allclose(after["0.W"], before["0.W"] - 0.5)
    np.testing.assert_allclose(after["0.b"], before["0.b"] - 0.5)  # the first pattern that matches
    np.testing.assert_array_equal(after["2.b"], before["2.b"])
    np.testing.assert_allclose(after["2.W"], before["2.W"] * (1 - 0.1 * 0.01) - 0.1, rtol=1e-6)


def test_groups_clip_together():
    model = make_model()
    model.grads = np.ones(len(model.grads))
    before = model.params.copy()
    nn.ParameterGroups({"0.*": nn.SGD(1.0), "*": nn.SGD(1.0)}, clip_norm=1.0).step(model)
    assert np.linalg.norm(before - model.params) == pytest.approx(1.0, rel=1e-5)


def test_bad_arguments():
    model = make_model()
    for make in (
        lambda: nn.SGD(-1),
        lambda: nn.SGD(0.1, nesterov=True),
        lambda: nn.SGD(0.1, momentum=1),
        lambda: nn.SGD(0.1, momentum=-0.5),
        lambda: nn.RMSProp(alpha=-0.5),
        lambda: nn.Muon(momentum=-0.5),
        lambda: nn.Adam(betas=(1, 0.9)),
        lambda: nn.Adam(clip_norm=0),
        lambda: nn.RMSProp(alpha=2),
        lambda: nn.RMSProp(alpha=1),
        lambda: nn.Adam(betas=(0.9, 1)),
        lambda: nn.Adam(betas=(-0.1, 0.9)),
        lambda: nn.AdamW(weight_decay=-1),
        lambda: nn.Muon(momentum=1),
        lambda: nn.Muon(iterations=0),
        lambda: nn.ParameterGroups({"*": nn.SGD(clip_norm=1)}),
        lambda: nn.ParameterGroups({"*": nn.SGD(), "0.*": nn.SGD()}).step(model),
    ):
        with pytest.raises(ValueError):
            make()
    optimizer = nn.Adam(betas=(0, 0))
    nn.RMSProp(alpha=0).step(model)
    optimizer.step(model)
    with pytest.raises(nn.StateError, match="make a new optimiser"):
        optimizer.step(nn.Sequential(nn.Dense(3), input_shape=(2,)))


def test_an_optimiser_with_a_state_belongs_to_one_model():
    optimizer, model = nn.Adam(0.1), make_model()
    train(optimizer, model, steps=2)
    with pytest.raises(nn.StateError, match="this Adam holds the state of another model: make a new optimiser for each"):
        train(optimizer, make_model(), steps=1)
    train(optimizer, model, steps=1)
    train(pickle.loads(pickle.dumps(optimizer)), make_model(), steps=1)  # a copy finds its own model
    plain = nn.SGD(0.1)
    for _ in range(2):
        train(plain, make_model(), steps=1)


def test_adam_goes_on_with_other_betas():
    optimizer, model = nn.Adam(0.1), make_model()
    betas = [(0.9, 0.999), (0.5, 0.9), (0.5, 0.9), (0.8, 0.99)]
    rng, p, m, v = np.random.default_rng(1), model.params.copy(), 0, 0
    for t, (b1, b2) in enumerate(betas, 1):
        optimizer.betas = b1, b2
        g = model.grads = rng.standard_normal(p.shape)
        optimizer.step(model)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - 0.1 * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        np.testing.assert_allclose(model.params, p, rtol=1e-12)
    with pytest.raises(ValueError, match="betas"):
        optimizer.betas = 1, 0.9


def test_momentum_may_begin_later():
    optimizer, model = nn.SGD(0.1), make_model()
    p, v = model.params.copy(), 0
    for t in range(3):
        optimizer.momentum = 0.9 if t else 0.0
        model.grads[...] = 1
        optimizer.step(model)
        v = 0.9 * v + 1 if t else 0
        p = p - 0.1 * (v if t else 1)
    np.testing.assert_allclose(model.params, p, rtol=1e-12)


@pytest.mark.parametrize("make", [nn.SGD, lambda: nn.SGD(0.1, momentum=0.9), nn.Adam, nn.AdamW, nn.RMSProp])
@given(pattern=st.lists(st.sets(st.sampled_from(["0.W", "0.b", "2.W", "2.b"])), min_size=1, max_size=12))
def test_each_parameter_has_its_own_clock(make, pattern):
    """Frozen in some steps, it moves in the others as one that is optimised alone, and in those steps only."""
    rng, model, optimizer = np.random.default_rng(0), make_model(), make()
    alone = {}
    for name, value in model.named_params().items():
        single = nn.Sequential(nn.Dense(value.size, bias=False), input_shape=(1,), dtype="float64")
        single.params[...] = value.reshape(-1)
        alone[name] = single, make()
    for frozen in pattern:
        model.unfreeze("*")
        for name in frozen:
            model.freeze(name)
        model.grads[...] = rng.standard_normal(model.grads.shape)
        for name, (single, own) in alone.items():
            if name not in frozen:
                single.grads[...] = model.named_grads()[name].reshape(-1)
                own.step(single)
        optimizer.step(model)
    for name, (single, _) in alone.items():
        np.testing.assert_allclose(model.named_params()[name].reshape(-1), single.params, rtol=1e-12, err_msg=name)


def test_after_long_freezing_the_first_step_of_adam_is_one_learning_rate():
    model, optimizer = make_model(), nn.Adam(1e-3)
    model.freeze("0.*")
    for _ in range(3000):
        model.grads[...] = 0.1
        optimizer.step(model)
    model.unfreeze("0.*")
    before = model[0].W.copy()
    model.grads[...] = 0.1
    optimizer.step(model)
    np.testing.assert_allclose(before - model[0].W, 1e-3, rtol=1e-6)


def test_groups_have_clocks_of_their_own():
    model = make_model()
    groups = {"0.*": nn.Adam(1e-3), "*": nn.Adam(1e-3)}
    optimizer = nn.ParameterGroups(groups)
    model.freeze("0.W")
    for _ in range(3):
        model.grads[...] = 0.1
        optimizer.step(model)
    assert [dict(group.missed) for group in groups.values()] == [{"0.W": 3}, {}]


def test_the_rate_that_is_shown_is_that_of_the_last_step():
    from nnlite.optim.groups import last_rates

    optimizer = nn.SGD(lambda step: 1.0 + step)
    assert last_rates(optimizer) == {"learning_rate": 1.0}
    model = make_model()
    for rate in (1.0, 2.0, 3.0):
        optimizer.step(model)
        assert last_rates(optimizer) == {"learning_rate": rate}


@pytest.mark.parametrize("kind", [nn.SGD, nn.Adam, nn.AdamW, nn.RMSProp, nn.Muon])
def test_the_rate_may_be_named_and_all_else_must(kind):
    assert kind(learning_rate=0.5).rate == kind(0.5).rate == 0.5
    with pytest.raises(TypeError):
        kind(0.5, 0.9)


@pytest.mark.parametrize("clip_norm", [0, -1])
def test_groups_refuse_norms_that_are_not_positive(clip_norm):
    with pytest.raises(ValueError, match="clip_norm"):
        nn.ParameterGroups({"*": nn.SGD()}, clip_norm=clip_norm)
