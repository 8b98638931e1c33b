"""Checkpoints of what users write themselves: callbacks, metrics, schedules, handlers of signals."""

import os
import signal
import sys

import numpy as np
import pytest
from test_checkpoint import BATCH, EPOCHS, STEPS, KillAt, Killed

import nnlite as nn

X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 40)


def small(optimizer=None, callbacks=(), metrics=(), loss=None):
    model = nn.Sequential(nn.Dense(3), input_shape=(4,))
    return nn.Trainer(model, loss or nn.CrossEntropy(), optimizer or nn.SGD(0.1), metrics, callbacks)


def train(trainer, folder=None, data=(X, T), **options):
    """By default an epoch of STEPS steps."""
    options = {"batch_size": BATCH, "progress": False, "checkpoint": folder} | options
    return trainer.fit(data, **options)


def train_and_kill(trainer, folder, **options):
    with pytest.raises(Killed):
        train(trainer, folder, **options)


def test_arrays_in_any_order_are_kept(tmp_path):
    class Arrays(nn.Callback):
        def __init__(self, *arrays):
            self.arrays = list(arrays)

        def state(self):
            return {"arrays": self.arrays}

        def load_state(self, state):
            self.arrays = state["arrays"]

    matrix = np.arange(6.0).reshape(2, 3)
    arrays = [np.asfortranarray(matrix), matrix[:, ::2], np.arange(3).astype(">i4"), np.zeros((0, 3)), np.float64(1.5)]
    again = small(callbacks=[Arrays()])
    train(small(callbacks=[Arrays(*arrays)]), tmp_path)
    train(again, tmp_path, resume=True)
    for kept, array in zip(again.callbacks[0].arrays, arrays, strict=True):
        assert np.shape(kept) == array.shape
        np.testing.assert_array_equal(kept, array)


def test_a_validation_loss_of_nan_does_not_hide_the_best(tmp_path):
    class Worse:
        scales = iter([1.0, np.nan, 50.0, 40.0])

        def __iter__(self):
            yield X * np.float32(next(self.scales)), T

    first = small(nn.SGD(1e-6))
    train(first)
    train(small(nn.SGD(1e-6)), tmp_path, epochs=4, validation=Worse())
    assert np.array_equal(nn.load(tmp_path / "best.safetensors").params, first.model.params)


class Slower(nn.Callback):
    """A schedule of one's own."""

    def on_epoch_end(self, trainer, row):
        for optimizer in getattr(trainer.optimizer, "groups", {"": trainer.optimizer}).values():
            optimizer.learning_rate *= 0.5
            optimizer.betas = optimizer.betas[0] * 0.9, 0.99
        trainer.optimizer.clip_norm = 0.01


@pytest.mark.parametrize("make", [lambda: nn.Adam(0.1), lambda: nn.ParameterGroups({"*": nn.Adam(0.1)}, clip_norm=1.0)])
@pytest.mark.parametrize("same_process", [False, True])
def test_a_rate_that_a_callback_changes_is_kept(tmp_path, make, same_process):
    expected = small(make(), [Slower(), KillAt(0)])
    train(expected, epochs=EPOCHS)
    trainer = small(make(), [Slower(), KillAt(12)])
    train_and_kill(trainer, tmp_path, epochs=EPOCHS)
    if not same_process:
        trainer = small(make(), [Slower(), KillAt(0)])
    trainer.callbacks[1].steps = 14
    train_and_kill(trainer, tmp_path, epochs=EPOCHS, every=1, resume=True)
    trainer = small(make(), [Slower(), KillAt(0)])
    train(trainer, tmp_path, epochs=EPOCHS, resume=True)
    assert np.array_equal(trainer.model.params, expected.model.params)


def test_a_rate_that_the_user_changes_is_not_lost_in_silence(tmp_path):
    trainer = small(nn.SGD(0.1))
    train(trainer, tmp_path)
    trainer.optimizer.learning_rate = 0.05
    with pytest.raises(nn.StateError, match=r"learning_rate was 0\.1, is 0\.05"):
        train(trainer, tmp_path, epochs=2, resume=True)


