"""What checkpoints keep of optimisers, metrics, callbacks and sources, and that they refuse what they cannot keep."""

import copy
import io
import json
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import Killed

import nnlite as nn
from nnlite.state import is_stateful, pack, refuse_unkeepable, state_of, unpack
from nnlite.training.counts import Counts as Counting

X = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
T = np.random.default_rng(1).integers(0, 3, 40)

# ---- values

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u4", "u8", "?", ">f4", ">i2"]).flatmap(
        lambda kind: st.lists(st.integers(0, 100), max_size=4).map(lambda values: np.array(values, kind))),
    st.sampled_from([np.float32(0.1), np.float64(0.1), np.int8(-3), np.uint64(2**63), np.True_, np.float16(0.3)]),
    st.sampled_from([np.zeros(()), np.zeros((0, 3)), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(9)[::2]]),
)  # fmt: skip
keys = st.sampled_from(["a", "b", "a b", "array", "dict", "list", "tuple", "number", ""])
kept = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(keys, inner, max_size=3), max_leaves=12)  # fmt: skip


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert np.array_equal(a, b)
        if isinstance(a, np.ndarray | np.generic):
            assert a.dtype == b.dtype.newbyteorder("=") or a.dtype.newbyteorder("=") == b.dtype


class Holds(nn.Callback):
    def __init__(self, own=None):
        self.own = own

    def state(self):
        return {"own": self.own}

    def load_state(self, state):
        self.own = state["own"]


@given(value=kept)
def test_what_can_be_kept_comes_back_as_it_was(tmp_path_factory, value):
    folder, again = tmp_path_factory.mktemp("run"), Holds()
    fit(make(callbacks=[Holds(value)]), folder, epochs=0)
    fit(make(callbacks=[again]), folder, epochs=0, resume=True)
    assert_same(again.own, value)


def test_arrays_are_copied():
    array, arrays = np.zeros(3), {}
    packed = pack({"a": [array]}, "x", arrays)
    array += 1
    assert unpack(packed, arrays, np.asarray)["a"][0].tolist() == [0, 0, 0]


class Slots:
    __slots__ = ()


STRANGE = [
    {1, 2}, {1: 2}, {None: 1}, frozenset(), b"bytes", 1j, np.array([1j]), np.array(["a"]), np.array([None]),
    np.array(["2020"], "M8"), np.longdouble(1), np.ma.masked_array([1.0], [True]), np.recarray(2, "f4"),
    np.random.default_rng(0), io.StringIO(), Path("x"),
    threading.Lock(), deque([1]), Counter("a"), OrderedDict(a=1), defaultdict(int), iter([1]), range(3), object(), Slots(),
    slice(1), nn.Adam(), nn.Accuracy(), nn.data.Dataset(X, T),
]  # fmt: skip
around = st.sampled_from([lambda v: v, lambda v: [0, v], lambda v: (v,), lambda v: {"a": {"b": [v]}}, lambda v: [[v] * 3] * 3])


@given(value=st.sampled_from(STRANGE), wrap=around)
def test_all_else_is_refused_by_name(value, wrap):
    with pytest.raises(nn.StateError, match=r"^mine is or holds .* write state\(\) and load_state\(state\)") as caught:
        refuse_unkeepable(wrap(value), "mine")
    assert len(str(caught.value)) <= 600


# ---- whose


class Adam(nn.Adam):
    """A user's own, with an attribute of its own."""

    own = None


class Counts(nn.Metric):
    """A user's own, with an attribute of its own."""

    name, own = "counts", None

    def __init__(self):
        self.n = 0

    def reset(self):
        self.n = 0

    def update(self, z, t, sample_weight=None):
        self.n += len(t)

    def result(self):
        return self.n


class Source:
    own = None

    def __iter__(self):
        for i in range(0, 40, 8):
            yield X[i : i + 8], T[i : i + 8]

    def state(self):
        return {"own": self.own}

    def load_state(self, state):
        self.own = state["own"]


def make(optimizer=None, metrics=(), callbacks=()):
    model = nn.Sequential(nn.Dense(3), input_shape=(4,))
    return nn.Trainer(model, nn.CrossEntropy(), optimizer or nn.SGD(), metrics, callbacks)


