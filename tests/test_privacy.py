"""Private training: clipped sums, Poisson batches, noise, epsilon, and what is refused.

What needs dp-accounting is run by `make privacy`, in an environment of its own.
"""

import math
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from cases import CASES, fixed
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from test_checkpoint import KillAt, Killed

import nnlite as nn
from nnlite.privacy import PrivateTrainer, epsilon_of
from nnlite.privacy.clipping import Clipping
from nnlite.privacy.ledger import Ledger
from nnlite.privacy.sampling import PoissonBatches, noise

with_accounting = pytest.mark.skipif(
    find_spec("dp_accounting") is None, reason="needs dp-accounting, which `make privacy` installs in an environment of its own"
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 6))
T = (X[:, 0] > X[:, 1]).astype(int)
WITH_PARAMETERS = ["Dense", "Conv2D", "Conv2D depthwise", "Conv2D 3x3", "Conv1D", "PReLU", "LayerNorm", "GroupNorm"]
NETWORKS = {
    **{name: CASES[name] for name in ("Residual", "Concat", "Embedding")},
    "CNN": fixed(
        lambda: [
            nn.Residual(nn.Conv2D(4, 3, padding=1), nn.GroupNorm(2), nn.ReLU(), shortcut=nn.Conv2D(4, 1)),
            nn.MaxPool2D(2),
            nn.Sequential(nn.Conv2D(2, 2), nn.PReLU(), nn.Flatten()),
            nn.Dense(3),
            nn.LayerNorm(),
        ],
        (6, 7, 3),
    ),
    "of ids": fixed(
        lambda: [nn.Embedding(5, 3), nn.Conv1D(4, 2), nn.LayerNorm(), nn.Tanh(), nn.GlobalMaxPool1D(), nn.Dense(2)], (6,)
    ),
}


def clipped(model, x, t, loss, clip_norm, expected):
    """By the two passes; also the mean loss and the outputs."""
    out = np.empty((len(x), *model.out_shape), model.dtype)
    x, t, _, total = model.prepare_batch(x, t, loss)
    mean = Clipping(model, clip_norm, expected).loss_and_grad(x, t, loss, total, out)
    return model.grads.copy(), mean, out


def each_gradient(model, x, t, loss):
    """(N, parameters), in batches of one."""
    return np.array([(model.loss_and_grad(x[i : i + 1], t[i : i + 1], loss), model.grads.copy())[1] for i in range(len(x))])


def sum_of_clipped(gradients, clip_norm, expected):
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients * np.minimum(1, clip_norm / np.maximum(norms, 1e-300))).sum(axis=0) / expected


