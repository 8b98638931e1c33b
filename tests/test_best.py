"""Which epoch is the best, for `best.safetensors`: by a column of the history, in the direction that its metric says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_callbacks import Figure, T, X, fit, make_trainer
from test_resume import KillAt, Killed

import nnlite as nn

VALIDATION = X[:20], T[:20]
EPOCHS = 6


class Scores(nn.Metric):
    """Gives these values, in training and validation by turns."""

    name = "score"

    def __init__(self, values, greater_is_better):
        self.values, self.greater_is_better, self.calls = values, greater_is_better, 0

    def result(self):
        self.calls += 1
        return self.values[(self.calls - 1) // 2]


class Remember(nn.Callback):
    def __init__(self):
        self.params = []

    def on_epoch_end(self, trainer, row):
        self.params.append(trainer.model.params.copy())


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, np.nan]), min_size=1, max_size=6).filter(lambda v: v[0] == v[0]),
    greater=st.booleans(), column=st.sampled_from(["score", "val_score"]),
)  # fmt: skip
def test_the_best_is_that_of_the_metrics_direction(tmp_path_factory, values, greater, column):
    folder, remember = tmp_path_factory.mktemp("run"), Remember()
    trainer = make_trainer([Scores(values, greater)], [remember])
    fit(trainer, epochs=len(values), checkpoint=folder, monitor=column)
    best = int(np.nanargmax(values) if greater else np.nanargmin(values))
    assert np.array_equal(nn.load(folder / "best.safetensors").params, remember.params[best])


@pytest.mark.parametrize(("options", "column"), [({}, "val_loss"), ({"validation": None}, "loss")])
def test_without_a_monitor_it_is_the_loss(tmp_path, options, column):
    remember = Remember()
    trainer = make_trainer([nn.Accuracy()], [remember], rate=30.0)
    losses = fit(trainer, epochs=EPOCHS, checkpoint=tmp_path, **options)[column]
    assert np.array_equal(nn.load(tmp_path / "best.safetensors").params, remember.params[int(np.argmin(losses))])
    assert losses[-1] != min(losses)
    fit(trainer, epochs=EPOCHS, checkpoint=tmp_path, resume=True, monitor=column, **options)  # the same, by its name


@given(place=st.integers(1, 2 * EPOCHS), every=st.sampled_from([None, 1]))
def test_a_resumed_run_finds_the_same(tmp_path_factory, place, every):
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    options = {"epochs": EPOCHS, "every": every, "monitor": "val_accuracy"}
    with pytest.raises(Killed):
        fit(make_trainer([nn.Accuracy()], [KillAt(place)], rate=30.0), checkpoint=folders[0], **options)
    fit(make_trainer([nn.Accuracy()], rate=30.0), checkpoint=folders[0], resume=True, **options)
    fit(make_trainer([nn.Accuracy()], rate=30.0), checkpoint=folders[1], **options)
    files = [(folder / "best.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1]


@pytest.mark.parametrize("monitor", ["val_acc", "", "seconds ", 3, "x" * 9999])
def test_a_name_that_the_history_will_not_have_is_refused_before_anything_is_done(tmp_path, monitor):
    trainer = make_trainer([nn.Accuracy(), *(Figure(f"figure {i}" * 20) for i in range(20))])
    with pytest.raises(nn.DataError, match=r"fit watches .*, the history will have loss, accuracy, figure") as caught:
        fit(trainer, checkpoint=tmp_path / "run", monitor=monitor)
    assert len(str(caught.value)) <= 600
    assert trainer.steps == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("monitor", ["figure", "val_figure", "seconds", "learning_rate"])
def test_so_is_one_of_which_nobody_says_what_is_better(tmp_path, monitor):
    trainer = make_trainer([Figure("figure")])
    with pytest.raises(ValueError, match=rf"fit watches '{monitor}', .* give the metric greater_is_better = True or False"):
        fit(trainer, checkpoint=tmp_path / "run", monitor=monitor)
    assert trainer.steps == 0 and not list(tmp_path.iterdir())


def test_it_needs_checkpoints_and_validation(tmp_path):
    with pytest.raises(ValueError, match="monitor need checkpoint="):
        fit(make_trainer(), monitor="loss")
    with pytest.raises(nn.DataError, match=r"'val_loss'.*: columns val_\.\.\. need validation="):
        fit(make_trainer(), validation=None, checkpoint=tmp_path, monitor="val_loss")


def test_a_run_goes_on_with_the_same_monitor_only(tmp_path):
    """The model of another best epoch may be gone."""
    fit(make_trainer([nn.Accuracy()]), checkpoint=tmp_path)
    with pytest.raises(nn.StateError, match="another run: monitor was None, is 'val_accuracy'"):
        fit(make_trainer([nn.Accuracy()]), checkpoint=tmp_path, resume=True, monitor="val_accuracy")