def fit(trainer, folder=None, data=(X, T), **options):
    return trainer.fit(data, **({"batch_size": 8, "checkpoint": folder, "progress": False} | options))


HOLDERS = {
    "an optimiser": lambda: (adam := Adam(), make(adam), (X, T)),
    "a group": lambda: (adam := Adam(), make(nn.ParameterGroups({"*.W": adam, "*": nn.SGD()})), (X, T)),
    "a metric": lambda: (counts := Counts(), make(metrics=[counts]), (X, T)),
    "a callback": lambda: (holds := Holds(), make(callbacks=[holds]), (X, T)),
    "a source": lambda: (source := Source(), make(), source),
}


class Gives(nn.Callback):
    """Gives a thing a value after the first step, and ends training after the second."""

    def __init__(self, thing, value):
        self.thing, self.value = thing, value

    def on_step_end(self, trainer):
        self.thing.own = self.value
        if trainer.steps == 2:
            raise Killed


@pytest.mark.parametrize("holder", HOLDERS)
@given(own=kept)
def test_attributes_of_the_users_own_are_kept(tmp_path_factory, holder, own):
    folder = tmp_path_factory.mktemp("run")
    thing, trainer, data = HOLDERS[holder]()
    trainer.callbacks.append(Gives(thing, own))
    with pytest.raises(Killed):
        fit(trainer, folder, data, every=1)
    thing, trainer, data = HOLDERS[holder]()
    fit(trainer, folder, data, resume=True)
    assert_same(thing.own, own)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("own", [{1, 2}, io.StringIO(), threading.Lock(), deque()], ids=lambda own: type(own).__name__)
def test_what_cannot_be_kept_is_refused_before_the_first_step(tmp_path, holder, own):
    thing, trainer, data = HOLDERS[holder]()
    thing.own = own
    name = rf"{type(thing).__name__}\(.*\) is or holds an? {type(own).__name__}, which no checkpoint"
    with pytest.raises(nn.StateError, match=name):
        fit(trainer, tmp_path / "run", data)
    assert trainer.steps == 0 and not (tmp_path / "run").exists()
    fit(trainer, None, data)  # without checkpoints it is nobody's affair


@pytest.mark.parametrize("holder", ["an optimiser", "a metric"])
def test_functions_are_no_state(tmp_path, holder):
    for epochs in (1, 2):
        thing, trainer, data = HOLDERS[holder]()
        thing.own = len
        fit(trainer, tmp_path, data, epochs=epochs, resume=True)
    assert trainer.epochs == 2


def test_what_becomes_unkeepable_on_the_way_is_named(tmp_path):
    class Grows(Counts):
        def update(self, z, t, sample_weight=None):
            super().update(z, t)
            self.own = {self.n}

    with pytest.raises(nn.StateError, match=r"'own' of Grows.* holds a set"):
        fit(make(metrics=[Grows()]), tmp_path, every=2)


def test_a_list_in_an_optimiser_goes_on(tmp_path):
    class Remembers(nn.SGD):
        def __init__(self):
            super().__init__(0.1)
            self.norms = []

        def update(self, backend, p, g, *state, rate, **more):
            self.norms.append(float(abs(g).sum()))
            super().update(backend, p, g, *state, rate=rate / len(self.norms), **more)

    expected, again = make(Remembers()), make(Remembers())
    fit(expected, epochs=2)
    fit(make(Remembers()), tmp_path)
    fit(again, tmp_path, epochs=2, resume=True)
    assert again.optimizer.norms == expected.optimizer.norms and np.array_equal(again.model.params, expected.model.params)


