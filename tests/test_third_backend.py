"""One dispatch: a third backend over NumPy arrays trains with every loss and optimiser, and the CPU's own is never called."""

from collections import Counter

import numpy as np
import pytest

import nnlite as nn
from nnlite.backend import Backend, get_backend
from nnlite.backend.cpu.numpy import NumpyBackend
from nnlite.backend.operations import Operations
from nnlite.optim.adam import adam
from nnlite.optim.sgd import sgd

pytestmark = pytest.mark.usefixtures("numpy_kernels")

N, C = 6, 4
rng = np.random.default_rng(0)
LABELS, UNIT, REALS = rng.integers(0, C, N), rng.uniform(size=(N, C)), rng.standard_normal((N, C))
WEIGHTS = np.array([1.0, 0.5, 2, 0, 1, 3])
X = rng.standard_normal((N, 8, 8, 3)).astype("float32")

LOSSES = {
    "CrossEntropy": (nn.CrossEntropy(), LABELS),
    "CrossEntropy, all options": (nn.CrossEntropy(label_smoothing=0.1, class_weight=[1, 2, 3, 4], ignore_index=1), LABELS),
    "CrossEntropy, a dict": (nn.CrossEntropy(class_weight={2: 0.5}), LABELS),
    "CrossEntropy, probabilities": (nn.CrossEntropy(class_weight={2: 0.5}), rng.dirichlet(np.ones(C), N)),
    "BinaryCrossEntropy": (nn.BinaryCrossEntropy(pos_weight=[1, 2, 3, 4], class_weight=[1, 2]), UNIT),
    "MSE": (nn.MSE(), REALS),
    "MAE": (nn.MAE(), REALS),
    "Huber": (nn.Huber(0.7), REALS),
}
OPTIMISERS = {
    "SGD": (lambda: nn.SGD(0.05, momentum=0.9, weight_decay=0.01), {"sgd"}),
    "Adam": (lambda: nn.Adam(0.01, clip_norm=0.1), {"adam", "scale_to_norm"}),
    "RMSProp": (lambda: nn.RMSProp(), {"scratch"}),
    "Muon": (lambda: nn.ParameterGroups({"?.W": nn.Muon(), "*": nn.AdamW()}), {"adam"}),
}
EVERYTHING = {**vars(Operations), **vars(Backend)}
OPERATIONS = [name for name, value in EVERYTHING.items() if callable(value) and not name.startswith("_")]
IN_EVERY_STEP = {
    *("add_bias", "affine", "asarray", "by_column", "column_sums", "dropout_mask", "drop", "map_shards", "moments", "norm"),
    *("number", "product", "relu", "relu_delta", "tally", "unless_bad", "wide_row"),
}


class Counting(NumpyBackend):
    """Counts the calls of all its operations, and has an `adam` and an `sgd` of its own."""

    device = "toy"

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def adam(self, *args):
        adam(self, *args)

    def sgd(self, *args):
        sgd(self, *args)


def counted(name, operation):
    def count(self, *args, **kwargs):
        self.calls[name] += 1
        return operation(self, *args, **kwargs)

    return count


for name in {*OPERATIONS, "adam", "sgd"}:
    setattr(Counting, name, counted(name, getattr(Counting, name)))


@pytest.fixture
def refused(monkeypatch):
    """The CPU's own operations fail, except `to_host`: metrics find out by their type where a user's arrays are."""

    def refuse(name):
        def fail(*args, **kwargs):
            pytest.fail(f"the CPU's own {name} was called")

        return fail

    for name in {*OPERATIONS, "adam", "sgd"} - {"to_host"}:
        monkeypatch.setitem(vars(get_backend("cpu")), name, refuse(name))
    monkeypatch.setitem(vars(get_backend("cpu")), "xp", None)


def make_model(backend=None):
    convolution = nn.Conv2D(4, 3), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2)
    model = nn.Sequential(*convolution, nn.Dropout(0.2), nn.Flatten(), nn.Dense(C), input_shape=(8, 8, 3))
    if backend is not None:
        model.backend = backend
        model.assemble(model.in_shape)
    return model


def train(model, criterion, t, optimizer):
    metrics = [nn.metrics.RMSE()] if t.ndim == 2 else [nn.Accuracy(), nn.F1(), nn.TopK(2)]
    trainer = nn.Trainer(model, criterion, optimizer, metrics)
    data = [(X[:4], t[:4], WEIGHTS[:4]), (X[4:], t[4:])]
    history = trainer.fit(data, epochs=2, validation=data, progress=False)
    return {name: column for name, column in history.items() if "second" not in name}, *model.snapshot()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_model_trains_by_its_own_backend(loss, optimiser, request):
    (criterion, t), (make, called) = LOSSES[loss], OPTIMISERS[optimiser]
    expected, backend = train(make_model(), criterion, t, make()), Counting()
    model = make_model(backend)
    request.getfixturevalue("refused")
    backend.calls.clear()
    ours = train(model, criterion, t, make())
    assert ours[0] == expected[0] and np.array_equal(ours[1], expected[1]) and np.array_equal(ours[2], expected[2])
    plain = loss == "CrossEntropy"
    of_the_loss = {"cross_entropy_of_labels" if plain else "cross_entropy"} if isinstance(criterion, nn.CrossEntropy) else set()
    if t.ndim == 1 and not plain:
        of_the_loss |= {"one_hot"}
    assert not (IN_EVERY_STEP | called | of_the_loss) - set(backend.calls)


def test_the_loss_of_positions_is_that_backend_s_too(request):
    backend, t = Counting(), rng.integers(0, C, (N, 8, 8))
    models = [nn.Sequential(nn.Conv2D(C, 3, padding=1), input_shape=(8, 8, 3)) for _ in range(2)]
    models[1].backend = backend
    models[1].assemble((8, 8, 3))
    criterion = nn.CrossEntropy(ignore_index=0, class_weight={1: 2})
    expected = models[0].loss_and_grad(X, t, criterion, WEIGHTS)
    request.getfixturevalue("refused")
    assert models[1].loss_and_grad(X, t, criterion, WEIGHTS) == expected
    assert np.array_equal(*(model.grads for model in models)) and backend.calls["cross_entropy"]


def test_a_loss_of_one_s_own_is_handed_the_backend(request, capsys):
    class Quartic(nn.Loss):
        def per_sample(self, backend, z, t):
            assert backend is model.backend
            return backend.relu((z - t) ** 4, None).sum(axis=1), 4 * (z - t) ** 3

    model = make_model(Counting())
    request.getfixturevalue("refused")
    nn.Trainer(model, Quartic(), nn.SGD(1e-4)).fit([(X, REALS)], validation=[(X, REALS)], progress=False)
    nn.profile(model, X, REALS, Quartic(), passes=1)
    with nn.debug(model):
        model.loss_and_grad(X, REALS, Quartic())


@pytest.mark.parametrize(("criterion", "t"), [(nn.CrossEntropy(), LABELS + C), (nn.BinaryCrossEntropy(), UNIT + 1)])
def test_values_are_checked_where_reading_them_waits_for_nobody(criterion, t):
    """Whatever the device is called."""
    backend = Counting()
    with pytest.raises(nn.DataError, match="must be in"):
        make_model(backend).loss_and_grad(X, t, criterion)
    backend.waits_for_reads = True
    criterion.prepare((N, C), "float32", t, None, backend)
