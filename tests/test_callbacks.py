"""Callbacks: which epoch is the best, what they refuse before the first step, who sets the weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 40)


class Figure(nn.Metric):
    """The largest output."""

    def __init__(self, name, greater_is_better=None):
        self.name, self.greater_is_better = name, greater_is_better
        self.reset()

    def reset(self):
        self.most = -np.inf

    def update(self, z, t, sample_weight=None):
        self.most = max(self.most, float(z.max()))

    def result(self):
        return self.most


def make_trainer(metrics=(), callbacks=(), rate=0.1):
    model = nn.Sequential(nn.Dense(3), input_shape=(4,))
    return nn.Trainer(model, nn.CrossEntropy(), nn.SGD(rate), metrics, callbacks)


def fit(trainer, **options):
    return trainer.fit((X, T), **({"batch_size": 20, "validation": (X[:20], T[:20]), "progress": False} | options))


# ---- early stopping


@given(
    values=st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=8),
    name=st.sampled_from(["r2", "f1", "error", "val_x"]), column=st.sampled_from(["{}", "val_{}"]),
    greater=st.sampled_from([True, False, None]), mode=st.sampled_from([None, "min", "max"]),
)  # fmt: skip
def test_the_best_epoch_is_that_of_the_metrics_direction(values, name, column, greater, mode):
    stopping = nn.EarlyStopping(column.format(name), patience=99, mode=mode)
    trainer = make_trainer([Figure(name, greater)], [stopping])
    if greater is None and mode is None:
        with pytest.raises(ValueError, match=r'watches .* mode="max" or "min", or the metric greater_is_better'):
            fit(trainer)
        assert trainer.steps == 0
        return
    snapshots = []
    for trainer.epochs, value in enumerate(values, start=1):
        trainer.model.params = np.full_like(trainer.model.params, trainer.epochs)
        snapshots.append(trainer.model.params.copy())
        stopping.on_epoch_end(trainer, {column.format(name): value})
    best = int(np.argmax(values) if (greater if mode is None else mode == "max") else np.argmin(values))
    stopping.on_fit_end(trainer)
    assert stopping.best_epoch == best + 1 and np.array_equal(trainer.model.params, snapshots[best])


@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_of_losses_the_smallest_is_the_best(name):
    assert make_trainer().greater_is_better(name) is False
    trainer = make_trainer(callbacks=[nn.EarlyStopping(name, patience=1)], rate=1e4)
    losses = fit(trainer, epochs=9)[name]
    assert trainer.epochs == int(np.argmin(losses)) + 2


def test_nnlites_own_metrics_say_what_is_better():
    figures = [nn.Accuracy(), nn.TopK(2), nn.Precision(), nn.Recall("micro"), nn.F1()]
    assert all(metric.greater_is_better is True for metric in figures)
    assert nn.ConfusionMatrix().greater_is_better is nn.F1(average=None).greater_is_better is None, "no numbers"


@pytest.mark.parametrize("kind", [nn.EarlyStopping, nn.ReduceOnPlateau])
@pytest.mark.parametrize("monitor", ["val_acc", "accuracy ", "val_val_loss", "val_accuracy" * 99, "", None, 3])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_name_that_the_history_will_not_have_is_refused_before_anything_is_done(tmp_path, kind, monitor, checkpoint):
    trainer = make_trainer([nn.Accuracy(), *(Figure(f"figure {i}" * 20) for i in range(20))], [kind(monitor)])
    with pytest.raises(
        nn.DataError, match=rf"{kind.__name__} watches .*, the history will have loss, accuracy, figure"
    ) as caught:
        fit(trainer, checkpoint=tmp_path / "run" if checkpoint else None)
    assert len(str(caught.value)) <= 600
    assert trainer.steps == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [nn.EarlyStopping, nn.ReduceOnPlateau])
def test_a_metric_that_does_not_say_what_is_better_is_refused_before_anything_is_done(tmp_path, kind):
    trainer = make_trainer([Figure("figure" * 99)], [kind("val_" + "figure" * 99)])
    with pytest.raises(ValueError, match=rf'watches .*give {kind.__name__} mode="max" or "min", or the metric') as caught:
        fit(trainer, checkpoint=tmp_path / "run")
    assert len(str(caught.value)) <= 600
    assert trainer.steps == 0 and not list(tmp_path.iterdir())


def test_a_column_of_validation_needs_one():
    trainer = make_trainer([nn.Accuracy()], [nn.EarlyStopping("val_accuracy")])
    with pytest.raises(nn.DataError, match=r"'val_accuracy'.*validation="):
        fit(trainer, validation=None)
    fit(trainer)


def test_bad_arguments():
    for bad in (lambda: nn.EarlyStopping(patience=0), lambda: nn.EarlyStopping(mode="best")):
        with pytest.raises(ValueError):
            bad()


# ---- who sets the weights


class Sets(nn.Callback):
    sets_weights = True


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("pair", [(nn.EarlyStopping, nn.WeightAverage), (Sets, nn.WeightAverage), (Sets, nn.EarlyStopping)])
def test_two_that_set_the_weights_are_refused(pair, swapped):
    callbacks = [make() for make in (reversed(pair) if swapped else pair)]
    trainer = make_trainer(callbacks=callbacks)
    with pytest.raises(ValueError, match=r"both set the weights .*restore_best=False"):
        fit(trainer)
    assert trainer.steps == 0


def test_one_that_only_stops_leaves_them_to_the_average():
    callbacks = [nn.WeightAverage(0.5), nn.EarlyStopping(patience=1, restore_best=False)]
    trainers = [make_trainer(callbacks=order, rate=1e4) for order in (callbacks, callbacks[::-1])]
    for trainer in trainers:
        fit(trainer, epochs=9)
        assert trainer.epochs < 9
    assert np.array_equal(trainers[0].model.params, trainers[1].model.params)
