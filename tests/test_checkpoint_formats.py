"""Checkpoints that earlier versions wrote go on.

The files in `formats/` were made by the code of commit eb139e9: `python tests/test_checkpoint_formats.py tests/formats`.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import nnlite as nn

HERE = Path(__file__).parent / "formats"
X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 40)


class FreezeLater(nn.Callback):
    def __init__(self, killed):
        self.killed = killed

    def on_step_end(self, trainer):
        if trainer.steps == self.killed:
            raise KeyboardInterrupt
        if trainer.steps == 4:
            trainer.model.freeze("4.b")


def in_the_middle(killed=0):
    """Groups, a schedule, momentum, batch norm, dropout, frozen parameters, metrics and callbacks with state."""
    model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(3), input_shape=(4,))
    model.freeze("0.b")
    groups = {"*.W": nn.Adam(nn.schedules.linear(0.03, 15)), "*": nn.SGD(0.1, momentum=0.9)}
    callbacks = [nn.WeightAverage(0.8), FreezeLater(killed), nn.EarlyStopping("val_accuracy", patience=9, restore_best=False)]
    optimizer = nn.ParameterGroups(groups, clip_norm=1.0)
    return nn.Trainer(model, nn.CrossEntropy(), optimizer, [nn.Accuracy(), nn.F1()], callbacks)


def stopped(patience=1):
    """Early stopping that has stopped after 2 epochs."""
    model = nn.Sequential(nn.Dense(3), input_shape=(4,))
    stopping = nn.EarlyStopping("loss", patience=patience, min_delta=10.0)
    return nn.Trainer(model, nn.CrossEntropy(), nn.AdamW(0.01), callbacks=[stopping])


def fit(trainer, folder=None, **options):
    options = {"epochs": 3, "batch_size": 8, "validation": (X[:20], T[:20]), "progress": False} | options
    trainer.fit((X, T), checkpoint=folder, **options)
    return trainer


def write(folder):
    trainer = fit(in_the_middle())
    stop = fit(stopped())
    np.savez(folder / "final.npz", middle=np.concatenate(trainer.model.snapshot()), stopped=stop.model.params)
    try:
        fit(in_the_middle(killed=9), folder / "middle", every=2, keep=1)
    except KeyboardInterrupt:
        fit(stopped(), folder / "stopped", keep=1)
    for best in folder.glob("*/best.safetensors"):
        best.unlink()


class Kept(nn.Callback):
    def state(self):
        return {"n": 1}


@pytest.fixture
def copied(tmp_path):
    """A copy of a run's folder, which training may write to."""
    return lambda name: shutil.copytree(HERE / name, tmp_path / name)


def assert_as_undisturbed(trainer):
    assert trainer.steps == trainer.model.passes == 15 and trainer.history.epochs == 3
    assert [slot.name for slot in trainer.model.vectors.trained if slot.frozen] == ["0.b", "4.b"]
    final = np.load(HERE / "final.npz")["middle"]
    np.testing.assert_allclose(np.concatenate(trainer.model.snapshot()), final, rtol=1e-4, atol=1e-6)


def test_a_run_of_format_2_goes_on_as_it_would_have(copied):
    assert_as_undisturbed(fit(in_the_middle(), copied("middle"), resume=True))


def test_it_is_kept_in_the_present_format_from_there_on(copied):
    folder = copied("middle")
    with pytest.raises(KeyboardInterrupt):
        fit(in_the_middle(killed=11), folder, every=2, resume=True)
    assert_as_undisturbed(fit(in_the_middle(), folder, resume=True))
    trainer = in_the_middle()
    trainer.model.unfreeze("*")
    with pytest.raises(nn.StateError, match=r"frozen\.0\.b was True, is False"):
        fit(trainer, folder, resume=True)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (9, 3)])
def test_a_stopped_run_of_format_2(copied, patience, epochs):
    trainer = fit(stopped(patience), copied("stopped"), resume=True)
    assert trainer.epochs == epochs
    np.testing.assert_allclose(trainer.model.params, np.load(HERE / "final.npz")["stopped"], rtol=1e-5)


def test_another_run_than_that_of_format_2_is_refused(copied):
    trainer = in_the_middle()
    trainer.callbacks.append(Kept())
    with pytest.raises(nn.StateError, match=r"another run: callbacks\.Kept was None, is \{\}"):
        fit(trainer, copied("middle"), resume=True)
    folder = copied("stopped")
    with pytest.raises(nn.StateError, match=r"another run: batch_size was 8, is 9"):
        fit(stopped(), folder, resume=True, batch_size=9)
    with pytest.raises(nn.StateError, match=r"another run: steps_per_epoch was None, is 3"):
        fit(stopped(), folder, resume=True, steps_per_epoch=3)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
