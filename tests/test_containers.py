"""Whatever holds numbers comes in by position, as numbers; what would be misread is refused, wherever an array comes in."""

import numpy as np
import pytest
import scipy.sparse

import nnlite as nn

rng = np.random.default_rng(0)
X = rng.standard_normal((30, 3)).astype("float32")
T = rng.integers(0, 2, 30)
W = rng.integers(1, 4, 30)


def make_model():
    return nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2), input_shape=(3,))


def make_trainer():
    return nn.Trainer(make_model(), nn.CrossEntropy(), nn.SGD(0.1), metrics=[nn.Accuracy()])


def trained(data):
    trainer = make_trainer()
    trainer.fit(data, batch_size=8, progress=False)
    return trainer.model.params


def counted(z, t, w=None):
    metric = nn.ConfusionMatrix()
    metric.update(z, t, w)
    return metric.result()


def ask(method, *args, **kwargs):
    return getattr(make_model(), method)(*args, **kwargs)


LOSS = nn.CrossEntropy()
Z = rng.standard_normal((30, 2)).astype("float32")

# Each gives something that follows from the array that it is handed.
INPUTS = {
    "model": lambda x: ask("__call__", x),
    "forward": lambda x: ask("forward", x, training=True),
    "loss_and_grad": lambda x: ask("loss_and_grad", x, T, LOSS),
    "fit": lambda x: trained((x, T)),
    "fit, batches": lambda x: trained([(x, T), (x, T, W)]),
    "evaluate": lambda x: list(make_trainer().evaluate((x, T)).values()),
    "evaluate, batches": lambda x: list(make_trainer().evaluate([(x, T)]).values()),
    "predict": lambda x: make_trainer().predict(x, batch_size=7),
    "predict, tuple": lambda x: make_trainer().predict((x, T), batch_size=7),
    "predict, batches": lambda x: make_trainer().predict(batch for batch in [x]),
    "predict, labelled batches": lambda x: make_trainer().predict([(x, T)]),
    "Dataset": lambda x: nn.data.Dataset(x, T).images,
    "loss": lambda x: LOSS(x, T)[0],
    "softmax": lambda x: nn.softmax(x),
    "metric": lambda x: counted(x, T),
    "gradcheck": lambda x: nn.gradcheck(make_model(), x) or 0.0,
}
TARGETS = {
    "loss_and_grad": lambda t: ask("loss_and_grad", X, t, LOSS),
    "fit": lambda t: trained((X, t)),
    "fit, batches": lambda t: trained([(X, t)]),
    "evaluate": lambda t: list(make_trainer().evaluate((X, t)).values()),
    "evaluate, batches": lambda t: list(make_trainer().evaluate([(X, t)]).values()),
    "Dataset": lambda t: nn.data.Dataset(X, t).labels,
    "loss": lambda t: LOSS(Z, t)[0],
    "metric": lambda t: counted(Z, t),
}
WEIGHTS = {
    "loss_and_grad": lambda w: ask("loss_and_grad", X, T, LOSS, sample_weight=w),
    "fit": lambda w: trained((X, T, w)),
    "fit, batches": lambda w: trained([(X, T, w)]),
    "evaluate": lambda w: list(make_trainer().evaluate((X, T, w)).values()),
    "evaluate, batches": lambda w: list(make_trainer().evaluate([(X, T, w)]).values()),
    "Dataset": lambda w: nn.data.Dataset(X, T, weights=w).weights,
    "loss": lambda w: LOSS(Z, T, w)[0],
    "metric": lambda w: counted(Z, T, w),
}
ENTRIES = [
    pytest.param(call, array, id=f"{role}: {name}")
    for role, array, calls in (("x", X, INPUTS), ("t", T, TARGETS), ("w", W, WEIGHTS))
    for name, call in calls.items()
]


# ---- frames: pandas, and what stands in for it where it is not installed


class Nullable:
    """A dtype of pandas' own."""

    def __init__(self, kind, numpy_dtype=None):
        self.kind, self.numpy_dtype = kind, numpy_dtype

    def __str__(self):
        return {"O": "category", "i": "Int64", "b": "boolean", "f": "Float32"}[self.kind]


