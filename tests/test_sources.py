"""Where batches come from: `predict` takes what `fit` and `evaluate` take; an epoch is a pass, or so many steps."""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import KillAt, Killed

import nnlite as nn

rng = np.random.default_rng(0)
X = rng.standard_normal((24, 2, 3)).astype("float32")
T = rng.integers(0, 2, 24)
W = rng.random(24) + 0.1


def make_trainer(callbacks=(), optimizer=None):
    model = nn.Sequential(nn.Flatten(), nn.Dense(4), nn.Dropout(0.2), nn.Dense(2), input_shape=(2, 3))
    return nn.Trainer(model, nn.CrossEntropy(), optimizer or nn.Adam(0.01), metrics=[nn.Accuracy()], callbacks=callbacks)


def cut(size):
    return [slice(first, first + size) for first in range(0, len(X), size)]


class Sequence:
    """Batches by number, without `__iter__`; as Keras's, it raises no IndexError behind the last."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i % len(self.items)]


class Anew:
    """An iterator that begins anew in `__iter__`."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        self.rest = iter(self.items)
        return self

    def __next__(self):
        return next(self.rest)


class Once(Iterator):
    """A user's own, which has `__iter__` from the standard library."""

    def __init__(self, items):
        self.rest = iter(items)

    def __next__(self):
        return next(self.rest)


ITERABLES = {
    "list": list,
    "sequence": Sequence,
    "generator": lambda items: (item for item in items),
    "iterator": iter,
    "anew": Anew,
}
LABELLED = {
    "(x, t)": lambda rows: (X[rows], T[rows]),
    "(x, t, w)": lambda rows: (X[rows], T[rows], W[rows]),
    "[x, t]": lambda rows: [X[rows], T[rows]],
    "lists": lambda rows: (X[rows].tolist(), T[rows].tolist()),
}
ITEMS = LABELLED | {"x": lambda rows: X[rows], "x as a list": lambda rows: X[rows].tolist()}
WHOLE = {
    "x": X,
    "lists": X.tolist(),
    "list of samples": list(X),
    "(x, t)": (X, T),
    "(x, t, w)": (X, T, W),
    "data set": nn.data.Dataset(X, T, weights=W),
    "ignored labels": (X, None),
}


@pytest.mark.parametrize("kind", ITERABLES)
@pytest.mark.parametrize("item", ITEMS)
@given(size=st.integers(1, 24), passed=st.integers(1, 30))
def test_predict_takes_batches_of_every_kind(kind, item, size, passed):
    trainer = make_trainer()
    given = ITERABLES[kind]([ITEMS[item](rows) for rows in cut(size)])
    np.testing.assert_allclose(trainer.predict(given, batch_size=passed), trainer.model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("views", [(), [lambda x: x, lambda x: x]])
def test_predict_takes_whole_data(data, views):
    trainer = make_trainer()
    wanted = trainer.model(X)
    np.testing.assert_allclose(trainer.predict(data, batch_size=7, augment=views), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ITERABLES)
@pytest.mark.parametrize("item", LABELLED)
def test_fit_and_evaluate_take_batches_of_every_kind(kind, item):
    trainers = [make_trainer(), make_trainer()]
    results = []
    for trainer, make in zip(trainers, (ITERABLES[kind], list), strict=True):
        weighed = LABELLED["(x, t, w)" if item == "(x, t, w)" else "(x, t)"]
        trainer.fit(make([(LABELLED[item] if make is not list else weighed)(rows) for rows in cut(5)]), progress=False)
        results.append(trainer.evaluate(make([LABELLED[item](rows) for rows in cut(7)])))
    np.testing.assert_allclose(trainers[0].model.params, trainers[1].model.params, rtol=1e-5, atol=1e-7)
    assert results[0] == pytest.approx(results[1])


def test_an_iterator_is_read_once_and_not_kept():
    trainer, read = make_trainer(), []

    def batches():
        for rows in cut(6):
            read.append(rows.start)
            yield X[rows], T[rows]

    assert trainer.evaluate(batches())["loss"] == pytest.approx(trainer.evaluate((X, T))["loss"])
    assert np.array_equal(trainer.predict(batches(), batch_size=2), trainer.predict(X, batch_size=6))
    assert read == 2 * [0, 6, 12, 18]


class File:
    """An array in a file, such as h5py's: read slice by slice, never whole."""

    shape, dtype, ndim = X.shape, X.dtype, X.ndim

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(X)

    def __getitem__(self, rows):
        self.read.append(rows)
        return X[rows]


def test_a_file_is_read_slice_by_slice():
    file, trainer = File(), make_trainer()
    assert np.array_equal(trainer.predict(file, batch_size=10), trainer.predict(X, batch_size=10))
    assert file.read == cut(10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "not int"),
        (None, "not NoneType"),
        (np.float32(3), "not a single number"),
        ((X,), "tuple of 1"),
        ((X, T, W, W), "tuple of 4"),
        ([(X,)], "a batch must be .* tuple of 1"),
        ([], "empty"),
        (iter([]), "empty"),
        (X[:0], "empty"),
        ("text", "real numbers"),
        ([[1.0], [2.0, 3.0]], "cannot be made a NumPy array"),
    ],
)
def test_what_predict_refuses(data, words):
    with pytest.raises(nn.DataError, match=words):
        make_trainer().predict(data)


