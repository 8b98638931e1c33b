"""Bad numbers are found and located; layers that break the rules are named."""

import pickle
import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn


def model_with(layer):
    return nn.Sequential(nn.Dense(4), layer, nn.Dense(3), input_shape=(5,))


def batch(n=6):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 5)).astype("float32"), rng.integers(0, 3, n)


class Plain(nn.Layer):
    """The identity, for others to get wrong."""

    shares_memory = False

    def forward(self, a, ctx):
        return a.copy()

    def backward(self, delta, ctx):
        return delta.copy()


class WritesForward(Plain):
    def forward(self, a, ctx):
        a *= 2
        return a.copy()


class WritesBackward(Plain):
    def backward(self, delta, ctx):
        delta *= 2
        return delta.copy()


class WrongShape(Plain):
    def forward(self, a, ctx):
        return a[:, :1] + np.zeros((1, 4), a.dtype) if len(a) > 99 else a[:, :3].copy()


class WrongDtype(Plain):
    def backward(self, delta, ctx):
        return delta.astype("float64")


class Shares(Plain):
    def forward(self, a, ctx):
        return a


class DividesByZero(Plain):
    def forward(self, a, ctx):
        y = a.copy()
        y[2] = np.inf
        return y


class BadGradient(nn.Dense):
    def backward(self, delta, ctx):
        result = super().backward(delta, ctx)
        ctx.db[0] = np.nan
        return result


@pytest.mark.parametrize(
    ("layer", "error", "text"),
    [
        (WritesForward(), nn.StateError, "layer 1 WritesForward.*forward, pass 1: it writes"),
        (WritesBackward(), nn.StateError, "layer 1 WritesBackward.*backward.*it writes"),
        (WrongShape(), nn.ShapeError, r"layer 1 WrongShape.*has shape \(6, 3\), not \(6, 4\)"),
        (WrongDtype(), nn.ShapeError, "layer 1 WrongDtype.*float64, the model float32"),
        (Shares(), nn.StateError, "layer 1 Shares.*shares memory"),
        (DividesByZero(), nn.NonFiniteError, "layer 1 DividesByZero.*not finite in samples 2 of the batch"),
        (BadGradient(4), nn.NonFiniteError, "layer 1 BadGradient.*backward.*gradient of b"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_breaks_the_rules_is_named(layer, error, text):
    model = model_with(layer)
    with nn.debug(model), pytest.raises(error, match=text):
        model.loss_and_grad(*batch(), nn.CrossEntropy())


def test_good_layers_pass_and_give_the_same_bits():
    x, t = np.random.default_rng(0).standard_normal((9, 8, 8, 2)), np.arange(9) % 3
    model = nn.Sequential(
        nn.Conv2D(4, 3), nn.BatchNorm(), nn.ReLU(), nn.Residual(nn.Conv2D(4, 1), nn.BatchNorm()), nn.Dropout(0.2),
        nn.Concat([], [nn.MaxPool2D(2), nn.BatchNorm(), nn.Upsample2D(2, mode="bilinear")]),
        nn.GlobalAvgPool2D(), nn.Dense(3), input_shape=(8, 8, 2),
    )  # fmt: skip
    loss = model.loss_and_grad(x, t, nn.CrossEntropy(), pass_id=1)
    grads, z = model.grads.copy(), model(x)
    with nn.debug(model) as same:
        assert same is model and not model.rewrite
        assert model.loss_and_grad(x, t, nn.CrossEntropy(), pass_id=1) == loss
        assert np.array_equal(model.grads, grads)
        model(x)
    assert model.rewrite and model.loss_and_grad(x, t, nn.CrossEntropy(), pass_id=1) == loss
    assert z.shape == (9, 3)


def images(n=40):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 6, 6, 2)).astype("float32"), rng.integers(0, 3, n)


def small_cnn():
    return nn.Sequential(nn.Conv2D(4, 3), nn.BatchNorm(), nn.ReLU(), nn.Flatten(), nn.Dense(3), input_shape=(6, 6, 2))


@pytest.fixture(autouse=True)
def _no_warnings_of_numpy():
    with np.errstate(all="ignore"):
        yield


def fit(model, x, t, **options):
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.SGD(0.1, momentum=0.9), metrics=[nn.Accuracy()])
    trainer.fit((x, t), batch_size=10, shuffle=False, progress=False, **options)
    return trainer


def test_a_nan_in_the_data_is_located_and_nothing_is_lost():
    x, t = images()
    x[23, 1, 1] = np.nan
    model = small_cnn()
    with pytest.raises(nn.NonFiniteError, match=r"at step 2 \(epoch 1\): the inputs of row 23 of the data set"):
        fit(model, x, t)
    expected = fit(small_cnn(), x[:20], t[:20]).model
    assert np.array_equal(model.params, expected.params) and np.array_equal(model.buffers, expected.buffers)


def test_a_nan_in_the_weights_is_located():
    model = small_cnn()
    model[0].W[1, 0, 0, 0] = np.inf
    with pytest.raises(nn.NonFiniteError, match=r"at step 0 .*: 0.W is not finite at 18"):
        fit(model, *images())