class Hits(nn.Metric):
    """A user's own, with counts of its own names and kinds."""

    name = "hits"

    def __init__(self):
        self.reset()

    def reset(self):
        self.samples, self.hits, self.seen, self.function = 0, np.int64(0), [np.zeros((0, 3))], len

    def update(self, z, t, sample_weight=None):
        self.samples += len(t)
        self.hits += (z.argmax(axis=1) == t).sum()
        self.seen.append(np.asarray(z))

    def result(self):
        return self.hits + 1000.0 * self.samples + 1e6 * len(np.concatenate(self.seen))


def test_the_counts_of_a_users_metric_are_kept(tmp_path):
    expected, killed, trainer = (small(metrics=[Hits()], callbacks=[KillAt(steps)]) for steps in (0, 3, 0))
    train(expected)
    train_and_kill(killed, tmp_path, every=1)
    train(trainer, tmp_path, resume=True)
    assert trainer.history["hits"] == expected.history["hits"]


@pytest.mark.parametrize(
    ("loss", "targets", "metrics"),
    [
        (nn.CrossEntropy(), T, [nn.F1(None), nn.metrics.ROCAUC(), nn.metrics.AveragePrecision()]),
        (nn.BinaryCrossEntropy(), X[:, :3] > 0, [nn.F1(multilabel=True), nn.metrics.ROCAUC(multilabel=True)]),
        (nn.MSE(), X[:, :3], [nn.metrics.MAE(), nn.metrics.RMSE(), nn.metrics.R2()]),
    ],
)
@pytest.mark.parametrize("killed", [1, 3, STEPS])
def test_metrics_of_nnlites_go_on_in_the_middle_of_an_epoch(tmp_path, loss, targets, metrics, killed):
    data, options = (X, targets, np.arange(40.0)), {"every": 1, "validation": (X[:20], targets[:20])}
    stopped, again, expected = (small(metrics=metrics, loss=loss, callbacks=[KillAt(steps)]) for steps in (killed, 0, 0))
    train_and_kill(stopped, tmp_path, data=data, **options)
    train(again, tmp_path, data, resume=True, **options)
    train(expected, None, data, **options | {"every": None})
    for name in set(expected.history) - {"seconds", "samples_per_second"}:
        assert again.history[name] == expected.history[name], name


def test_metrics_that_have_seen_nothing_yet_are_kept(tmp_path):
    weights = np.repeat([0.0, 1.0], [BATCH, 40 - BATCH])  # a first batch that is left out
    killed, trainer = (small(metrics=[nn.F1()], callbacks=[KillAt(steps)]) for steps in (1, 0))
    train_and_kill(killed, tmp_path, data=(X, T, weights), shuffle=False, every=1)
    train(trainer, tmp_path, (X, T, weights), shuffle=False, resume=True)
    assert trainer.history["f1"] == train(small(metrics=[nn.F1()]), None, (X, T, weights), shuffle=False)["f1"]


@pytest.mark.parametrize("killed", [0, 3])
def test_stopped_in_the_middle_of_an_epoch_that_is_interrupted(tmp_path, killed):
    class StopAt(KillAt):
        def on_step_end(self, trainer):
            super().on_step_end(trainer)
            if trainer.steps == 2:
                trainer.stop()

    if killed:
        train_and_kill(small(callbacks=[StopAt(killed)]), tmp_path, epochs=3, every=1)
    trainer = small(callbacks=[StopAt(0)])
    train(trainer, tmp_path, epochs=3, every=1, resume=True)
    assert trainer.steps == STEPS and trainer.epochs == trainer.history.epochs == 1