# ---- so many steps an epoch


def recorded(data, **options):
    """The batches of labels that each epoch was trained on."""

    class Recording(nn.CrossEntropy):
        def prepare(self, z_shape, dtype, t, *rest):
            epochs[-1].append(np.asarray(t).tolist())
            return super().prepare(z_shape, dtype, np.asarray(t) % 2, *rest)

    class NextEpoch(nn.Callback):
        def on_fit_begin(self, trainer):
            epochs[:] = [[]]

        def on_epoch_end(self, trainer, row):
            epochs.append([])

    epochs = [[]]
    trainer = nn.Trainer(nn.Sequential(nn.Dense(2), input_shape=(1,)), Recording(), nn.SGD(0.1), callbacks=[NextEpoch()])
    trainer.fit(data, progress=False, **options)
    assert epochs.pop() == [] and trainer.steps == sum(map(len, epochs))
    return epochs


def numbered(n):
    return np.zeros((n, 1), "float32"), np.arange(n)


def in_rows(items, length):
    return [items[first : first + length] for first in range(0, len(items), length)]


@given(n=st.integers(1, 20), batch_size=st.integers(1, 8), steps=st.integers(1, 9), epochs=st.integers(1, 4))
def test_an_epoch_of_so_many_steps_goes_on_where_the_last_one_ended(n, batch_size, steps, epochs):
    """In the order of the passes that there would be otherwise."""
    passes = recorded(numbered(n), epochs=steps * epochs, batch_size=batch_size)
    wanted = in_rows(list(itertools.chain(*passes))[: steps * epochs], steps)
    assert recorded(numbered(n), epochs=epochs, batch_size=batch_size, steps_per_epoch=steps) == wanted


@given(
    kind=st.sampled_from(["list", "sequence", "anew"]), n=st.integers(1, 7), steps=st.integers(1, 9), epochs=st.integers(1, 4)
)
def test_an_iterable_that_ends_begins_anew(kind, n, steps, epochs):
    items = [(np.zeros((1, 1)), [i]) for i in range(n)]
    wanted = in_rows([[i % n] for i in range(steps * epochs)], steps)
    assert recorded(ITERABLES[kind](items), epochs=epochs, steps_per_epoch=steps) == wanted


def endless():
    for i in itertools.count():
        yield np.zeros((1, 1)), [i]


def test_an_endless_source_is_read_no_further_than_needed():
    source = endless()
    assert recorded(source, epochs=2, steps_per_epoch=3) == [[[0], [1], [2]], [[3], [4], [5]]]
    assert recorded(source, epochs=1, steps_per_epoch=1) == [[[6]]], "another fit goes on with the same iterator"

    class Forever:
        __iter__ = staticmethod(endless)

    assert recorded(Forever(), epochs=2, steps_per_epoch=2) == [[[0], [1]], [[2], [3]]]


def test_an_iterator_that_ends_early_says_so():
    trainer = make_trainer()
    with pytest.raises(nn.DataError, match=r"gave no batch after the first 3: .*epochs x steps_per_epoch"):
        trainer.fit(((X[rows], T[rows]) for rows in cut(8)), epochs=2, steps_per_epoch=2, progress=False)
    assert trainer.epochs == 1 and trainer.steps == 3

    class Nothing:
        def __len__(self):
            return 5

        def batches(self, batch_size, epoch, seed, shuffle, start):
            return iter([])

    for nothing in ([], Nothing()):
        with pytest.raises(nn.DataError, match="the training data gave no batch: "):
            make_trainer().fit(nothing, epochs=2, steps_per_epoch=2, progress=False)
    trainer.fit(((X[rows], T[rows]) for rows in cut(6)), epochs=2, steps_per_epoch=2, progress=False)


ONCE = {
    "iter": iter,
    "generator": lambda items: (item for item in items),
    "map": lambda items: map(tuple, items),
    "zip": lambda items: zip(*zip(*items, strict=True), strict=True),
    "own": Once,
}