@pytest.mark.parametrize("case", [*WITH_PARAMETERS, *NETWORKS])
@settings(max_examples=5)
@given(data=st.data())
def test_the_clipped_sum_is_that_of_a_loop(case, data):
    layers, shape = data.draw((CASES | NETWORKS)[case])
    n, rng = data.draw(st.integers(1, 5)), np.random.default_rng(data.draw(st.integers(0, 9)))
    model = nn.Sequential(*layers, input_shape=shape, dtype="float64")
    if not model.params.size:
        reject()
    model.params += 0.1 * rng.standard_normal(model.params.size)  # biases are not all zero
    x = rng.integers(0, layers[0].n, (n, *shape)) if isinstance(layers[0], nn.Embedding) else rng.standard_normal((n, *shape))
    t = rng.standard_normal((n, *model.out_shape))
    gradients = each_gradient(model, x, t, nn.MSE())
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1))) or 1.0
    found, mean, out = clipped(model, x, t, nn.MSE(), clip_norm, expected=3)
    np.testing.assert_allclose(found, sum_of_clipped(gradients, clip_norm, 3), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(out, model(x), atol=1e-12)
    assert mean == pytest.approx(nn.MSE()(out, t)[0])


@pytest.mark.usefixtures("both_kernels")
def test_a_cnn_in_float32_on_any_number_of_threads():
    model = nn.Sequential(
        nn.Conv2D(16, 3, padding=1),
        nn.GroupNorm(4),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dense(5),
        input_shape=(16, 16, 3),
    )
    x, t = RNG.standard_normal((70, 16, 16, 3)).astype("float32"), RNG.integers(0, 5, 70)
    found = [(nn.set_num_threads(k), clipped(model, x, t, nn.CrossEntropy(), 1.0, 70)[0])[1] for k in (1, 2)]
    assert found[0].tobytes() == found[1].tobytes()
    wanted = sum_of_clipped(each_gradient(model, x, t, nn.CrossEntropy()), 1.0, 70)
    np.testing.assert_allclose(found[0], wanted, atol=2e-6)


def test_frozen_parameters_are_no_part_of_the_norm():
    model = nn.Sequential(nn.Dense(4), nn.LayerNorm(), nn.Tanh(), nn.Dense(2), input_shape=(6,), dtype="float64")
    model.freeze("0.*")
    clipping = Clipping(model, 0.1, 1)
    for freeze, pattern in ((model.freeze, "3.W"), (model.freeze, "1.gamma"), (model.unfreeze, "*")):
        freeze(pattern)
        x, t, _, total = model.prepare_batch(X, T, nn.CrossEntropy())
        clipping.loss_and_grad(x, t, nn.CrossEntropy(), total, None)
        found = model.grads.copy()
        np.testing.assert_allclose(found, sum_of_clipped(each_gradient(model, X, T, nn.CrossEntropy()), 0.1, 1), atol=1e-12)


def test_both_passes_drop_the_same_values():
    model = nn.Sequential(nn.Dense(30), nn.Dropout(0.5), nn.Dense(2), input_shape=(6,), dtype="float64")
    for i in range(5):
        found, _, _ = clipped(model, X[i : i + 1], T[i : i + 1], nn.CrossEntropy(), 1e-3, 1)
        assert np.linalg.norm(found) == pytest.approx(1e-3)


def test_positions_count_as_parts_of_their_sample():
    model = nn.Sequential(nn.Conv2D(3, 1), input_shape=(4, 5, 2), dtype="float64")
    x, t = RNG.standard_normal((6, 4, 5, 2)), RNG.integers(0, 3, (6, 4, 5))
    gradients = each_gradient(model, x, t, nn.CrossEntropy())
    found, mean, _ = clipped(model, x, t, nn.CrossEntropy(), 0.05, 6)
    np.testing.assert_allclose(found, sum_of_clipped(gradients, 0.05, 6), atol=1e-12)
    assert mean == pytest.approx(nn.CrossEntropy()(model(x), t)[0])


def batches_of(n, batch_size, seed, steps, start=0):
    ledger = Ledger(1.0, 1.0, seed)
    ledger.spent[0.0, 1.0] = start
    source = PoissonBatches(nn.data.Dataset(np.arange(n)[:, None], np.arange(n)), ledger, None)
    return [t for _, t in source.batches(batch_size)][:steps], source


def test_batches_are_poissons():
    drawn, source = batches_of(600, 6, seed=1, steps=100)
    assert len(drawn) == 100 and source.rows(0, 6).tolist() == drawn[0].tolist()
    lengths = np.array([len(t) for t in drawn])
    assert abs(lengths.mean() - 6) < 4 * math.sqrt(6 / 100) and 3 < lengths.var() < 10
    counts = np.bincount(np.concatenate(drawn), minlength=600)  # of each sample: about Poisson's with mean 1
    assert 0.75 < counts.var() < 1.25 and abs((counts == 0).mean() - math.exp(-1)) < 0.08
    again, other = (batches_of(600, 6, seed, 100)[0] for seed in (1, 2))
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True)) and drawn[0].tolist() != other[0].tolist()
    later, _ = batches_of(600, 6, 1, 1, start=7)
    assert later[0].tolist() == drawn[7].tolist()
    assert [len(t) for t in batches_of(5, 5, 1, 9)[0]] == [5]


def test_noise_is_normal_and_never_the_same():
    values = noise(3, 5, 40_000)
    assert abs(values.mean()) < 0.02 and values.std() == pytest.approx(1, abs=0.02) and abs(values).max() > 3.5
    assert (noise(3, 5, 40_000) == values).all()
    for other in (noise(3, 6, 40_000), noise(4, 5, 40_000)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.03


def private(**options):
    layers = options.pop("layers", (nn.Dense(4), nn.Tanh(), nn.Dense(2)))
    arguments = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "seed": 0, "metrics": [nn.Accuracy()]} | options
    loss, optimizer = arguments.pop("loss", nn.CrossEntropy()), arguments.pop("optimizer", nn.SGD(0.5, momentum=0.9))
    return PrivateTrainer(nn.Sequential(*layers, input_shape=(6,)), loss, optimizer, **arguments)


def trained(epochs=3, data=(X, T), batch_size=16, more=None, **options):
    trainer = private(**options)
    trainer.fit(data, epochs, batch_size, progress=False, **(more or {}))
    return trainer


# ---- with dp-accounting


@with_accounting
def test_epsilon_of_the_literature():
    plan = 256 / 60_000, 1.1, 14_040, 1e-5
    assert round(epsilon_of(*plan, accountant="rdp"), 2) == 2.59 and round(epsilon_of(*plan), 2) == 2.38


@with_accounting
def test_little_noise_takes_little_memory():
    """In steps of 1e-4 its losses would take 38 GiB. Of one step with all samples epsilon is nearly 1 / (2 sigma^2)."""
    assert epsilon_of(1.0, 1e-3, 1, 1e-5) == pytest.approx(5e5, rel=0.02)