DTYPES = {
    "Int64": Nullable("i", np.dtype("int64")),
    "boolean": Nullable("b", np.dtype("bool")),
    "Float32": Nullable("f", np.dtype("float32")),
    "category": Nullable("O"),
}


class Places(list):
    """What is found by place, behind `iloc`."""

    iloc = property(lambda self: self)


class StandIn:
    """What nnlite asks of a pandas frame, and pandas' traps: slices by label, objects where columns are of several kinds."""

    iloc = None

    def __init__(self, columns, dtypes, index=None):
        self.values, self.index = columns, index
        self.columns, self.dtypes = list(columns), Places(DTYPES.get(dtype) or np.dtype(dtype) for dtype in dtypes)

    shape = property(lambda self: (len(self), len(self.columns)))

    def __len__(self):
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows):
        found = [i for i, label in enumerate(self.index) if rows.start <= label <= rows.stop]
        return StandIn({name: [v[i] for i in found] for name, v in self.values.items()}, self.dtypes, self.index[found])

    def __array__(self, dtype=None, copy=None):
        return np.array(list(self.values.values()), object).T

    def isna(self):
        return np.array([[value is None for value in column] for column in self.values.values()]).T

    def to_numpy(self, dtype, na_value=None):
        return np.array(
            [[na_value if value is None else value for value in column] for column in self.values.values()], dtype
        ).T


@pytest.fixture(params=["stand-in", "pandas"])
def make_frame(request):
    if request.param == "stand-in":
        return StandIn
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")

    def make(columns, dtypes, index=None):
        series = zip(columns.items(), dtypes, strict=True)
        return pandas.DataFrame({name: pandas.Series(v, dtype=d, index=index) for (name, v), d in series}, index=index)

    return make


def frame_of(make_frame, array, dtypes, **options):
    columns = {f"column {i}": array[:, i].tolist() for i in range(array.shape[1])}
    return make_frame(columns, dtypes, **options)


@pytest.mark.parametrize("call", INPUTS.values(), ids=INPUTS)
def test_a_frame_is_taken_by_position(make_frame, call):
    """Slices of a frame whose labels are numbers would be taken by label."""
    frame = frame_of(make_frame, X, ["float32"] * 3, index=np.linspace(0.5, 500, len(X)))
    np.testing.assert_array_equal(call(frame), call(X))


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        (["float32", "bool", "bool"], "float32"),
        (["bool", "bool", "bool"], "bool"),
        (["int64", "bool", "uint8"], "int64"),
        (["int8", "float32", "bool"], "float32"),
        (["Int64", "boolean", "Int64"], "int64"),
        (["boolean", "boolean", "bool"], "bool"),
        (["Float32", "Float32", "bool"], "float32"),
        (["float64", "Int64", "boolean"], "float64"),
    ],
)
def test_mixed_and_nullable_columns_are_numbers(make_frame, dtypes, wanted):
    values = rng.integers(0, 2, (30, 3))
    frame = frame_of(make_frame, values.astype(object), dtypes)
    data = nn.data.Dataset(frame, T)
    assert data.images.dtype == wanted and np.array_equal(data.images, values)
    for call in INPUTS.values():
        np.testing.assert_array_equal(call(frame), call(values.astype(wanted)))


@pytest.mark.parametrize(("dtype", "wanted"), [("Int64", "float64"), ("boolean", "float32"), ("Float32", "float32")])
def test_a_missing_value_is_nan(make_frame, dtype, wanted):
    x = nn.data.Dataset(make_frame({"a": [1, None, 0], "b": [0, 1, 1]}, [dtype, "bool"]), T[:3]).images
    assert x.dtype == wanted
    np.testing.assert_array_equal(x, [[1, 0], [np.nan, 1], [0, 1]])


def test_large_integers_of_nullable_columns_stay_exact(make_frame):
    large = 2**60 + 1
    assert nn.data.Dataset(make_frame({"a": [large, 2]}, ["Int64"]), [0, 1]).images[0, 0] == large


