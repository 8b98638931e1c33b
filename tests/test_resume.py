"""What a run goes on with: what must be the same, what may be new, and the order in which callbacks take part."""

import itertools
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import TIMING
from test_checkpoint import KillAt, Killed

import nnlite as nn
from nnlite.training import checkpoint

X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 40)
STEPS = 5  # an epoch


def make(callbacks=(), metrics=(), freeze=(), optimizer=None):
    model = nn.Sequential(nn.Dense(6), nn.ReLU(), nn.Dense(3), input_shape=(4,))
    for pattern in freeze:
        model.freeze(pattern)
    return nn.Trainer(model, nn.CrossEntropy(), optimizer or nn.Adam(0.03), metrics, callbacks)


def fit(trainer, folder=None, data=(X, T), **options):
    trainer.fit(data, **({"epochs": 3, "batch_size": 8, "checkpoint": folder, "progress": False} | options))
    return trainer


def fit_and_kill(trainer, folder, **options):
    with pytest.raises(Killed):
        fit(trainer, folder, **options)
    return trainer


# ---- what is frozen

PATTERNS = ["0.W", "0.b", "2.W", "2.b"]


class Thaw(nn.Callback):
    """Changes what is frozen while training."""

    def on_epoch_end(self, trainer, row):
        (trainer.model.unfreeze if trainer.epochs == 1 else trainer.model.freeze)("0.W")


@given(before=st.sets(st.sampled_from(PATTERNS)), now=st.sets(st.sampled_from(PATTERNS)), thaw=st.booleans())
def test_what_is_frozen_must_be_what_it_was_at_the_beginning_or_at_last(tmp_path_factory, before, now, thaw):
    folder, callbacks = tmp_path_factory.mktemp("run"), [Thaw()] * thaw
    fit_and_kill(make([*callbacks, KillAt(8)], freeze=before), folder, every=2)
    trainer = make(callbacks, freeze=now)
    if now in (before, before - {"0.W"} if thaw else before):
        assert np.array_equal(fit(trainer, folder, resume=True).model.params, fit(make(callbacks, freeze=before)).model.params)
        return
    params = trainer.model.params.copy()
    with pytest.raises(nn.StateError, match=r"another run: .*frozen\.\d\.\w was (True|False), is (True|False)"):
        fit(trainer, folder, resume=True)
    assert np.array_equal(trainer.model.params, params)
    assert {slot.name for slot in trainer.model.vectors.trained if slot.frozen} == now, "nothing was overruled"


def test_what_a_callback_froze_is_no_other_run_in_the_same_process(tmp_path):
    trainer = make([Thaw(), KillAt(8)], freeze=["0.W"])
    fit_and_kill(trainer, tmp_path, every=2)
    trainer.callbacks.pop()
    expected = fit(make([Thaw()], freeze=["0.W"]))
    assert np.array_equal(fit(trainer, tmp_path, resume=True).model.params, expected.model.params)
    trainer.model.freeze("2.b")
    with pytest.raises(nn.StateError, match=r"frozen\.2\.b was False, is True"):
        fit(trainer, tmp_path, epochs=4, resume=True)


# ---- callbacks


class Calls(nn.Callback):
    def __init__(self):
        self.calls = []

    def check(self, trainer, columns):
        self.calls.append(("check", trainer.epochs))

    def on_fit_begin(self, trainer):
        self.calls.append(("begin", trainer.epochs, trainer.steps, len(trainer.history["loss"]) if trainer.history else 0))

    def on_fit_end(self, trainer):
        self.calls.append(("end", trainer.epochs))

    def state(self):
        return {"number": 7}

    def load_state(self, state):
        self.calls.append(("load", state["number"]))


def test_callbacks_begin_after_the_counters_are_put_back_and_load_after_that(tmp_path):
    fit_and_kill(make([Calls(), KillAt(8)]), tmp_path, every=2)
    calls = Calls()
    fit(make([calls]), tmp_path, resume=True)
    assert calls.calls == [("check", 0), ("begin", 1, 6, 1), ("load", 7), ("end", 3)]