@with_accounting
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1.0, 10, 1e-5), "sample_rate must be a number in"),
        ((1.5, 1.0, 10, 1e-5), "sample_rate"),
        ((0.1, -1.0, 10, 1e-5), "noise_multiplier"),
        ((0.1, 1.0, 0, 1e-5), "steps must be a whole number, at least 1"),
        ((0.1, 1.0, 10, 1.0), "delta"),
    ],
)
def test_no_epsilon_of_a_plan_that_makes_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        epsilon_of(*arguments)
    with pytest.raises(ValueError, match='accountant must be "pld" or "rdp"'):
        epsilon_of(0.1, 1.0, 10, 1e-5, accountant="prv")


@with_accounting
def test_epsilon_counts_all_steps():
    trainer = private()
    with pytest.raises(nn.StateError, match="no step was made"):
        trainer.epsilon()
    trainer.fit((X, T), 2, 16, progress=False)
    assert trainer.steps == 10 and trainer.epsilon() == epsilon_of(16 / 80, 1.0, 10, 1e-3)
    assert trainer.epsilon(accountant="rdp") == epsilon_of(16 / 80, 1.0, 10, 1e-3, accountant="rdp")
    first = trainer.epsilon()
    trainer.callbacks = []  # changes nothing
    for name in ("noise_multiplier", "clip_norm"):
        with pytest.raises(AttributeError, match=name):
            setattr(trainer, name, 9.0)
    trainer.fit((X, T), 1, 80, progress=False)  # one step on all samples
    assert trainer.steps == 11 and trainer.ledger.spent == {(0.2, 1.0): 10, (1.0, 1.0): 1}
    assert trainer.epsilon() > first
    assert trained(noise_multiplier=0).epsilon() == math.inf


@with_accounting
def test_noise_has_the_size_that_was_asked_for():
    optimizer = nn.SGD(1.0)
    trainer = private(layers=(nn.Dense(300), nn.Tanh(), nn.Dense(2)), noise_multiplier=50.0, clip_norm=0.3, optimizer=optimizer)
    before = trainer.model.params.copy()
    trainer.model.freeze("2.W")
    trainer.fit((X, T), 1, 80, progress=False)
    change = trainer.model.params - before
    frozen = trainer.model.named_params()["2.W"].size
    assert (change == 0).sum() == frozen and not trainer.model.named_grads()["2.W"].any()
    assert change[change != 0].std() == pytest.approx(50.0 * 0.3 / 80, rel=0.05)


@with_accounting
def test_without_noise_a_step_is_the_clipped_gradient():
    trainer = private(noise_multiplier=0, clip_norm=0.2, optimizer=nn.SGD(1.0))
    model = trainer.model
    wanted = model.params - sum_of_clipped(each_gradient(model, X, T, nn.CrossEntropy()), 0.2, 80)
    trainer.fit((X, T), 1, 80, progress=False)
    np.testing.assert_allclose(model.params, wanted, atol=1e-6)


@with_accounting
def test_it_learns_and_a_seed_repeats_it():
    history = {}
    for seed in (0, 0, 1, None):
        trainer = trained(10, noise_multiplier=0.7, seed=seed, more={"validation": (X, T)})
        assert trainer.evaluate((X, T))["accuracy"] > 0.8
        history.setdefault(seed, []).append(trainer.model.params.tobytes())
    assert len(trainer.history["val_accuracy"]) == 10 and history[0][0] == history[0][1]
    assert len({history[0][0], history[1][0], history[None][0]}) == 3


@with_accounting
@pytest.mark.parametrize("seed", [None, 3])
def test_a_resumed_run_goes_on_with_its_noise_and_its_epsilon(tmp_path, seed):
    whole = private(seed=seed)
    keys = whole.ledger.key
    whole.fit((X, T), 3, 16, progress=False)
    stopped = private(seed=seed, callbacks=[KillAt(8)])
    stopped.ledger.key = keys
    with pytest.raises(Killed):
        stopped.fit((X, T), 3, 16, progress=False, checkpoint=tmp_path, every=2)
    resumed = private(seed=seed)
    resumed.fit((X, T), 3, 16, progress=False, checkpoint=tmp_path, every=2, resume=True)
    assert resumed.model.params.tobytes() == whole.model.params.tobytes() and resumed.epsilon() == whole.epsilon()
    with pytest.raises(nn.StateError, match=r"noise_multiplier was 1\.0, is 2\.0"):
        trained(seed=seed, noise_multiplier=2.0, more={"checkpoint": tmp_path, "every": 2, "resume": True})