class SendAt(nn.Callback):
    def __init__(self, number, steps=3):
        self.number, self.steps = number, steps

    def on_step_end(self, trainer):
        if trainer.steps == self.steps:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def handle():
    """Sets handlers, those before come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield signal.signal
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_so(tmp_path, handle, number):
    handle(number, signal.SIG_IGN)
    trainer = small(callbacks=[SendAt(number)])
    train(trainer, tmp_path, epochs=2)
    assert trainer.steps == 2 * STEPS and signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("steps", [3, STEPS, 2 * STEPS])
def test_after_a_handler_that_returns_training_goes_on(tmp_path, handle, steps):
    calls = []
    handle(signal.SIGTERM, lambda number, frame: calls.append(len(list(tmp_path.glob(f"step-{steps:09d}*")))))
    trainer, expected = small(callbacks=[SendAt(signal.SIGTERM, steps)]), small()
    train(trainer, tmp_path, epochs=2)
    train(expected, epochs=2)
    assert calls == [1], "once, and with a checkpoint of the step"
    assert np.array_equal(trainer.model.params, expected.model.params)


def test_a_handler_that_exits_ends_training(tmp_path, handle):
    handle(signal.SIGTERM, lambda number, frame: sys.exit(3))
    trainer = small(callbacks=[SendAt(signal.SIGTERM)])
    with pytest.raises(SystemExit):
        train(trainer, tmp_path)
    assert trainer.steps == 3 and (tmp_path / "step-000000003.safetensors").exists()


def test_a_second_signal_does_not_wait(tmp_path):
    class Twice(SendAt):
        def on_step_end(self, trainer):
            for _ in range(2):
                super().on_step_end(trainer)

    with pytest.raises(KeyboardInterrupt):
        train(small(callbacks=[Twice(signal.SIGINT)]), tmp_path)
    assert not list(tmp_path.glob("step-*"))


class Harmless(nn.CrossEntropy):
    """Has what no JSON can hold."""

    def __init__(self):
        super().__init__(class_weight=np.ones(3))
        self.names, self.kinds, self.rng = {0: "cat", 1: {"dog"}}, {1, "2"}, np.random.default_rng(0)
        self.function, self.builtin, self.module, self.share, self.itself = self.check, max, np, np.float32(0.5), self
        self.teacher = nn.Sequential(nn.Dense(3), input_shape=(4,))


TABLE = [0.1] * 10
HARMLESS = {
    "a table": lambda: (small(nn.SGD(lambda step: TABLE[step])), {}),
    "a method": lambda: (small(nn.SGD(dict(enumerate(TABLE)).get)), {}),
    "warm-up of a function": lambda: (small(nn.SGD(nn.schedules.warmup(lambda step: 0.1, 3))), {}),
    "a loss": lambda: (small(loss=Harmless()), {}),
    "NumPy's integers": lambda: (small(), {"seed": np.int64(1), "batch_size": np.int64(BATCH), "shuffle": np.True_}),
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_what_a_fingerprint_can_be_taken_of(tmp_path, make):
    trainer, options = make()
    train(trainer, tmp_path, **options)
    trainer, options = make()
    train(trainer, tmp_path, epochs=2, resume=True, **options)
    assert trainer.epochs == 2


def test_functions_are_called_only_as_schedules(tmp_path):
    class Asks(nn.CrossEntropy):
        def __init__(self):
            super().__init__()
            self.function = lambda step: pytest.fail("called")

    train(small(loss=Asks()), tmp_path)
    rates = nn.schedules.warmup(lambda step: 0.1, 3), nn.schedules.warmup(lambda step: 0.2, 3)
    train(small(nn.SGD(rates[0])), tmp_path)
    with pytest.raises(nn.StateError, match=r"learning_rate\.schedule"):
        train(small(nn.SGD(rates[1])), tmp_path, epochs=2, resume=True)


@pytest.mark.parametrize("make", [lambda: nn.WeightAverage(0.9), lambda: nn.EarlyStopping("loss", patience=5)])
def test_a_finished_run_goes_on_with_its_own_weights(tmp_path, make):
    expected, first, again, more = (small(nn.SGD(1.0, momentum=0.9), [make()]) for _ in range(4))
    train(expected, epochs=4)
    train(first, tmp_path, epochs=2)
    train(again, tmp_path, epochs=2, resume=True)
    assert np.array_equal(again.model.params, first.model.params), "as the finished run ended"
    train(more, tmp_path, epochs=4, resume=True)
    assert np.array_equal(more.model.params, expected.model.params)
    assert more.history["loss"] == expected.history["loss"]
