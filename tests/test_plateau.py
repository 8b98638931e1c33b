"""ReduceOnPlateau: PyTorch's rates, for one optimiser and for groups; what it refuses; resumed to the same bits."""

import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_callbacks import Figure, fit, make_trainer
from test_checkpoint import Killed
from test_resume import KillAt

import nnlite as nn


def rates(values, optimizer=None, greater=False, **options):
    """The learning rate after each epoch, where the monitor has these values."""
    callback = nn.ReduceOnPlateau("figure", **options)
    trainer = make_trainer([Figure("figure", greater)], [callback])
    trainer.optimizer = optimizer or nn.SGD(0.1)
    callback.check(trainer, ["figure"])
    callback.on_fit_begin(trainer)
    seen = []
    for value in values:
        callback.on_epoch_end(trainer, {"figure": value})
        seen.append(trainer.optimizer.learning_rate)
    return seen


VALUES = [8, 7.5, 7.5, 7.4999, 7.5, 7.2, 7.16, 7.2, 7.4, 7.2, 7.6, 9]
HALVED = [  # how often after each of them, by PyTorch 2.13
    ("000000000000", False, {}),
    ("001233345678", False, {"patience": 0}),
    ("000111112233", False, {"patience": 1}),
    ("000111112222", False, {"patience": 1, "cooldown": 2}),
    ("001122233445", False, {"patience": 0, "cooldown": 1}),
    ("00123456789a", False, {"patience": 0, "threshold": 0.05}),
    ("001233456789", False, {"patience": 0, "threshold": 0.05, "threshold_mode": "abs"}),
    ("001122234567", False, {"patience": 0, "threshold": 0.0}),
    ("000111222333", True, {"patience": 2}),
    ("0123456789aa", True, {"patience": 0, "threshold": 0.06}),
    ("001122334455", True, {"patience": 1, "threshold": 0.06, "threshold_mode": "abs"}),
]


@pytest.mark.parametrize(("halved", "greater", "options"), HALVED)
def test_the_rates_are_those_of_a_table(halved, greater, options):
    wanted = [0.1 * 0.5 ** int(times, 16) for times in halved]
    assert rates(VALUES, greater=greater, factor=0.5, **options) == wanted


def test_the_least_rate_and_the_least_reduction():
    worse = range(1, 12)
    assert rates(worse, patience=0, min_learning_rate=0.004)[:4] == [0.1, 0.1 * 0.1, 0.004, 0.004]
    assert rates(worse, nn.SGD(1e-3), patience=0, min_learning_rate=0.004) == [1e-3] * 11, "never raised"
    assert rates(worse, patience=0, factor=0.01)[-3:] == [0.1 * 0.01**4] * 3, "the next would be one by less than 1e-8"
    assert rates(worse, patience=10)[-1] == 0.1 and rates(range(12), patience=10)[-1] == 0.1 * 0.1


@given(
    values=st.lists(st.sampled_from([-1.0, -0.99999, 0.0, 0.5, 0.99999, 1.0, 1.00001, 2.0, np.nan, np.inf]), max_size=30),
    factor=st.floats(0.01, 0.99), patience=st.integers(0, 3), threshold=st.sampled_from([0.0, 1e-4, 0.5, 1.0]),
    threshold_mode=st.sampled_from(["rel", "abs"]), cooldown=st.integers(0, 3), least=st.sampled_from([0.0, 0.03, 1.0]),
    mode=st.sampled_from(["min", "max"]),
)  # fmt: skip
def test_the_rates_are_pytorchs(values, factor, patience, threshold, threshold_mode, cooldown, least, mode):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the table stands for it")
    theirs, wanted = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), []
    common = {"factor": factor, "patience": patience, "threshold": threshold, "threshold_mode": threshold_mode}
    common |= {"cooldown": cooldown, "mode": mode}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, min_lr=least, **common)
    for value in values:
        scheduler.step(value)
        wanted.append(theirs.param_groups[0]["lr"])
    assert rates(values, greater=None, min_learning_rate=least, **common) == wanted


def test_each_group_has_its_rate_reduced():
    groups = nn.ParameterGroups({"*.W": nn.Adam(0.1), "*": nn.SGD(0.01)})
    trainer = make_trainer(callbacks=[nn.ReduceOnPlateau("loss", patience=0, min_learning_rate=0.005, mode="max")])
    trainer.optimizer = groups
    fit(trainer, epochs=2)
    assert [group.learning_rate for group in groups.groups.values()] == [0.1 * 0.1, 0.005]


def test_it_begins_anew_with_each_fit():
    trainer = make_trainer(callbacks=[nn.ReduceOnPlateau("loss", 0.5, patience=2, mode="max")])
    for _ in range(3):
        fit(trainer, epochs=3)  # two worse ones each
    assert trainer.optimizer.learning_rate == 0.1
    fit(trainer, epochs=4)
    assert trainer.optimizer.learning_rate == 0.1 * 0.5


# ---- what it refuses

SCHEDULED = {
    "learning_rate": lambda rate: nn.Adam(rate),
    "learning_rate_*.b": lambda rate: nn.ParameterGroups({"*.W": nn.Adam(0.1), "*.b": nn.SGD(rate)}),
}


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize("rate", [nn.schedules.cosine(0.1, 10), nn.schedules.constant(0.1), lambda step: 0.1])
def test_a_schedule_is_refused_before_the_first_step(tmp_path, name, rate):
    trainer = make_trainer(callbacks=[nn.ReduceOnPlateau()])
    trainer.optimizer = SCHEDULED[name](rate)
    words = rf"{re.escape(repr(name))} is the schedule .*, which sets the rate at each step: give a number"
    with pytest.raises(ValueError, match=words):
        fit(trainer, checkpoint=tmp_path / "run")
    assert trainer.steps == 0 and not (tmp_path / "run").exists()


# ---- with checkpoints


def make(killed=0, **options):
    callbacks = [nn.ReduceOnPlateau("val_loss", 0.5, **{"patience": 0, "threshold": 0.02, "cooldown": 1} | options)]
    return make_trainer([nn.Accuracy()], [*callbacks, KillAt(killed)], rate=1.0)


@given(places=st.lists(st.integers(1, 16), max_size=3), every=st.sampled_from([None, 1, 3]))
@example(places=[5], every=None)
def test_interrupted_and_resumed_it_has_the_same_bits(tmp_path_factory, places, every):
    folder, expected = tmp_path_factory.mktemp("run"), make()
    fit(expected, epochs=8)
    for place in places:
        with suppress(Killed):
            fit(make(place), epochs=8, checkpoint=folder, every=every, resume=True)
    trainer = make()
    fit(trainer, epochs=8, checkpoint=folder, every=every, resume=True)
    assert np.array_equal(trainer.model.params, expected.model.params)
    assert trainer.optimizer.learning_rate == expected.optimizer.learning_rate < 0.5
    assert trainer.callbacks[0].state() == expected.callbacks[0].state()


@pytest.mark.parametrize("options", [{"patience": 1}, {"threshold": 0.0}, {"cooldown": 0}, {"min_learning_rate": 0.1}])
def test_a_run_goes_on_with_the_same_arguments_only(tmp_path, options):
    fit(make(), checkpoint=tmp_path)
    name, value = next(iter(options.items()))
    with pytest.raises(nn.StateError, match=rf"another run: callbacks\.ReduceOnPlateau\.{name} was .*, is {value}"):
        fit(make(**options), checkpoint=tmp_path, resume=True)
