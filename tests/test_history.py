"""The history: its columns, learning rates among them, and as files."""

import csv
import re

import numpy as np
import pytest
from test_callbacks import Figure, fit, make_trainer
from test_resume import KillAt, Killed

import nnlite as nn

STEPS = 2  # an epoch

# ---- learning rates


def groups(rate):
    return nn.ParameterGroups({"*.W": nn.Adam(rate), "*": nn.SGD(0.5)})


SCHEDULES = [nn.schedules.linear(1.0, 5), nn.schedules.step(0.1, 3), [0.4, 0.3, 0.2, 0.1, 0.0, 0.1].__getitem__]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_of_an_epoch_is_that_of_its_last_step(schedule):
    trainer = make_trainer()
    trainer.optimizer = nn.SGD(schedule)
    history = fit(trainer, epochs=3)
    assert history["learning_rate"] == [schedule(1), schedule(3), schedule(5)]


def test_each_group_has_a_column():
    trainer = make_trainer()
    trainer.optimizer = groups(nn.schedules.linear(1.0, 8))
    history = fit(trainer, epochs=2)
    assert history["learning_rate_*.W"] == [1 - 1 / 8, 1 - 3 / 8] and history["learning_rate_*"] == [0.5, 0.5]
    assert "learning_rate" not in history


class Halve(nn.Callback):
    """Halves the rate at the n-th call of a hook."""

    def __init__(self, hook):
        setattr(self, hook, self.halve)

    def halve(self, trainer, row=None):
        trainer.optimizer.learning_rate /= 2


@pytest.mark.parametrize(
    ("hook", "rates"), [("on_epoch_end", [0.1, 0.1 / 2, 0.1 / 4]), ("on_step_end", [0.1 / 4, 0.1 / 16, 0.1 / 64])]
)
def test_a_rate_that_a_callback_changes(hook, rates):
    assert fit(make_trainer(callbacks=[Halve(hook)]), epochs=3)["learning_rate"] == rates


def test_a_plateau_shows_in_the_column():
    """The row of the epoch after which the rate was reduced has the rate that it was trained with."""
    trainer = make_trainer(callbacks=[nn.ReduceOnPlateau("loss", patience=0, mode="max")])
    assert fit(trainer, epochs=3)["learning_rate"] == [0.1, 0.1, 0.1 * 0.1]


@pytest.mark.parametrize(("optimizer", "column"), [(nn.SGD(), "learning_rate"), (groups(0.1), "learning_rate_*.W")])
def test_a_metric_of_its_name_is_refused(optimizer, column):
    with pytest.raises(ValueError, match=rf"the name '{re.escape(column)}' of a metric is taken"):
        nn.Trainer(make_trainer().model, nn.CrossEntropy(), optimizer, [Figure(column)])


def test_a_callback_may_watch_it():
    trainer = make_trainer(callbacks=[nn.EarlyStopping("learning_rate", patience=2, mode="max")])
    assert fit(trainer, epochs=9).epochs == 3


def test_a_run_from_before_there_was_the_column_goes_on(tmp_path):
    trainer, expected = make_trainer(callbacks=[KillAt(2 * STEPS + 1)]), fit(make_trainer(), epochs=4)
    trainer.history.append = lambda row: nn.History.append(
        trainer.history, {name: value for name, value in row.items() if name != "learning_rate"}
    )
    with pytest.raises(Killed):
        fit(trainer, epochs=4, checkpoint=tmp_path)
    assert "learning_rate" not in trainer.history
    history = fit(make_trainer(), epochs=4, checkpoint=tmp_path, resume=True)
    assert np.isnan(history["learning_rate"][:2]).all() and history["learning_rate"][2:] == [0.1, 0.1]
    assert history["val_loss"] == expected["val_loss"]


# ---- files


def test_history_to_csv_and_plot(tmp_path):
    history = nn.History()
    history.append({"loss": 1.0, "accuracy": 0.1})
    history.append({"loss": 0.1 + 0.2, "accuracy": 0.5, "val_loss": 2.0})
    history.to_csv(tmp_path / "h.csv")
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == 0.1 + 0.2 and rows[0]["val_loss"] == "nan"
    history.plot(tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes()[:4] == b"\x89PNG"
