"""Logs that other programs keep: what is logged, and that a resumed run logs nothing twice."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import Killed

import nnlite as nn

X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 40)
STEPS = 5  # an epoch


class Log:
    """Keeps what it is given, as a service elsewhere does."""

    def __init__(self):
        self.calls, self.fails_at = [], None

    def __call__(self, values, step):
        if step == self.fails_at:
            raise ConnectionError("no route to host")
        self.calls.append((step, {name: value for name, value in values.items() if "second" not in name}))


class KillAt(nn.Callback):
    """At a step, or after the epoch of this step."""

    def __init__(self, step, at_end):
        self.step, self.at_end = step, at_end

    def on_step_end(self, trainer):
        if trainer.steps == self.step and not self.at_end:
            raise Killed

    def on_epoch_end(self, trainer, row):
        if trainer.steps == self.step:
            raise Killed


def train(callbacks, folder=None, optimizer=None, **options):
    model = nn.Sequential(nn.Dense(6), nn.ReLU(), nn.Dense(3), input_shape=(4,))
    trainer = nn.Trainer(model, nn.CrossEntropy(), optimizer or nn.Adam(0.03), [nn.Accuracy()], callbacks)
    options = {"epochs": 3, "batch_size": 8, "checkpoint": folder, "progress": False, "validation": (X, T)} | options
    trainer.fit((X, T), **options)
    return trainer


def test_each_epoch_is_logged_at_its_last_step():
    log = Log()
    history = train([nn.LogTo(log)]).history
    assert [step for step, _ in log.calls] == [5, 10, 15]
    assert list(log.calls[0][1]) == ["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
    assert all(values[name] == history[name][i] for i, (_, values) in enumerate(log.calls) for name in values)


def test_steps_are_logged_with_their_own_loss_and_rate():
    log, rates = Log(), nn.schedules.cosine(0.1, 15)
    train([nn.LogTo(log, every=2)], optimizer=nn.SGD(rates))
    steps = [(step, values) for step, values in log.calls if "step/loss" in values]
    assert [step for step, _ in steps] == [2, 4, 6, 8, 10, 12, 14]
    assert [values["step/learning_rate"] for _, values in steps] == [rates(step - 1) for step, _ in steps]
    model = nn.Sequential(nn.Dense(6), nn.ReLU(), nn.Dense(3), input_shape=(4,))
    optimizer, batches = nn.SGD(rates), nn.data.Dataset(X, T).batches(8, epoch=0, seed=0, shuffle=True)
    for x, t in (next(batches), next(batches)):
        loss = model.loss_and_grad(x, t, nn.CrossEntropy())
        optimizer.step(model)
    assert steps[0][1]["step/loss"] == loss


KILLS = st.lists(st.tuples(st.integers(1, 15), st.booleans()), max_size=4)


@given(kills=KILLS, every=st.sampled_from([None, 1, 2]), saved=st.sampled_from([None, 3]), first=st.booleans())
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path_factory, kills, every, saved, first):
    folder, log, whole = tmp_path_factory.mktemp("run"), Log(), Log()
    for step, at_end in kills:
        callbacks = [nn.LogTo(log, every=every), KillAt(step, at_end)]
        with suppress(Killed):
            train(callbacks if first else callbacks[::-1], folder, every=saved, resume=True)
    train([nn.LogTo(log, every=every)], folder, every=saved, resume=True)
    train([nn.LogTo(whole, every=every)])
    assert log.calls == whole.calls


def test_the_same_callback_goes_on_in_a_second_fit_and_begins_anew_in_a_new_run(tmp_path):
    log = Log()
    callback = nn.LogTo(log)
    trainer = train([callback], tmp_path, epochs=1)
    trainer.fit((X, T), batch_size=8, progress=False)
    assert [step for step, _ in log.calls] == [5, 10]
    train([callback], tmp_path, epochs=1)
    assert [step for step, _ in log.calls] == [5, 10, 5]
    assert (tmp_path / "logged.txt").read_text() == "5 1\n"


def test_the_note_of_another_run_is_set_aside_with_its_checkpoints(tmp_path):
    log = Log()
    train([nn.LogTo(log)], tmp_path)
    trainer = train([nn.LogTo(log)], epochs=1)
    trainer.fit((X, T), batch_size=8, progress=False, checkpoint=tmp_path)
    assert [step for step, _ in log.calls] == [5, 10, 15, 5, 10]
    assert (tmp_path / "earlier-1" / "logged.txt").read_text() == "15 3\n"


def test_a_row_that_could_not_be_logged_is_logged_when_the_run_is_resumed(tmp_path):
    log = Log()
    log.fails_at = 10
    with pytest.raises(ConnectionError):
        train([nn.LogTo(log)], tmp_path)
    log.fails_at = None
    train([nn.LogTo(log)], tmp_path, resume=True)
    assert [step for step, _ in log.calls] == [5, 10, 15]


def test_a_damaged_note_is_refused_and_a_full_disk_is_not(tmp_path):
    train([nn.LogTo(Log())], tmp_path, epochs=1)
    (tmp_path / "logged.txt").write_text("five")
    with pytest.raises(nn.FileError, match=r"logged\.txt does not say how far"):
        train([nn.LogTo(Log())], tmp_path, resume=True)
    (tmp_path / "logged.txt").unlink()

    class Trouble(nn.Callback):
        def on_epoch_begin(self, trainer):
            (tmp_path / "logged.txt").mkdir(exist_ok=True)

    log = Log()
    with pytest.warns(RuntimeWarning, match=r"logged\.txt is a folder.*; training continues"):
        train([nn.LogTo(log), Trouble()], tmp_path, resume=True)
    assert [step for step, _ in log.calls] == [10, 15]


@pytest.mark.parametrize("log", [None, "wandb", dict, {}, print, lambda values: None])
def test_what_is_no_function_is_refused(log):
    with pytest.raises(ValueError, match=r"log must be a function of a dict and step="):
        nn.LogTo(log)