class Faster(nn.Callback):
    """Changes the rate before each epoch, and may evaluate there, which is no part of the epoch."""

    def __init__(self, evaluates=True):
        self.evaluates = evaluates

    def on_epoch_begin(self, trainer):
        trainer.optimizer.learning_rate *= 1 + trainer.epochs
        if self.evaluates:
            trainer.evaluate((X[:5], T[:5]))


@given(places=st.lists(st.integers(1, 15), min_size=1, max_size=3), every=st.sampled_from([None, 1, 2]))
def test_an_epoch_that_goes_on_in_its_middle_does_not_begin_again(tmp_path_factory, places, every):
    folder, expected = tmp_path_factory.mktemp("run"), fit(make([Faster(evaluates=False)], [nn.Accuracy()]))
    for place in places:
        with suppress(Killed):
            fit(make([Faster(), KillAt(place)], [nn.Accuracy()]), folder, every=every, resume=True)
    trainer = fit(make([Faster()], [nn.Accuracy()]), folder, every=every, resume=True)
    assert np.array_equal(trainer.model.params, expected.model.params)
    assert all(trainer.history[name] == expected.history[name] for name in ("loss", "accuracy", "learning_rate"))
    assert trainer.history["learning_rate"] == [0.03, 0.03 * 2, 0.03 * 2 * 3]


def test_a_log_is_not_begun_anew(tmp_path):
    class Log(nn.Callback):
        def on_fit_begin(self, trainer):
            self.file = (tmp_path / "log").open("a" if trainer.epochs else "w")

        def on_epoch_end(self, trainer, row):
            print(trainer.epochs, file=self.file)

        def on_fit_end(self, trainer):
            self.file.close()

    for epochs in (2, 4):
        fit(make([Log()]), tmp_path / "run", epochs=epochs, resume=True)
    assert (tmp_path / "log").read_text().split() == ["1", "2", "3", "4"]


def average(decay=0.9):
    return nn.WeightAverage(decay)


def stopping(monitor="loss", patience=9, mode=None):
    return nn.EarlyStopping(monitor, patience=patience, mode=mode, restore_best=False)


ACCEPTED = {
    "a metric more": (make, lambda: make(metrics=[nn.Accuracy()])),
    "a metric less": (lambda: make(metrics=[nn.Accuracy(), nn.F1()]), lambda: make(metrics=[nn.F1()])),
    "metrics in another order": (lambda: make(metrics=[nn.Accuracy(), nn.F1()]), lambda: make((), [nn.F1(), nn.Accuracy()])),
    "a callback without state more": (make, lambda: make([nn.Callback()])),
    "a callback without state less": (lambda: make([nn.Callback()]), make),
    "callbacks in another order": (lambda: make([average(), stopping()]), lambda: make([stopping(), nn.Callback(), average()])),
    "more patience": (lambda: make([stopping()]), lambda: make([stopping(patience=20)])),
}  # fmt: skip


@pytest.mark.parametrize("what", ACCEPTED)
@pytest.mark.parametrize("killed", [8, 12])
def test_what_does_not_change_the_bits_may_be_another(tmp_path, what, killed):
    before, after = ACCEPTED[what]
    trainer, expected = before(), fit(after())
    trainer.callbacks.append(KillAt(killed))
    fit_and_kill(trainer, tmp_path, every=2)
    again = fit(after(), tmp_path, resume=True)
    assert np.array_equal(again.model.params, expected.model.params) and again.history["loss"] == expected.history["loss"]


