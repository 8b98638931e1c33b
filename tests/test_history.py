"""The history: its columns, learning rates among them, and as files."""

import csv
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_callbacks import Figure, fit, make_trainer
from test_resume import KillAt, Killed

import nnlite as nn
from nnlite import atomic
from nnlite.training import csvlog

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


def test_a_metric_of_the_name_of_a_class_is_refused():
    with pytest.raises(ValueError, match="the name 'recall_1' of a metric is taken"):
        make_trainer(metrics=[nn.Recall(average=None), Figure("recall_1")])


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


def test_history_to_csv(tmp_path):
    history = nn.History()
    history.append({"loss": 1.0, "accuracy": 0.1})
    history.append({"loss": 0.1 + 0.2, "accuracy": 0.5, "val_loss": 2.0})
    history.to_csv(tmp_path / "h.csv")
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == 0.1 + 0.2 and rows[0]["val_loss"] == "nan"


def read(path):
    header, *lines = csv.reader(path.read_text().splitlines())
    return header, lines


def whole(history, tmp_path):
    history.to_csv(tmp_path / "whole.csv")
    return (tmp_path / "whole.csv").read_text()


class Watch(nn.Callback):
    """Keeps what a file has after each epoch, and which file it is."""

    def __init__(self, path):
        self.path, self.seen = path, []

    def on_step_end(self, trainer):
        if not self.seen:
            self.keep()

    def on_epoch_end(self, trainer, row):
        self.keep()

    def keep(self):
        self.seen.append((self.path.stat().st_ino, self.path.read_text()))


def test_a_log_grows_line_by_line(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("of another run")
    watch = Watch(path)
    history = fit(make_trainer([nn.Accuracy()], [nn.CSVLog(path), watch]), epochs=3)
    files, texts = zip(*watch.seen, strict=True)
    assert [text.count("\n") for text in texts] == [1, 2, 3, 4] and all(texts[-1].startswith(text) for text in texts)
    assert len(set(files)) == 1, "a reader need not open it again"
    assert texts[-1] == whole(history, tmp_path)


@given(places=st.lists(st.integers(1, 8), max_size=4), every=st.sampled_from([None, 1]), first=st.booleans())
def test_a_resumed_run_writes_no_line_twice(tmp_path_factory, places, every, first):
    folder = tmp_path_factory.mktemp("run")
    path = folder / "log.csv"

    def callbacks(killed=0):
        log, kill = nn.CSVLog(path), KillAtEnd(killed)
        return [log, kill] if first else [kill, log]

    for place in places:
        with suppress(Killed):
            fit(make_trainer(callbacks=callbacks(place)), epochs=4, checkpoint=folder / "run", every=every, resume=True)
        path.write_text(path.read_text()[:-3])  # a line half written, as by a power cut
    history = fit(make_trainer(callbacks=callbacks()), epochs=4, checkpoint=folder / "run", every=every, resume=True)
    assert path.read_text() == whole(history, folder)
    header, lines = read(path)
    assert header == ["epoch", *history] and [line[0] for line in lines] == ["1", "2", "3", "4"]


class KillAtEnd(KillAt):
    """At a step, or after the epoch of this step."""

    def on_epoch_end(self, trainer, row):
        self.on_step_end(trainer)


def test_a_second_fit_goes_on_in_the_log_and_new_columns_are_nan_before(tmp_path):
    path = tmp_path / "log.csv"
    trainer = make_trainer(callbacks=[nn.CSVLog(path)])
    fit(trainer, epochs=2, validation=None)
    trainer.metrics.append(nn.Accuracy())
    history = fit(trainer, epochs=2)
    header, lines = read(path)
    assert path.read_text() == whole(history, tmp_path) and len(lines) == 4
    column = header.index("val_accuracy")
    assert [line[column] for line in lines[:2]] == ["nan", "nan"] and float(lines[3][column]) == history["val_accuracy"][3]


def test_results_that_are_no_numbers_have_no_column_in_the_log(tmp_path):
    path = tmp_path / "log.csv"
    history = fit(make_trainer([nn.ConfusionMatrix()], [nn.CSVLog(path)]), epochs=2)
    assert path.read_text() == whole(history, tmp_path) and "confusion" not in path.read_text()


def test_a_log_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "no" / "log.csv"):
        trainer = make_trainer(callbacks=[nn.CSVLog(path)])
        with pytest.raises(nn.FileError, match="folder"):
            fit(trainer, checkpoint=tmp_path / "run")
        assert trainer.steps == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def become_a_folder(path, monkeypatch):
    path.unlink()
    path.mkdir()


def be_cut(path, monkeypatch):
    def half(path, data):
        atomic.append(path, data[:5])
        raise nn.FileError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(csvlog, "append", half)


@pytest.mark.parametrize("trouble", [become_a_folder, be_cut])
def test_training_goes_on_where_the_log_fails_and_the_next_epoch_mends_it(tmp_path, monkeypatch, trouble):
    path = tmp_path / "log.csv"

    class Trouble(nn.Callback):
        """In the second epoch."""

        def on_epoch_begin(self, trainer):
            if trainer.epochs == 1:
                trouble(path, monkeypatch)
            if trainer.epochs == 2:
                monkeypatch.undo()
                path.rmdir() if path.is_dir() else None

    trainer = make_trainer(callbacks=[Trouble(), nn.CSVLog(path)])
    with pytest.warns(RuntimeWarning, match=r"log\.csv .*; training continues"):
        history = fit(trainer, epochs=4)
    assert path.read_text() == whole(history, tmp_path)


def test_a_log_that_was_removed_comes_back_whole(tmp_path):
    path = tmp_path / "log.csv"

    class Remove(nn.Callback):
        def on_epoch_begin(self, trainer):
            path.unlink()

    history = fit(make_trainer(callbacks=[nn.CSVLog(path), Remove()]), epochs=2)
    assert path.read_text() == whole(history, tmp_path)
