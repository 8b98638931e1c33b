"""Training that is interrupted, anywhere and as often as you like, ends with the same bits."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite as nn
from nnlite.training import checkpoint

BATCH, EPOCHS, STEPS = 8, 3, 5  # steps an epoch


class Killed(BaseException):
    pass


class KillAt(nn.Callback):
    """Stands for a power cut after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, trainer):
        if trainer.steps == self.steps:
            raise Killed


class FreezeLater(nn.Callback):
    def on_epoch_end(self, trainer, row):
        if trainer.epochs == 2:
            trainer.model.freeze("0.b")


def make_model(seed=0, units=4, dtype="float32"):
    return nn.Sequential(
        nn.Conv2D(units, 3), nn.BatchNorm(), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Dense(3),
        input_shape=(6, 6, 2), seed=seed, dtype=dtype,
    )  # fmt: skip


def make_trainer(killed=0, optimizer=None, model=None, loss=None, averaged=True):
    """averaged: whether training ends with the averaged weights or with the best."""
    optimizer = optimizer or nn.ParameterGroups({"*.W": nn.Adam(nn.schedules.cosine(0.01, 15)), "*": nn.SGD(0.1, momentum=0.9)})
    average = nn.WeightAverage(0.8) if averaged else nn.Callback()
    stopping = nn.EarlyStopping("val_loss", patience=5, restore_best=not averaged)
    callbacks = [average, stopping, FreezeLater(), KillAt(killed)]
    metrics = [nn.Accuracy(), nn.TopK(2)]
    return nn.Trainer(model or make_model(), loss or nn.CrossEntropy(), optimizer, metrics, callbacks)


def make_data(n=37, seed=0):
    rng = np.random.default_rng(seed)
    data = nn.data.Dataset(rng.standard_normal((n, 6, 6, 2)).astype("float32"), rng.integers(0, 3, n), weights=rng.random(n))
    return data.augmented(nn.data.RandomFlip(), nn.data.RandomCrop(1))


def fit(trainer, data=None, **options):
    options = {"epochs": EPOCHS, "batch_size": BATCH, "validation": make_data(20, 1), "progress": False} | options
    return trainer.fit(data or make_data(), **options)


def outcome(trainer):
    """All that must be the same."""
    columns = {name: column for name, column in trainer.history.items() if name not in kills.TIMING}
    stopping = trainer.callbacks[1]
    return (
        trainer.model.params.tobytes(),
        trainer.model.buffers.tobytes(),
        columns,
        trainer.steps,
        trainer.epochs,
        trainer.model.passes,
        (stopping.best, stopping.waited, stopping.best_epoch),
        trainer.callbacks[0].state().get("count"),
    )


def undisturbed(**options):
    trainer = make_trainer(**options)
    fit(trainer)
    return outcome(trainer)


@settings(max_examples=12)
@given(
    places=st.lists(st.integers(1, EPOCHS * STEPS), max_size=4), every=st.integers(1, 7), threads=st.sampled_from([1, 2]),
    averaged=st.booleans(),
)  # fmt: skip
def test_interrupted_and_resumed_it_has_the_same_bits(tmp_path_factory, places, every, threads, averaged):
    folder = tmp_path_factory.mktemp("run")
    for place in places:
        with pytest.raises(Killed):
            fit(make_trainer(place, averaged=averaged), checkpoint=folder, every=every, resume=True) and raise_killed()
    nn.set_num_threads(threads)
    trainer = make_trainer(averaged=averaged)
    fit(trainer, checkpoint=folder, every=every, resume=True)
    assert outcome(trainer) == undisturbed(averaged=averaged)


def raise_killed():
    """Where the run was already past the place: it ended as it should."""
    raise Killed


def test_a_resumed_epoch_goes_on_in_its_middle(tmp_path, capsys):
    with pytest.raises(Killed):
        fit(make_trainer(8), checkpoint=tmp_path, every=3)
    seen = []
    trainer = make_trainer()
    trainer.callbacks[3].on_step_end = lambda t: seen.append(t.steps)
    fit(trainer, checkpoint=tmp_path, every=3, resume=True, progress=True)
    assert seen[0] == 7 and seen[-1] == EPOCHS * STEPS
    assert "going on from step 6 (epoch 2)" in capsys.readouterr().out


