"""Whatever raises while a run is kept: the steps that were made are in a checkpoint, and it goes on to the same bits."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kills import TIMING

import nnlite as nn
from nnlite.training import checkpoint

BATCH, EPOCHS, STEPS = 8, 3, 5  # steps an epoch
X = np.random.default_rng(0).standard_normal((37, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 37)


class Trouble(Exception):
    pass


class Troubles:
    """Raises at the n-th call from a place; from none without one."""

    place, left = None, 0

    def at(self, place):
        if place == self.place:
            self.left -= 1
            if not self.left:
                raise Trouble(place)


troubles = Troubles()


@pytest.fixture(autouse=True)
def _no_troubles():
    troubles.place = None


class Fails(nn.Callback):
    def __init__(self, where):
        self.where = where

    def on_fit_begin(self, trainer):
        troubles.at(f"fit begin {self.where}")

    def on_epoch_begin(self, trainer):
        troubles.at(f"epoch begin {self.where}")

    def on_step_end(self, trainer):
        troubles.at(f"step end {self.where}")

    def on_epoch_end(self, trainer, row):
        troubles.at(f"epoch end {self.where}")

    def on_fit_end(self, trainer):
        troubles.at(f"fit end {self.where}")


class Slower(nn.Callback):
    """Changes the optimiser after each epoch."""

    def on_epoch_end(self, trainer, row):
        trainer.optimizer.learning_rate *= 0.5


class Flaky(nn.Accuracy):
    name = "flaky"

    def update(self, z, t, sample_weight=None):
        troubles.at("metric")
        super().update(z, t, sample_weight)

    def result(self):
        troubles.at("result")
        return super().result()


class Loss(nn.CrossEntropy):
    def per_sample(self, backend, z, t):
        troubles.at("loss")
        return super().per_sample(backend, z, t)


class Plain(nn.Layer):
    def forward(self, a, ctx):
        troubles.at("layer")
        return a.copy()

    def backward(self, delta, ctx):
        troubles.at("layer backward")
        return delta.copy()


class Adam(nn.Adam):
    def update(self, *args, **kwargs):
        troubles.at("optimizer")
        super().update(*args, **kwargs)


class Data(nn.data.Dataset):
    def batches(self, *args, **kwargs):
        for batch in super().batches(*args, **kwargs):
            troubles.at("source")
            yield batch


class Validation:
    """A user's own iterable."""

    def __iter__(self):
        for i in (0, 10):
            troubles.at("validation")
            yield X[i : i + 10], T[i : i + 10]


def make():
    model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), Plain(), nn.Dropout(0.3), nn.Dense(3), input_shape=(4,))
    stopping = nn.EarlyStopping("val_accuracy", patience=9, restore_best=False)
    callbacks = [Fails("first"), nn.WeightAverage(0.8), Slower(), stopping, Fails("last")]
    return nn.Trainer(model, Loss(), Adam(0.03), [nn.Accuracy(), Flaky()], callbacks)


def fit(trainer, folder=None, data=None, **options):
    options = {"epochs": EPOCHS, "batch_size": BATCH, "validation": Validation(), "progress": False} | options
    trainer.fit(data or Data(X, T), checkpoint=folder, **options)
    return trainer


def outcome(trainer, without=()):
    columns = {name: column for name, column in trainer.history.items() if name not in (*TIMING, *without)}
    average, stopping = trainer.callbacks[1], trainer.callbacks[3]
    counters = trainer.steps, trainer.epochs, trainer.model.passes, trainer.optimizer.learning_rate, average.count
    return trainer.model.params.tobytes(), trainer.model.buffers.tobytes(), counters, stopping.state(), columns


STEP = ["step end first", "step end last", "metric", "source", "loss", "layer", "layer backward"]
EPOCH = ["epoch begin first", "epoch begin last", "epoch end first", "epoch end last", "validation", "result"]