REFUSED = {
    "callbacks.WeightAverage was None": (make, lambda: make([average()])),
    "callbacks.WeightAverage was .*, is None": (lambda: make([average()]), make),
    "callbacks.WeightAverage.decay was 0.9, is 0.5": (lambda: make([average()]), lambda: make([average(0.5)])),
    "callbacks.EarlyStopping.monitor was 'loss', is 'accuracy'": (
        lambda: make([stopping()], [nn.Accuracy()]), lambda: make([stopping("accuracy")], [nn.Accuracy()])),
    "callbacks.EarlyStopping.mode was None, is 'max'": (lambda: make([stopping()]), lambda: make([stopping(mode="max")])),
    "callbacks.EarlyStopping 2 was": (lambda: make([stopping()]), lambda: make([stopping(), stopping()])),
    "callbacks.Calls was None": (make, lambda: make([Calls()])),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_callbacks_that_change_training_must_be_the_same(tmp_path, words):
    before, after = REFUSED[words]
    fit(before(), tmp_path, epochs=1)
    with pytest.raises(nn.StateError, match=f"another run: {words}"):
        fit(after(), tmp_path, resume=True)


def test_a_refusal_is_short_whatever_differs(tmp_path):
    folder = tmp_path / ("x" * 200) / ("y" * 200)
    layers = [layer for _ in range(20) for layer in (nn.Dense(4), nn.ReLU())]
    trainers = [
        nn.Trainer(
            nn.Sequential(*layers[:n], nn.Dense(2), input_shape=(4,)), nn.CrossEntropy(class_weight=[1.0] * 2), optimizer
        )
        for n, optimizer in ((0, nn.SGD()), (40, nn.ParameterGroups({"*.W": nn.Adam(lambda step: 1e-9), "*": nn.Adam()})))
    ]
    fit(trainers[0], folder, (X, T % 2), epochs=1)
    with pytest.raises(nn.StateError, match=r"another run: .*; and \d+ more; without resume=True") as caught:
        fit(trainers[1], folder, (X * 2, T % 2), batch_size=9, seed=5, resume=True)
    assert len(str(caught.value)) <= 600


# ---- metrics


@pytest.mark.parametrize("killed", [8, 13])
def test_a_metric_that_is_new_in_the_middle_of_an_epoch_has_no_value_for_it(tmp_path, killed):
    before = [nn.F1("micro"), nn.Accuracy()]

    def now():
        return [nn.TopK(2), nn.F1("macro"), nn.Recall(None), nn.Accuracy(), nn.ConfusionMatrix()]

    options = {"every": 1, "validation": (X[:20], T[:20])}
    fit_and_kill(make([KillAt(killed)], before), tmp_path, **options)
    expected = fit(make(metrics=now()), **options | {"every": None})
    again = fit(make(metrics=now()), tmp_path, resume=True, **options)
    partial = (killed - 1) // STEPS
    for name in ("top2_accuracy", "f1", "recall_0", "recall_2"):
        assert np.isnan(again.history[name][partial])
        assert again.history[name][partial + 1 :] == expected.history[name][partial + 1 :]
        assert again.history[f"val_{name}"][partial:] == expected.history[f"val_{name}"][partial:]
    assert again.history["accuracy"] == expected.history["accuracy"], "it was there before"
    assert "confusion_matrix" not in again.history


def test_it_stays_so_when_the_epoch_is_interrupted_again(tmp_path):
    fit_and_kill(make([KillAt(3)]), tmp_path, every=1)
    fit_and_kill(make([KillAt(5)], [nn.Accuracy()]), tmp_path, every=1, resume=True)
    assert np.isnan(fit(make(metrics=[nn.Accuracy()]), tmp_path, resume=True).history["accuracy"][0])


# ---- stopped runs


@pytest.mark.parametrize("same_process", [False, True])
def test_a_stopped_run_goes_on_with_more_patience(tmp_path, same_process, capsys):
    def stopping(patience):
        return nn.EarlyStopping("loss", patience=patience, min_delta=10.0)

    first = fit(make([stopping(2)]), tmp_path, epochs=12)
    assert first.epochs == 3 and first.stopped
    again = fit(make([stopping(2)]), tmp_path, epochs=12, resume=True, progress=True)
    assert again.epochs == 3
    assert "stopped after epoch 3 by EarlyStopping(monitor='loss', patience=2" in capsys.readouterr().out
    more = first if same_process else make([stopping(6)])
    more.callbacks[0].patience = 6
    assert fit(more, tmp_path, epochs=12, resume=True).epochs == 7
    expected = fit(make([stopping(6)]), epochs=12)
    assert more.history["loss"] == expected.history["loss"] and np.array_equal(more.model.params, expected.model.params)


def test_what_the_user_stopped_stays_so_and_says_so(tmp_path, capsys):
    class Stop(nn.Callback):
        def on_epoch_end(self, trainer, row):
            trainer.stop()

    fit(make([Stop()]), tmp_path)
    assert fit(make(), tmp_path, resume=True, progress=True).epochs == 1
    assert "training was stopped after epoch 1 by trainer.stop()" in capsys.readouterr().out


# ---- sources of the user's own


class Batches:
    """Shuffled by a generator of its own, which goes on from epoch to epoch."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        for i in self.rng.permutation(STEPS):
            yield X[i * 8 : i * 8 + 8], T[i * 8 : i * 8 + 8]


class Placed(Batches):
    """And it can be placed where it was."""

    order = None  # between two passes

    def __iter__(self):
        if self.order is None:
            self.order = self.rng.permutation(STEPS).tolist()
        while self.order:
            i = self.order.pop()
            yield X[i * 8 : i * 8 + 8], T[i * 8 : i * 8 + 8]
        self.order = None

    def state(self):
        return {"rng": self.rng.bit_generator.state, "order": self.order}

    def load_state(self, state):
        self.rng.bit_generator.state, self.order = state["rng"], state["order"]


@given(
    places=st.lists(st.integers(1, 15), min_size=1, max_size=3), every=st.integers(1, 6), steps=st.sampled_from([None, 2, 5, 7])
)  # fmt: skip
def test_a_source_with_a_state_goes_on_from_its_place(tmp_path_factory, places, every, steps):
    folder, options = tmp_path_factory.mktemp("run"), {"every": every, "resume": True, "steps_per_epoch": steps}
    expected = fit(make(), data=Placed(), steps_per_epoch=steps)
    for place in places:
        with suppress(Killed):
            fit(make([KillAt(place)]), folder, Placed(), **options)
    trainer = fit(make(), folder, Placed(), **options)
    assert np.array_equal(trainer.model.params, expected.model.params) and trainer.history["loss"] == expected.history["loss"]


def dying_after(n, save=checkpoint.Folder.save):
    calls = itertools.count(1)

    def save_and_die(*args, **kept):
        save(*args, **kept)
        if next(calls) == n:
            raise Killed

    return save_and_die


@given(
    writes=st.lists(st.integers(1, 12), max_size=3), every=st.integers(1, 6), steps=st.sampled_from([None, 2, 5, 7]),
    placed=st.booleans(),
)  # fmt: skip
def test_killed_just_after_a_checkpoint_was_written(tmp_path_factory, writes, every, steps, placed):
    """Also after the last batch of an epoch, before and after its validation."""
    folder = tmp_path_factory.mktemp("run")
    options = {"every": every, "resume": True, "steps_per_epoch": steps, "validation": (X[:20], T[:20])}

    def make_data():
        return Placed() if placed else (X, T)

    expected = fit(make(metrics=[nn.Accuracy()]), data=make_data(), **options | {"every": None, "resume": False})
    for n in writes:
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(checkpoint.Folder, "save", dying_after(n))
            fit(make(metrics=[nn.Accuracy()]), folder, make_data(), **options)
    trainer = fit(make(metrics=[nn.Accuracy()]), folder, make_data(), **options)
    assert np.array_equal(trainer.model.params, expected.model.params)
    assert all(trainer.history[name] == expected.history[name] for name in expected.history if name not in TIMING)


def test_its_state_is_checked_before_the_first_step(tmp_path):
    class Bad(Placed):
        def state(self):
            return {"rng": self.rng}

    with pytest.raises(nn.StateError, match=r"the state of .*Bad.* holds a Generator"):
        fit(make(), tmp_path / "run", Bad())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("killed", "words"), [(8, "the first 2 are skipped"), (6, "before; give it state")])
def test_a_source_without_a_state_is_resumed_with_a_warning(tmp_path, killed, words):
    fit_and_kill(make([KillAt(killed)]), tmp_path, data=Batches(), every=7)
    with pytest.warns(UserWarning, match=f"batches of Batches: nothing checks that they are those of .*{words}") as caught:
        fit(make(), tmp_path, Batches(), every=7, resume=True)
    assert len(caught) == 1 and len(str(caught[0].message)) <= 600
    fit(make(), tmp_path, Batches(), resume=True)  # nothing is left: nothing is said