def test_columns_that_are_no_numbers_are_named(make_frame):
    columns = {"age": [1.0, 2.0], "name": ["a", "b"], "kind": [1, 2]}
    with pytest.raises(nn.DataError, match=r"must be real numbers, not the columns 'name' \(object\), 'kind' \(category\):"):
        nn.data.Dataset(make_frame(columns, ["float64", "object", "category"]), [0, 1])
    many = {f"{i:03}{'x' * 400}": ["a", "b"] for i in range(20)}
    with pytest.raises(nn.DataError, match=r"'000x+' \(object\), .* and 15 more") as raised:
        nn.data.Dataset(make_frame(many, ["object"] * 20), [0, 1])
    assert len(str(raised.value)) <= 600


@pytest.mark.parametrize("dtype", ["Int64", "int64", "boolean"])
def test_a_frame_of_one_column_is_targets(make_frame, dtype):
    """(N, 1), as labels in a column are."""
    frame = frame_of(make_frame, T[:, None].astype(object), [dtype])
    for name, call in TARGETS.items():
        if dtype != "boolean" or name in ("Dataset", "metric"):  # a loss wants integers
            np.testing.assert_array_equal(call(frame), call(T[:, None]))


@pytest.mark.parametrize("dtype", ["int64", "Int64", "uint8", "UInt8", "Float64"])
def test_series_are_targets_and_weights(dtype):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    index = np.linspace(7, -3, len(T))
    for values, calls in ((T, TARGETS), (W, WEIGHTS)):
        series = pandas.Series(values, index=index, dtype=dtype)
        for call in calls.values():
            if values is W or dtype != "Float64":  # labels are integers
                np.testing.assert_array_equal(call(series), call(values))
    for values in (["a", "b"], pandas.Categorical([1, 2])):
        with pytest.raises(nn.DataError, match=r"labels must be real numbers, not a series of"):
            nn.data.Dataset(X[:2], pandas.Series(values))


def test_a_frame_of_one_kind_is_not_copied():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, index=np.linspace(0, 1, len(X)))
    assert np.shares_memory(nn.data.Dataset(frame, T).images, frame.to_numpy())


def test_one_hot_columns():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.get_dummies(pandas.DataFrame({"a": X[:, 0], "k": T.astype(str)}))
    assert make_trainer().predict(frame).shape == (30, 2)
    assert nn.data.Dataset(frame, T).images.dtype == "float32"


# ---- what would be misread


def masked(array):
    return np.ma.masked_array(array, mask=np.zeros(array.shape, bool))


REFUSED = {
    "masked": (masked, "masked.*filled"),
    "a list of masked": (lambda array: [masked(row) for row in array], "masked.*filled"),
    "objects": (lambda array: array.astype(object), "real numbers, not object"),
    "text": (lambda array: array.astype(str), "real numbers, not <U"),
    "complex": (lambda array: array * 1j, "real numbers, not complex"),
    "csr": (lambda array: scipy.sparse.csr_array(array.reshape(len(array), -1)), "sparse csr_array.*toarray"),
    "coo": (lambda array: scipy.sparse.coo_matrix(array.reshape(len(array), -1)), "sparse coo_matrix.*toarray"),
}


@pytest.mark.parametrize(("call", "array"), ENTRIES)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_misread_is_refused_with_the_remedy(call, array, kind):
    make, words = REFUSED[kind]
    if kind == "a list of masked" and array.ndim == 1:
        make = masked  # a list of numbers is none of masked arrays
    with pytest.raises(nn.DataError, match=words) as raised:
        call(make(array))
    assert len(str(raised.value)) <= 600


@pytest.mark.parametrize(("call", "array"), ENTRIES)
def test_lists_are_arrays(call, array):
    np.testing.assert_allclose(call(array.tolist()), call(array), rtol=1e-5)


@pytest.mark.parametrize("text", [["1", "2"], [1j, 2j]])
def test_a_dtype_does_not_make_numbers_of_anything_else(text):
    model = nn.Sequential(nn.Dense(2), input_shape=(3,))
    with pytest.raises(nn.DataError, match="real numbers"):
        model[0].b = text
    model.forward(X[:1], training=True)
    with pytest.raises(nn.DataError, match="real numbers"):
        model.backward([text])


@pytest.mark.parametrize("t", [1, np.float32(1.0), np.array(1)])
def test_a_single_number_is_no_target(t):
    with pytest.raises(nn.DataError, match="30 samples, but 0 targets"):
        make_model().loss_and_grad(X, t, LOSS)