OPTIMIZERS = [
    lambda: nn.SGD(0.1, momentum=0.9, nesterov=True), nn.Adam, nn.AdamW, nn.RMSProp, lambda: nn.SGD(nn.schedules.linear(1, 20)),
    lambda: nn.ParameterGroups({"*.W": nn.Muon(0.1), "*": nn.Adam()}, clip_norm=1.0),
]  # fmt: skip


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_an_optimiser_goes_on_from_the_state_of_another(build):
    models = [nn.Sequential(nn.Dense(3), input_shape=(4,)) for _ in range(2)]
    first, second, loss = build(), build(), nn.CrossEntropy()
    for _ in range(5):
        models[0].loss_and_grad(X, T, loss)
        first.step(models[0])
    second.load_state(copy.deepcopy(first.state()))
    models[1].restore(models[0].snapshot())
    for model, optimizer in zip(models, (first, second), strict=True):
        for _ in range(3):
            model.loss_and_grad(X, T, loss)
            optimizer.step(model)
    assert np.array_equal(models[0].params, models[1].params)


# ---- metrics while others are counted


class Logs(Counts):
    """Holds what nobody can copy."""

    def __init__(self, own):
        super().__init__()
        self.own, self.log = own, []

    def update(self, z, t, sample_weight=None):
        super().update(z, t)
        self.log.append(len(t))


class Keeps(Logs):
    def state(self):
        return {"n": self.n}

    def load_state(self, state):
        self.n = state["n"]


@pytest.fixture
def opened():
    with Path("/dev/null").open() as file:
        yield file


RESOURCES = {"a file": None, "a lock": threading.Lock(), "a thread": threading.current_thread(), "a module": io}


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_metric_may_hold_what_nobody_can_copy(resource, opened):
    trainer = make(metrics=[Logs(RESOURCES[resource] or opened)])
    history = fit(trainer, validation=(X[:15], T[:15]), epochs=2)
    assert history["counts"] == [40, 40] and history["val_counts"] == [15, 15]
    assert trainer.evaluate((X, T))["counts"] == 40


class Look(nn.Callback):
    """Evaluates in the middle of an epoch."""

    def on_step_end(self, trainer):
        assert trainer.evaluate((X[:5], T[:5]))["counts"] == 5


def test_evaluation_in_the_middle_of_an_epoch_needs_their_states(tmp_path):
    with pytest.raises(nn.StateError, match=r"'own' of Logs.*StringIO.*write state\(\) and load_state"):
        fit(make(metrics=[Logs(io.StringIO())], callbacks=[Look()]))
    metric = Keeps(io.StringIO())
    assert fit(make(metrics=[metric], callbacks=[Look()]), tmp_path, every=2)["counts"] == [40]


def test_a_reset_in_place_does_not_lose_what_was_counted():
    class InPlace(nn.Metric):
        name = "counts"

        def __init__(self):
            self.n, self.seen = np.zeros(1), []

        def reset(self):
            self.n[:] = 0
            self.seen.clear()

        def update(self, z, t, sample_weight=None):
            self.n += len(t)
            self.seen.append(len(t))

        def result(self):
            assert sum(self.seen) == self.n[0]
            return float(self.n[0])

    assert fit(make(metrics=[InPlace()], callbacks=[Look()]), epochs=2)["counts"] == [40, 40]


def test_all_that_is_kept_gives_and_takes_its_state_in_one_way():
    trainer = make()
    counts = Counting(trainer)
    parts = [nn.Adam(), nn.SGD(0.1), nn.ParameterGroups({"*": nn.Adam()}), nn.Accuracy(), nn.EarlyStopping(), nn.CSVLog("x")]
    for part in [*parts, counts, counts.tally]:
        state = state_of(part)
        json.dumps(pack(state, "part", {}))
        part.load_state(state)
        assert state_of(part).keys() == state.keys() and is_stateful(part)
    assert not any(map(is_stateful, [[], iter([]), trainer, trainer.model]))


@pytest.mark.parametrize("place", ["batches", "samples", "seconds", "partial", "complete", "sums"])
@pytest.mark.parametrize("wrong", [None, "x", [None]])
def test_counts_that_are_none_are_the_faults_of_the_file(place, wrong):
    if (place, wrong) in (("partial", "x"), ("partial", [None])) or place == "complete":
        return  # as good as any
    state = Counting(make()).state() | {place: wrong}
    with pytest.raises(nn.FileError, match="the checkpoint does not fit this trainer"):
        Counting(make()).load_state(state)