@with_accounting
def test_a_batch_may_be_empty():
    class Seen(nn.Callback):
        def __init__(self):
            self.losses = []

        def on_step_end(self, trainer):
            self.losses.append(float(trainer.last_loss))

    seen = Seen()
    trainer = trained(1, batch_size=1, callbacks=[seen])
    assert trainer.steps == 80 == len(seen.losses) and 15 < seen.losses.count(0.0) < 45
    assert 0 < trainer.history["accuracy"][0] <= 1 and trainer.epsilon() == epsilon_of(1 / 80, 1.0, 80, 1e-3)


@with_accounting
def test_augmented_images_in_a_file_and_a_share_for_validation(tmp_path):
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (60, 8, 8, 1)).astype("uint8"))
    data = nn.data.Dataset(np.load(tmp_path / "x.npy", mmap_mode="r"), RNG.integers(0, 3, 60)).augmented(nn.data.RandomFlip())
    model = nn.Sequential(nn.Normalize(128, 64), nn.Conv2D(4, 3), nn.Tanh(), nn.Flatten(), nn.Dense(3), input_shape=(8, 8, 1))
    arguments = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    trainer = PrivateTrainer(model, nn.CrossEntropy(), nn.Adam(), **arguments)
    trainer.fit(data, 1, 12, validation=0.2, progress=False)
    assert trainer.steps == 4 and trainer.ledger.sample_rate == 12 / 48 and "val_loss" in trainer.history


@with_accounting
def test_a_bad_sample_is_named_and_changes_nothing():
    bad = X.copy()
    bad[17] = np.nan
    trainer = private()
    before = trainer.model.params.copy()
    with pytest.raises(nn.NonFiniteError, match=r"row 17\b"):
        trainer.fit((bad, T), 1, 80, progress=False)
    assert (trainer.model.params == before).all() and not trainer.ledger.spent


@with_accounting
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_norm": 0}, "clip_norm must be a number in"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"noise_multiplier": -1}, "noise_multiplier"),
        ({"delta": 0}, "delta must be a number in"),
        ({"delta": 1}, "delta"),
        ({"seed": -1}, "seed"),
        ({"seed": "secret"}, "seed"),
        ({"layers": (nn.Dense(2), nn.BatchNorm())}, r"layer 1 BatchNorm\(\) mixes the samples.*GroupNorm"),
        ({"layers": (nn.Residual(nn.Dense(6), nn.BatchNorm()), nn.Dense(2))}, r"layer 0.1 BatchNorm\(\)"),
        ({"metrics": nn.Accuracy()}, "metrics must be a list"),
    ],
)
def test_refused_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        private(**options)


@with_accounting
@pytest.mark.parametrize(
    ("options", "data", "batch_size", "words"),
    [
        ({}, (X, T), 81, "batches of 81 samples are expected, the data have 80"),
        ({}, (X, T), 0, "batch_size must be a whole number"),
        ({}, [(X, T)], 16, "drawn from all samples.*not a list"),
        ({}, (X, T, np.ones(80)), 16, "each sample must count alike"),
        ({"loss": nn.CrossEntropy(class_weight=[1, 2])}, (X, T), 16, r"each sample must count alike.*class_weight=\[1, 2\]"),
        ({"loss": nn.CrossEntropy(ignore_index=0)}, (X, T), 16, "each sample must count alike"),
        ({"loss": nn.CrossEntropy(ignore_index=int(T[0]))}, (X, T), 16, "each sample must count alike"),
        ({}, (X, T + 5), 16, "labels must be in 0 ... 1"),
        ({}, (X, T[:7]), 16, "one length"),
    ],
)
def test_refused_by_fit(options, data, batch_size, words):
    trainer = private(**options)
    with pytest.raises(ValueError, match=words):
        trainer.fit(data, 1, batch_size, progress=False)
    assert not trainer.steps


@with_accounting
def test_a_frozen_batch_norm_mixes_nothing():
    model = nn.Sequential(nn.BatchNorm(), nn.Dense(2), input_shape=(6,))
    model.freeze("0.*")
    trainer = PrivateTrainer(model, nn.CrossEntropy(), nn.SGD(0.1), clip_norm=1.0, noise_multiplier=1.0, delta=1e-3)
    trainer.fit((X, T), 1, 16, progress=False)

    class Thaw(nn.Callback):
        def on_epoch_begin(self, trainer):
            trainer.model.unfreeze("*")

    trainer.callbacks.append(Thaw())
    with pytest.raises(ValueError, match="mixes the samples"):
        trainer.fit((X, T), 1, 16, progress=False)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    for call in (private, lambda: epsilon_of(0.1, 1.0, 10, 1e-5)):
        with pytest.raises(ImportError, match=r'pip install "nnlite-numpy\[privacy\]"'):
            call()