@pytest.mark.parametrize("place", [*STEP, *EPOCH, "optimizer"])
@settings(max_examples=5)
@given(n=st.integers(1, 11), every=st.sampled_from([None, 2, 5]))
@example(n=3, every=None)
@example(n=8, every=None)
def test_what_was_made_is_kept_and_goes_on_to_the_same_bits(tmp_path_factory, place, n, every):
    folder, trainer = tmp_path_factory.mktemp("run"), make()
    troubles.place = None
    expected = fit(make())
    troubles.place, troubles.left = place, n
    try:
        fit(trainer, folder, every=every)
    except Trouble:
        pass
    else:
        return  # so often nobody calls
    troubles.place = None
    files, made = checkpoint.Folder(folder, 2).files(), trainer.steps
    assert bool(files) == bool(made) or place == "optimizer"
    if files and place != "optimizer":
        assert checkpoint.read(files[-1])[1]["steps"] == made
    again = fit(make(), folder, every=every, resume=True)
    without = ["flaky"] if place == "metric" else []  # it has missed a batch
    assert outcome(again, without) == outcome(expected, without)
    if without and troubles.left == 0 and made % STEPS:
        assert np.isnan(again.history["flaky"][made // STEPS])


def test_in_the_same_process_too(tmp_path):
    trainer = make()
    troubles.place, troubles.left = "epoch end last", 2
    with pytest.raises(Trouble):
        fit(trainer, tmp_path)
    troubles.place = None
    fit(trainer, tmp_path, resume=True)
    assert outcome(trainer) == outcome(fit(make()))


@pytest.mark.parametrize("place", ["fit begin last", "fit end first"])
def test_around_the_steps_nothing_can_be_lost(tmp_path, place):
    troubles.place, troubles.left = place, 1
    with pytest.raises(Trouble):
        fit(make(), tmp_path)
    troubles.place = None
    assert outcome(fit(make(), tmp_path, resume=True)) == outcome(fit(make()))


def test_all_others_see_a_step_in_which_several_raise(tmp_path):
    class Raises(nn.Callback):
        def on_step_end(self, trainer):
            raise Trouble(id(self))

    trainer = make()
    trainer.callbacks = [Raises(), Raises(), *trainer.callbacks]
    with pytest.raises(Trouble, match=str(id(trainer.callbacks[0]))) as caught:
        fit(trainer, tmp_path)
    assert trainer.callbacks[3].count == trainer.steps == 1
    assert "another one raised Trouble" in caught.value.__notes__[0]


def test_a_first_batch_that_fails_leaves_no_file(tmp_path):
    """It would be of other data than those that are mended."""
    troubles.place, troubles.left = "layer", 2  # the first is the check of the validation data
    with pytest.raises(Trouble):
        fit(make(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("every", [None, 2])
def test_after_a_bad_loss_nothing_is_kept(tmp_path, every):
    x = X.copy()
    x[4 * BATCH] = np.nan
    trainer = nn.Trainer(make().model, nn.CrossEntropy(), nn.Adam())
    with np.errstate(all="ignore"), pytest.raises(nn.NonFiniteError):
        trainer.fit((x, T), batch_size=BATCH, shuffle=False, progress=False, checkpoint=tmp_path, every=every)
    assert [int(path.stem[5:]) for path in checkpoint.Folder(tmp_path, 2).files()] == ([2, 4] if every else [])


def test_without_a_folder_exceptions_are_as_they_were():
    troubles.place, troubles.left = "step end first", 3
    trainer = make()
    with pytest.raises(Trouble):
        fit(trainer)
    assert trainer.steps == 3


# ---- before the first step

BAD = {
    "labels": ((X, T + 1), "validation: labels must be in 0 ... 2, found 3"),
    "a label far behind": ((np.zeros((2000, 4)), np.r_[np.zeros(1999, int), 9]), "validation: labels must be .*, found 9"),
    "targets": ((X, T + 0.5), "validation: labels must be integers"),
    "shapes": ((X[:, :3], T), r"validation: layer 0 .*expects inputs \(N, 4\)"),
    "lengths": ([(X, T[:5])], "validation: .*targets have shape"),
    "no batch": ([], "validation: the data gave no batch"),
    "batches": ([X], "validation: a batch must be"),
    "a kind": (3, "data must be"),
    "a negative weight": ([(X, T, -np.ones(37))], "validation: .*weights .* add up to -37"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_validation_data_are_refused_before_the_first_step(tmp_path, bad):
    data, words = BAD[bad]
    trainer = make()
    with pytest.raises((nn.DataError, nn.ShapeError), match=words) as caught:
        fit(trainer, tmp_path / "run", validation=data)
    assert trainer.steps == 0 and not (tmp_path / "run").exists() and len(str(caught.value)) <= 600


@pytest.mark.parametrize("rows", [[36], [0], [10, 20]])
def test_bad_training_data_are_refused_before_the_first_step(tmp_path, rows):
    t = T.copy()
    t[rows] = 3
    trainer = make()
    with pytest.raises(nn.DataError, match=r"training data: labels must be in 0 ... 2, found 3"):
        fit(trainer, tmp_path / "run", (X, t))
    assert trainer.steps == 0 and not (tmp_path / "run").exists()


def batches():
    yield X, T


@pytest.mark.parametrize(
    "make_once", [batches, lambda: iter([(X, T)]), lambda: map(tuple, [(X, T)]), lambda: zip([X], [T], strict=True)]
)
def test_validation_that_is_spent_after_one_epoch_is_refused(make_once):
    trainer = make()
    with pytest.raises(nn.DataError, match=r"validation: a \w+ is spent after the first epoch.*begins anew"):
        fit(trainer, validation=make_once())
    assert trainer.steps == 0
    fit(trainer, validation=make_once(), epochs=1)
    assert len(trainer.history["val_loss"]) == 1


def test_validation_may_be_its_own_iterator():
    class Own:
        def __iter__(self):
            self.left = [(X[:20], T[:20]), (X[20:], T[20:])]
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            return self.left.pop()

    histories = [fit(make(), validation=data).history for data in (Own(), (X, T))]
    np.testing.assert_allclose(histories[0]["val_loss"], histories[1]["val_loss"], rtol=1e-6)


def test_an_iterator_that_is_spent_is_not_blamed_on_weights(tmp_path):
    class Spent:
        left = iter([(X, T)])

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.left)

    with pytest.raises(nn.DataError, match="nothing to evaluate: the data gave no batch: an iterable must begin anew"):
        fit(make(), tmp_path, validation=Spent())
    assert checkpoint.read(checkpoint.Folder(tmp_path, 2).files()[-1])[1]["steps"] == 2 * STEPS, "its training is kept"


def test_validation_is_gone_through_once_an_epoch():
    class Counted:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield X, T

    counted = Counted()
    fit(make(), validation=counted)
    assert counted.passes == EPOCHS


@pytest.mark.parametrize("kind", ["a file", "below a file", "no place"])
def test_a_folder_that_cannot_be_is_refused_before_the_first_step(tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    path = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "run", "no place": "/proc/nowhere/run"}[kind]
    trainer = make()
    for resume in (False, True):
        with pytest.raises(nn.FileError, match="no checkpoints can be written to the folder"):
            fit(trainer, path, resume=resume)
    assert trainer.steps == 0 and (tmp_path / "file").read_text() == "mine"


def test_what_is_refused_leaves_the_checkpoints_where_they_are(tmp_path):
    fit(make(), tmp_path)
    before = sorted(tmp_path.iterdir())
    for options in ({"validation": (X, T + 1)}, {"validation": None}):
        with pytest.raises(nn.DataError):
            fit(make(), tmp_path, **options)
    assert sorted(tmp_path.iterdir()) == before
