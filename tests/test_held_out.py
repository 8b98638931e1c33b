"""fit(validation=0.1): samples of the training data that are drawn, set aside and validated on."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from test_callbacks import T, X, make_trainer
from test_resume import KillAt, Killed

import nnlite as nn

W = np.random.default_rng(2).random(len(X)) + 0.1
LOSSES = "loss", "val_loss", "accuracy", "val_accuracy"


def fit(data, callbacks=(), **options):
    trainer = make_trainer([nn.Accuracy()], callbacks)
    trainer.fit(data, **({"batch_size": 8, "epochs": 3, "progress": False} | options))
    return trainer


GIVEN = {
    "arrays": (X, T),
    "weighted": (X, T, W),
    "lists": (X.tolist(), T.tolist()),
    "a data set": nn.data.Dataset(X, T, weights=W),
}


@pytest.mark.parametrize("kind", GIVEN)
@given(share=st.one_of(st.floats(0.01, 0.97), st.floats(0.125, 0.75, width=32).map(np.float32)),
       seed=st.integers(0, 3))  # fmt: skip
def test_it_is_the_split_of_a_data_set(kind, share, seed):
    whole = nn.data.Dataset(X, T, weights=W if kind in ("weighted", "a data set") else None)
    train, held_out = whole.split(share, seed=seed)
    assert len(held_out) == len(train_test_split(X, test_size=float(share))[1])
    once, by_hand = fit(GIVEN[kind], validation=share, seed=seed), fit(train, validation=held_out, seed=seed)
    assert np.array_equal(once.model.params, by_hand.model.params)
    assert all(once.history[name] == by_hand.history[name] for name in LOSSES)


def test_what_is_held_out_is_not_trained_on():
    class Seen(nn.Metric):
        name = "seen"

        def reset(self):
            self.samples = []

        def update(self, z, t, sample_weight=None):
            self.samples += t[:, 0].tolist()

        def result(self):
            return np.array(self.samples)  # no number: not in the history

    seen, numbers = [], np.arange(40.0)[:, None]
    metric = Seen()

    class Look(nn.Callback):
        def on_step_end(self, trainer):
            seen.append(list(metric.samples))

        def on_epoch_end(self, trainer, row):
            seen.append(list(metric.samples))

    trainer = nn.Trainer(nn.Sequential(nn.Dense(1), input_shape=(4,)), nn.MSE(), nn.SGD(0.0), [metric], [Look()])
    trainer.fit((X, numbers), validation=0.25, batch_size=30, progress=False)
    trained, validated = seen[0], seen[1]
    assert len(trained) == 30 and sorted(trained + validated) == list(range(40))
    assert trained != sorted(trained) and max(trained) == 39, "drawn at random, and not the last ones"


@given(places=st.lists(st.integers(1, 9), max_size=3), every=st.sampled_from([None, 1]))
def test_a_resumed_run_has_the_same_split(tmp_path_factory, places, every):
    folder, expected = tmp_path_factory.mktemp("run"), fit((X, T), validation=0.25)
    options = {"validation": 0.25, "checkpoint": folder, "every": every, "resume": True}
    for place in places:
        with suppress(Killed):
            fit((X, T), [KillAt(place)], **options)
    trainer = fit((X, T), **options)
    assert np.array_equal(trainer.model.params, expected.model.params)
    assert all(trainer.history[name] == expected.history[name] for name in LOSSES)


@pytest.mark.parametrize("other", [0.2, None, (X, T)])
def test_another_split_is_another_run(tmp_path, other):
    fit((X, T), validation=0.25, checkpoint=tmp_path)
    with pytest.raises(nn.StateError, match=r"another run: data\.samples was 30, is"):
        fit((X, T), validation=other, checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize("wrong", [0.0, 1.0, 1.5, 40.0, -0.1, np.nan, np.inf, np.float32(0)])
def test_no_part_may_be_empty(wrong):
    with pytest.raises(nn.DataError, match=r"validation: cannot set .* of 40 samples aside: give a smaller number, or a share"):
        fit((X, T), validation=wrong)


@pytest.mark.parametrize("data", [[(X, T)], ((X, T) for _ in range(9)), zip([X], [T], strict=True)])
def test_of_batches_nothing_can_be_set_aside(data):
    words = r"validation=0\.1 sets samples of arrays or of a nn\.data\.Dataset aside, the training data are a \w+: give data"
    with pytest.raises(nn.DataError, match=words):
        fit(data, validation=0.1, epochs=1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_bad_sample_is_named_by_its_place_in_what_was_given(shuffle):
    train, _ = nn.data.Dataset(np.arange(40), np.arange(40)).split(0.25)
    x, place = X.copy(), int(train.images[17])
    x[place] = np.nan
    assert place != 17
    with pytest.raises(nn.NonFiniteError, match=f"the inputs of row {place} of the data set are not finite"):
        fit((x, T), validation=0.25, shuffle=shuffle)