@pytest.mark.parametrize("make", ONCE.values(), ids=ONCE)
def test_what_can_be_gone_through_once_is_refused_for_several_epochs(make, tmp_path):
    trainer, data = make_trainer(), [(X, T)]
    with pytest.raises(nn.DataError, match=r"iterated once: for 2 epochs give steps_per_epoch="):
        trainer.fit(make(data), epochs=2, progress=False, checkpoint=tmp_path / "run")
    assert trainer.steps == 0 and not (tmp_path / "run").exists()
    trainer.fit(make(data), epochs=1, progress=False)
    trainer.fit(make(data * 2), epochs=2, progress=False, steps_per_epoch=1)
    assert trainer.steps == 3
    trainer.fit(Anew(data), epochs=2, progress=False)
    assert trainer.steps == 5


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3"])
def test_steps_per_epoch_is_a_whole_number(steps):
    with pytest.raises(ValueError, match="steps_per_epoch must be a whole number, at least 1"):
        make_trainer().fit((X, T), steps_per_epoch=steps)


def test_so_many_steps_as_a_pass_are_the_same_training():
    trainers = [make_trainer(), make_trainer()]
    for trainer, steps in zip(trainers, (None, 4), strict=True):
        for epochs in (2, 1):  # a second call goes on
            trainer.fit((X, T, W), epochs=epochs, batch_size=7, steps_per_epoch=steps, progress=False)
    assert np.array_equal(trainers[0].model.params, trainers[1].model.params)
    assert trainers[0].history["loss"] == trainers[1].history["loss"]


DATA = nn.data.Dataset(np.repeat(X, 2, axis=1)[..., None], T, weights=W).augmented(nn.data.RandomFlip())
SOURCES = {
    "data set": lambda: DATA,
    "arrays": lambda: (DATA.images, T, W),
    "iterable": lambda: [(DATA.images[rows], T[rows]) for rows in cut(5)],
    "generator": lambda: ((DATA.images[:6] * np.float32(i), T[:6]) for i in itertools.count()),
}


def train(callbacks=(), folder=None, kind="data set", **options):
    model = nn.Sequential(nn.Flatten(), nn.Dense(4), nn.Dropout(0.2), nn.Dense(2), input_shape=(4, 3, 1))
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.Adam(0.01), metrics=[nn.Accuracy()], callbacks=[*callbacks])
    options = {"epochs": 4, "batch_size": 7, "steps_per_epoch": 3, "progress": False, "checkpoint": folder} | options
    trainer.fit(SOURCES[kind](), **options)
    return trainer


unchecked = pytest.mark.filterwarnings("ignore:training continues with batches of:UserWarning")  # that nobody can check


@unchecked
@given(kind=st.sampled_from(sorted(SOURCES)), places=st.lists(st.integers(1, 12), max_size=3), every=st.integers(1, 5))
def test_resumed_within_an_epoch_of_so_many_steps_it_has_the_same_bits(tmp_path_factory, kind, places, every):
    folder, wanted = tmp_path_factory.mktemp("run"), train([KillAt(0)], kind=kind)
    for place in places:
        with contextlib.suppress(Killed):
            train([KillAt(place)], folder, kind, every=every, resume=True)
    trainer = train([KillAt(0)], folder, kind, every=every, resume=True)
    assert np.array_equal(trainer.model.params, wanted.model.params)
    assert trainer.history["loss"] == wanted.history["loss"] and trainer.steps == wanted.steps == 12


@unchecked
def test_a_finished_run_goes_on_with_more_epochs(tmp_path):
    for kind in SOURCES:
        folder = tmp_path / kind
        train(folder=folder, kind=kind, epochs=2)
        assert np.array_equal(train(folder=folder, kind=kind, resume=True).model.params, train(kind=kind).model.params)


def test_steps_per_epoch_belongs_to_a_run(tmp_path):
    train(folder=tmp_path)
    with pytest.raises(nn.StateError, match=r"steps_per_epoch was 3, is None"):
        train(folder=tmp_path, steps_per_epoch=None, resume=True)


class AroundAndAround:
    def __iter__(self):
        return itertools.cycle([(X[:8], T[:8]), (X[8:], T[8:])])


def going_around():
    yield from AroundAndAround()


@pytest.mark.parametrize("make", [AroundAndAround, going_around])
def test_validation_without_an_end_takes_validation_steps(make):
    def history(validation, steps):
        trainer = make_trainer()
        return trainer.fit((X, T), epochs=3, validation=validation, validation_steps=steps, progress=False)

    np.testing.assert_allclose(history(make(), 2)["val_loss"], history((X, T), None)["val_loss"], rtol=1e-6)


def test_evaluate_reads_so_many_batches():
    trainer, stream = make_trainer(), iter(AroundAndAround())
    assert trainer.evaluate(stream, steps=1) == trainer.evaluate((X[:8], T[:8]))
    assert trainer.evaluate(stream, steps=1) == trainer.evaluate((X[8:], T[8:]))
    with pytest.raises(ValueError, match="steps must be a whole number"):
        trainer.evaluate(stream, steps=0)