def test_an_overflow_on_the_way_is_located():
    model = nn.Sequential(nn.Dense(3), nn.Dense(3), input_shape=(2,))
    model[0].W = np.full((3, 2), 1e30)
    model[1].W = np.full((3, 3), 1e30)
    with pytest.raises(
        nn.NonFiniteError, match=r"layer 1 Dense\(3\), forward.*rows 0, 1, 2, .*, 9 of the data set.* parameters 1e"
    ):
        fit(model, np.ones((20, 2)), np.zeros(20, int))


class Spoil(nn.Callback):
    """Spoils rows of an array after some epochs."""

    def __init__(self, array, rows, epochs):
        self.array, self.rows, self.epochs = array, rows, epochs

    def on_fit_begin(self, trainer):
        self.on_epoch_end(trainer, {})

    def on_epoch_end(self, trainer, row):
        if trainer.epochs == self.epochs:
            self.array[self.rows] = np.nan if self.array.ndim > 1 else np.inf


@given(
    what=st.sampled_from(["inputs", "targets", "weights"]), rows=st.sets(st.integers(0, 96), min_size=1, max_size=12),
    epochs=st.integers(0, 2), batch_size=st.integers(1, 100), seed=st.integers(0, 5), shuffle=st.booleans(),
    nonfinite=st.sampled_from(["raise", "skip"]), mirrored=st.booleans(),
)  # fmt: skip
def test_bad_values_are_named_by_their_rows_in_the_data_set(what, rows, epochs, batch_size, seed, shuffle, nonfinite, mirrored):
    given = {"inputs": np.ones((97, 2, 2, 1)), "targets": np.ones((97, 1)), "weights": np.ones(97)}
    data = nn.data.Dataset(given["inputs"], given["targets"], weights=given["weights"])
    data = data.augmented(nn.data.RandomFlip()) if mirrored else data
    order = np.random.default_rng([seed, epochs]).permutation(97) if shuffle else np.arange(97)
    batches = [order[i : i + batch_size] for i in range(0, 97, batch_size)]
    wanted = [row for row in next(b for b in batches if rows & set(b.tolist())) if row in rows]
    shown = f"row{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted[:10]))}"
    model = nn.Sequential(nn.Flatten(), nn.Dense(1), input_shape=(2, 2, 1))
    trainer = nn.Trainer(model, nn.MSE(), nn.SGD(1e-3), callbacks=[Spoil(given[what], sorted(rows), epochs)])
    options = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle, "progress": False, "nonfinite": nonfinite}
    words = rf"\(epoch {epochs + 1}\): the {what} of {shown}( and \d+ more)? of the data set are not finite$"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(data, epochs=3, **options)
            texts = [str(w.message) for w in caught]
        except nn.NonFiniteError as error:
            texts = [str(w.message) for w in caught if "skipped" in str(w.message)] + [str(error)]
    assert re.search(words, texts[0]), texts


def test_a_data_set_says_which_rows_a_batch_has():
    x = np.arange(23)
    data = nn.data.Dataset(x[:, None], x)
    for shuffle in (True, False):
        for k, (_, t) in enumerate(data.batches(5, epoch=3, seed=1, shuffle=shuffle)):
            assert np.array_equal(data.rows(k, 5, epoch=3, seed=1, shuffle=shuffle), t)


def test_batches_of_the_users_own_are_named_by_their_samples():
    x, t = images()
    x[23] = np.nan
    trainer = nn.Trainer(small_cnn(), nn.CrossEntropy(), nn.SGD())
    with pytest.raises(nn.NonFiniteError, match=r"step 2 .*the inputs of samples 3 of the batch are not finite"):
        trainer.fit([(x[i : i + 10], t[i : i + 10]) for i in range(0, 40, 10)], progress=False)


@pytest.mark.parametrize(("layers", "scale"), [((), 1e3), ((nn.Tanh(),), 1e30), ((nn.ReLU(), nn.Dense(30)), 1e4)])
def test_divergence_is_blamed_on_rate_and_scale(layers, scale):
    """Not on targets and weights, which are as they should be."""
    x = np.random.default_rng(0).standard_normal((96, 4)) * scale
    model = nn.Sequential(nn.Dense(8), *layers, nn.Dense(1), input_shape=(4,))
    trainer = nn.Trainer(model, nn.MSE(), nn.SGD(0.1))
    with pytest.raises(nn.NonFiniteError, match=r"largest values: inputs .* parameters .*learning rate, or scale") as caught:
        trainer.fit((x, x[:, 0], np.ones(96)), epochs=100, progress=False)
    assert "targets and weights" not in str(caught.value) and len(str(caught.value)) <= 600


def test_steps_are_skipped_where_that_is_asked_for():
    x, t = images()
    x[23] = np.nan
    model = small_cnn()
    with pytest.warns(RuntimeWarning, match="step skipped: the loss is nan at step 2"):
        trainer = fit(model, x, t, nonfinite="skip")
    kept = np.r_[:20, 30:40]
    expected = fit(small_cnn(), x[kept], t[kept])
    assert trainer.steps == 3
    assert np.array_equal(model.params, expected.model.params) and np.array_equal(model.buffers, expected.model.buffers)
    assert trainer.history["loss"] == expected.history["loss"]
    with pytest.raises(ValueError, match="nonfinite"):
        fit(model, x, t, nonfinite="ignore")


def test_a_copy_made_meanwhile_has_no_checks():
    model = model_with(nn.BatchNorm())
    with nn.debug(model):
        twin = pickle.loads(pickle.dumps(model))
        nn.gradcheck(twin, batch()[0])
    assert "backward" not in vars(twin[1])