def test_iterables_of_batches_are_resumed_too(tmp_path):
    batches = list(make_data().batches(BATCH, shuffle=False))
    expected = make_trainer()
    fit(expected, batches)
    with pytest.raises(Killed):
        fit(make_trainer(8), batches, checkpoint=tmp_path, every=2)
    trainer = make_trainer()
    with pytest.warns(UserWarning, match=r"batches of list: nothing checks .* the first 1 are skipped"):
        fit(trainer, batches, checkpoint=tmp_path, every=2, resume=True)
    assert outcome(trainer) == outcome(expected)


def test_without_a_checkpoint_it_starts_afresh_and_says_so(tmp_path, capsys):
    trainer = make_trainer()
    fit(trainer, checkpoint=tmp_path / "new", resume=True, progress=True)
    assert "starting afresh" in capsys.readouterr().out
    assert outcome(trainer) == undisturbed()


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = make_trainer()
    fit(first, checkpoint=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = make_trainer()
    fit(again, checkpoint=tmp_path, resume=True)
    assert outcome(again) == outcome(first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_checkpoints_of_another_run_are_set_aside(tmp_path, capsys):
    first = make_trainer()
    fit(first, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = make_trainer()
    fit(second, epochs=1, batch_size=9, checkpoint=tmp_path, progress=True)  # fewer steps: its files come first by name
    assert "are now in" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "earlier-1").iterdir()} == before
    newest = make_trainer()
    fit(newest, epochs=1, batch_size=9, checkpoint=tmp_path, resume=True)
    assert outcome(newest) == outcome(second)
    again = make_trainer()
    fit(again, checkpoint=tmp_path / "earlier-1", resume=True)
    assert outcome(again) == outcome(first)
    fit(make_trainer(), epochs=0, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "earlier-2", "step-000000000.safetensors"]


def test_a_refused_folder_is_not_the_trainers_own(tmp_path):
    fit(make_trainer(), checkpoint=tmp_path)
    trainer = make_trainer()
    with pytest.raises(nn.StateError, match="batch_size"):
        fit(trainer, checkpoint=tmp_path, resume=True, batch_size=9)
    fit(trainer, checkpoint=tmp_path, batch_size=9)
    assert (tmp_path / "earlier-1" / "step-000000015.safetensors").exists()


def test_a_trainer_that_goes_on_may_keep_its_folder(tmp_path, monkeypatch):
    first = make_trainer()
    fit(first, epochs=1, checkpoint=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    fit(first, epochs=2, checkpoint="run")
    again = make_trainer()
    fit(again, epochs=2, checkpoint="run", resume=True)
    fit(again, epochs=1, checkpoint="run")
    assert first.epochs == 3 and again.epochs == 4
    assert again.history["loss"][:3] == first.history["loss"]
    assert not (tmp_path / "run" / "earlier-1").exists()


def test_the_last_and_the_best_are_kept(tmp_path):
    trainer = make_trainer(optimizer=nn.SGD(1.0))
    fit(trainer, checkpoint=tmp_path, every=1, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.safetensors", *(f"step-{n:09d}.safetensors" for n in (13, 14, 15))]
    losses = trainer.history["val_loss"]
    best = make_trainer(model=nn.load(tmp_path / "best.safetensors"))
    assert best.evaluate(make_data(20, 1))["loss"] == min(losses) != losses[-1]
    assert make_model(seed=5).load_weights(tmp_path / "best.safetensors")


def test_each_reader_says_whose_file_it_is(tmp_path):
    fit(make_trainer(), epochs=1, checkpoint=tmp_path)
    with pytest.raises(nn.FileError, match=r"step-000000005.*is a checkpoint.*resume=True.*best\.safetensors"):
        nn.load(tmp_path / "step-000000005.safetensors")
    with pytest.raises(nn.FileError, match=r"best.*not a checkpoint"):
        checkpoint.read(tmp_path / "best.safetensors")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, damage):
    with pytest.raises(Killed):
        fit(make_trainer(9), checkpoint=tmp_path, every=2)
    newest = checkpoint.Folder(tmp_path, 2).files()[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    newest.write_bytes({"flip": data, "cut": data[:-5], "empty": b"", "text": b"no tensors"}[damage])
    trainer = make_trainer()
    with pytest.warns(RuntimeWarning, match=r"damaged.*trying the one before it"):
        fit(trainer, checkpoint=tmp_path, every=2, resume=True)
    assert outcome(trainer) == undisturbed()


def test_when_all_are_damaged_nothing_is_thrown_away(tmp_path):
    fit(make_trainer(), checkpoint=tmp_path, every=2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"?")
    with pytest.warns(RuntimeWarning), pytest.raises(nn.FileError, match="none of the 2 checkpoints"):
        fit(make_trainer(), checkpoint=tmp_path, resume=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_leaves_the_old_one_and_training_says_so(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        fit(make_trainer(7), checkpoint=tmp_path, every=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    trainer = make_trainer()
    with pytest.warns(RuntimeWarning, match=r"No space left on device.*step-000000006"):
        fit(trainer, checkpoint=tmp_path, every=2, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert outcome(trainer) == undisturbed()


OTHERS = {
    "model.layers": lambda: (make_trainer(model=make_model(units=5)), {}),
    "model.dtype": lambda: (make_trainer(model=make_model(dtype="float64")), {}),
    "model.seed": lambda: (make_trainer(model=make_model(seed=1)), {}),
    "optimizer": lambda: (make_trainer(optimizer=nn.Adam(0.02)), {}),
    "loss.label_smoothing": lambda: (make_trainer(loss=nn.CrossEntropy(label_smoothing=0.1)), {}),
    "batch_size": lambda: (make_trainer(), {"batch_size": 9}),
    "seed": lambda: (make_trainer(), {"seed": 1}),
    "data.sha256": lambda: (make_trainer(), {"data": make_data(seed=5)}),
    "data.augmentations": lambda: (make_trainer(), {"data": make_data().augmented(nn.data.Cutout(2))}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused_and_the_difference_named(tmp_path, what):
    fit(make_trainer(), checkpoint=tmp_path)
    trainer, options = OTHERS[what]()
    before = trainer.model.params.copy()
    with pytest.raises(nn.StateError, match=rf"another run: .*{what}"):
        fit(trainer, checkpoint=tmp_path, resume=True, **options)
    assert np.array_equal(trainer.model.params, before)


@pytest.mark.parametrize("rate", [lambda step: 0.01 / (1 + step), nn.schedules.step(0.01, 5)])
def test_schedules_of_all_kinds_are_compared(tmp_path, rate):
    fit(make_trainer(optimizer=nn.SGD(rate)), checkpoint=tmp_path)
    fit(make_trainer(optimizer=nn.SGD(rate)), checkpoint=tmp_path, resume=True)
    with pytest.raises(nn.StateError, match="learning_rate"):
        fit(make_trainer(optimizer=nn.SGD(lambda step: 0.02)), checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_write_a_checkpoint_and_end_as_usual(tmp_path, number):
    process = kills.start(tmp_path)
    run = tmp_path / "run"
    while not list(run.glob("step-*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number, errors
    _, description = checkpoint.read(checkpoint.Folder(run, 2).files()[-1])
    assert 0 < description["steps"] < kills.EPOCHS * 20


def test_wrong_settings():
    for options in ({"resume": True}, {"every": 3}, {"checkpoint": "x", "every": 0}, {"checkpoint": "x", "keep": 0}):
        with pytest.raises(ValueError):
            fit(make_trainer(), **options)


def test_a_few_kills_with_sigkill():
    counts = kills.run(3, seed=1)
    assert counts["kills"] == 3 and counts["same bits"] == counts["runs"] > 0


def test_the_example_resumes(tmp_path):
    example = Path(__file__).parent.parent / "examples" / "cifar10.py"
    command = [sys.executable, str(example), "--data", "shapes", "--limit", "200", "--epochs", "1", "--out", str(tmp_path)]
    outputs = [subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert "starting afresh" in outputs[0] and "going on from step" in outputs[1]
