"""Arguments of constructors and functions: what is refused, and how it is said; what is kept as it was given."""

import inspect
import string
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.arguments import listing, shortened

rng = np.random.default_rng(0)
X, T = rng.standard_normal((6, 4)).astype("float32"), rng.integers(0, 3, 6)
LONGEST = 600  # characters of a message


class Unprintable:
    """An object whose repr fails."""

    def __repr__(self):
        raise RuntimeError("no text")


class Endless:
    """An object whose repr is long, in many lines."""

    def __repr__(self):
        return "abc\n" * 5000


NUMPY_INTEGERS = st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.uint64])
NUMPY_REALS = st.sampled_from([np.float32, np.float64])

# What is no argument at all, long things among it.
STRANGE = st.one_of(
    st.sampled_from([Unprintable(), Endless(), object(), {}, b"", 1j, np.zeros(3000), np.array(["a"]), nn.Adam, nn.Dense(3)]),
    st.text(string.printable, min_size=1, max_size=3000),
    st.just("x" * 3000),
    st.just([["a" * 50] * 50] * 50),
    st.just(dict.fromkeys(range(100), "b" * 100)),
)
NO_NUMBERS = st.one_of(STRANGE, st.booleans(), st.just(np.bool(True)), st.sampled_from([np.nan, np.inf, -np.inf, "1"]))


def log_nothing(values, step):
    pass


def or_none(kind):
    good, bad = kind
    return st.one_of(st.none(), good), bad


def wholes(least, most=9):
    numbers = st.integers(least, most)
    good = st.one_of(numbers, st.builds(lambda kind, n: kind(n), NUMPY_INTEGERS, numbers))
    bad = st.one_of(NO_NUMBERS, st.integers(max_value=least - 1), st.sampled_from([16.0, 2.5, 32 / 2, np.float64(3)]))
    return good, bad


def reals(low, high, *outside):
    """Numbers from low to high, `outside`: some that are just out of the range."""
    numbers = st.floats(low, high, width=32)
    good = st.one_of(numbers, st.builds(lambda kind, x: kind(x), NUMPY_REALS, numbers))
    return good, st.one_of(NO_NUMBERS, st.sampled_from([*outside, 10**400]))


def pairs_of(least):
    whole, no_whole = wholes(least)
    pair = st.tuples(whole, whole)
    good = st.one_of(whole, pair, pair.map(list))
    bad = st.one_of(no_whole, st.tuples(whole), st.tuples(whole, whole, whole), st.tuples(whole, no_whole))
    return good, bad


def choices(*options):
    return st.sampled_from(options), st.one_of(STRANGE, st.just("other"), st.integers())


FLAG = (
    st.sampled_from([True, False, np.bool(True), np.bool(False)]),
    st.one_of(STRANGE, st.integers(), st.floats(), st.none()),
)
PADDING = (st.one_of(pairs_of(0)[0], st.sampled_from(["same", "valid"])), pairs_of(0)[1])
SHAPE = (
    st.lists(wholes(1)[0], min_size=1, max_size=1).map(tuple),
    st.one_of(st.sampled_from([30, (0,), (-1,), (None,), (2.0,), "30", (True,), (3, 0)]), STRANGE),
)
INIT = (
    st.sampled_from(["zeros", nn.init.ones, nn.init.constant(0.5)]),
    st.one_of(STRANGE, st.sampled_from([None, 3, nn.init.constant])),
)
SHARE, WHOLE, POSITIVE_WHOLE = reals(0, 0.75, -0.1, 1, 2), wholes(0), wholes(1)
NOT_NEGATIVE, POSITIVE = reals(0, 2, -0.1, -1), reals(0.5, 2, 0, -1)
VECTOR = (
    st.sampled_from([[1, 2.0, 0], (1.0, 0.0, 3.0), np.array([1.0, 2.0, 3.0]), np.array([1, 2, 3], "int8")]),
    st.sampled_from(
        [2.0, [1, -1], [1, np.nan], [1, np.inf], {0: 1.0, 1: 2.0}, [], "12", [True, False], [[1.0, 2.0]], range(3)]
    ),
)
CLASS_WEIGHT = (
    st.one_of(VECTOR[0], st.sampled_from([{0: 1.0, 2: 0}, {np.int64(1): np.float32(2)}, {True: 3}, {}])),
    st.one_of(
        VECTOR[1].filter(lambda v: not isinstance(v, dict)), st.sampled_from([{-1: 1}, {0: -1}, {"a": 1}, {0: "a"}, {0.5: 1}])
    ),
)
SEVERAL_OR_ONE = (
    st.one_of(VECTOR[0], NOT_NEGATIVE[0]),
    st.one_of(NO_NUMBERS, st.sampled_from([-1, [1, -1], [np.nan], [], "12"])),
)
RATE = (
    st.one_of(NOT_NEGATIVE[0], st.just(nn.schedules.constant(0.1))),
    st.one_of(NO_NUMBERS, st.just(-1), st.just(nn.schedules.cosine)),
)
OPTIMIZER = {"learning_rate": RATE, "weight_decay": NOT_NEGATIVE, "clip_norm": or_none(POSITIVE)}
ADAM = OPTIMIZER | {
    "betas": (st.sampled_from([(0.5, 0.9), [0.0, 0.5]]), st.sampled_from([0.9, (0.9,), (0.9, 1), (-1, 0.9), ("a", 0.9), None])),
    "eps": NOT_NEGATIVE,
}
POOLING = {"size": pairs_of(1), "stride": or_none(pairs_of(1)), "padding": PADDING, "dilation": pairs_of(1), "ceil_mode": FLAG}
POOLING_1D = {"size": POSITIVE_WHOLE, "stride": or_none(POSITIVE_WHOLE), "padding": PADDING}
POOLING_1D |= {"dilation": POSITIVE_WHOLE, "ceil_mode": FLAG}
INDEX = or_none((st.sampled_from([-100, 0, 255, np.int64(-1), np.uint8(255)]), st.one_of(NO_NUMBERS, st.just(2.5))))
OF_LABELS = {"multilabel": FLAG, "ignore_index": INDEX}
AVERAGED = {"average": choices("auto", "binary", "macro", "micro", None)} | OF_LABELS
RAMP = {"rate": NOT_NEGATIVE, "steps": POSITIVE_WHOLE, "final": NOT_NEGATIVE}

# Constructors, what they need, and the kinds of their arguments.
CONSTRUCTORS = {
    nn.ELU: ({}, {"alpha": POSITIVE}),
    nn.LeakyReLU: ({}, {"slope": SHARE}),
    nn.GELU: ({}, {"approximate": choices("none", "tanh")}),
    nn.Dense: ({"units": 3}, {"units": POSITIVE_WHOLE, "bias": FLAG, "init": INIT}),
    nn.Embedding: ({"n": 5, "dim": 3}, {"n": POSITIVE_WHOLE, "dim": POSITIVE_WHOLE, "init": INIT}),
    nn.Conv2D: (
        {"filters": 3, "kernel_size": 3},
        {"filters": POSITIVE_WHOLE, "kernel_size": pairs_of(1), "stride": pairs_of(1), "padding": PADDING}
        | {"dilation": pairs_of(1), "groups": POSITIVE_WHOLE, "bias": FLAG, "init": INIT},
    ),
    nn.DepthwiseConv2D: (
        {"kernel_size": 3},
        {"kernel_size": pairs_of(1), "multiplier": POSITIVE_WHOLE, "stride": pairs_of(1), "padding": PADDING}
        | {"dilation": pairs_of(1), "bias": FLAG, "init": INIT},
    ),
    nn.Conv1D: (
        {"filters": 3, "kernel_size": 3},
        {"filters": POSITIVE_WHOLE, "kernel_size": POSITIVE_WHOLE, "stride": POSITIVE_WHOLE, "padding": PADDING}
        | {"dilation": POSITIVE_WHOLE, "groups": POSITIVE_WHOLE, "bias": FLAG, "init": INIT},
    ),
    nn.MaxPool1D: ({"size": 2}, POOLING_1D),
    nn.AvgPool1D: ({"size": 2}, POOLING_1D | {"count_padding": FLAG}),
    nn.MaxPool2D: ({"size": 2}, POOLING),
    nn.AvgPool2D: ({"size": 2}, POOLING | {"count_padding": FLAG}),
    nn.Upsample2D: ({"factor": 2}, {"factor": pairs_of(1), "mode": choices("nearest", "bilinear")}),
    nn.Dropout: ({"rate": 0.5}, {"rate": SHARE}),
    nn.SpatialDropout2D: ({"rate": 0.5}, {"rate": SHARE}),
    nn.GroupNorm: ({"groups": 2}, {"groups": POSITIVE_WHOLE, "eps": NOT_NEGATIVE, "scale": FLAG, "shift": FLAG}),
    nn.PReLU: ({}, {"slope": reals(-2, 2, np.nan), "shared": FLAG}),
    nn.BatchNorm: ({}, {"momentum": reals(0, 1, -0.1, 1.5, 5), "eps": NOT_NEGATIVE, "scale": FLAG, "shift": FLAG}),
    nn.LayerNorm: ({}, {"eps": NOT_NEGATIVE, "scale": FLAG, "shift": FLAG}),
    nn.Normalize: (
        {"mean": 0, "std": 1},
        {"mean": (st.one_of(VECTOR[0], NOT_NEGATIVE[0]), st.sampled_from(["1", None, True, np.nan, [1, np.inf], {}])),
         "std": (POSITIVE[0], st.sampled_from([0, -1, [1, 0], "x" * 3000]))},
    ),
    nn.Reshape: (
        {"shape": (4,)},
        {"shape": (st.sampled_from([(4,), [2, -1], (np.int64(2), 2)]), st.sampled_from([30, (-1, -1), (0,), (-2,), (2.0,)]))},
    ),
    nn.Sequential: (
        {},
        {"input_shape": SHAPE, "seed": WHOLE, "dtype": (st.sampled_from(["float32", "float64"]), choices("")[1])},
    ),
    nn.CrossEntropy: ({}, {"label_smoothing": SHARE, "class_weight": or_none(CLASS_WEIGHT), "ignore_index": INDEX}),
    nn.BinaryCrossEntropy: ({}, {"pos_weight": or_none(SEVERAL_OR_ONE), "class_weight": or_none(CLASS_WEIGHT)}),
    nn.Huber: ({}, {"threshold": POSITIVE}),
    nn.SGD: ({}, OPTIMIZER | {"momentum": SHARE, "nesterov": (st.just(False), FLAG[1])}),
    nn.Adam: ({}, ADAM),
    nn.AdamW: ({}, ADAM),
    nn.RMSProp: ({}, OPTIMIZER | {"alpha": SHARE, "eps": NOT_NEGATIVE}),
    nn.Muon: ({}, OPTIMIZER | {"momentum": SHARE, "nesterov": FLAG, "renormalize": FLAG, "iterations": POSITIVE_WHOLE}),
    nn.ParameterGroups: (
        {"groups": {"*": nn.SGD()}},
        {"groups": (st.just({"*": nn.SGD()}), st.sampled_from([{"*": 0.1}, {"*": nn.SGD}, nn.SGD(), None, "*" * 3000])),
         "clip_norm": or_none(POSITIVE)},
    ),
    nn.schedules.constant: ({"rate": 0.1}, {"rate": NOT_NEGATIVE}),
    nn.schedules.step: ({"rate": 0.1, "every": 5}, {"rate": NOT_NEGATIVE, "every": POSITIVE_WHOLE, "factor": NOT_NEGATIVE}),
    nn.schedules.exponential: (
        {"rate": 0.1, "decay": 0.5},
        {"rate": NOT_NEGATIVE, "decay": NOT_NEGATIVE, "every": POSITIVE_WHOLE},
    ),
    nn.schedules.cosine: ({"rate": 0.1, "steps": 5}, RAMP),
    nn.schedules.linear: ({"rate": 0.1, "steps": 5}, RAMP),
    nn.schedules.warmup: (
        {"schedule": nn.schedules.constant(0.1), "steps": 5},
        {"schedule": (st.just(nn.schedules.constant(0.1)), st.sampled_from([0.1, None, "cosine", nn.schedules.cosine])),
         "steps": POSITIVE_WHOLE, "start": NOT_NEGATIVE},
    ),
    nn.Accuracy: ({}, OF_LABELS),
    nn.TopK: ({}, {"k": POSITIVE_WHOLE, "ignore_index": INDEX}),
    nn.ConfusionMatrix: ({}, {"n_classes": or_none(POSITIVE_WHOLE)} | OF_LABELS),
    nn.Precision: ({}, AVERAGED),
    nn.Recall: ({}, AVERAGED),
    nn.F1: ({}, AVERAGED),
    nn.metrics.ROCAUC: ({}, OF_LABELS),
    nn.metrics.AveragePrecision: ({}, OF_LABELS),
    nn.EarlyStopping: (
        {},
        {"patience": POSITIVE_WHOLE, "min_delta": NOT_NEGATIVE, "mode": choices("min", "max", None), "restore_best": FLAG},
    ),
    nn.ReduceOnPlateau: (
        {},
        {"factor": reals(0.125, 0.75, 0, 1, -0.1, 2), "patience": WHOLE, "threshold": NOT_NEGATIVE, "cooldown": WHOLE,
         "threshold_mode": choices("rel", "abs"), "min_learning_rate": NOT_NEGATIVE, "mode": choices("min", "max", None)},
    ),
    nn.CSVLog: (
        {"path": "log.csv"},
        {"path": (st.sampled_from(["log.csv", Path("log.csv")]), STRANGE.filter(lambda v: not isinstance(v, str)))},
    ),
    nn.LogTo: (
        {"log": log_nothing},
        {"log": (st.sampled_from([log_nothing, Mock()]), STRANGE.filter(lambda v: not callable(v) or isinstance(v, type))),
         "every": or_none(POSITIVE_WHOLE)},
    ),
    nn.WeightAverage: ({}, {"decay": or_none(SHARE), "start": WHOLE}),
    nn.data.RandomCrop: ({}, {"padding": POSITIVE_WHOLE, "mode": choices("zeros", "reflect")}),
    nn.data.Cutout: ({}, {"size": POSITIVE_WHOLE}),
    nn.init.constant: ({"value": 1.0}, {"value": (NOT_NEGATIVE[0], NO_NUMBERS)}),
    nn.init.whitening: ({"images": np.zeros((2, 3, 3, 1))}, {"eps": NOT_NEGATIVE}),
}  # fmt: skip
ARGUMENTS = [(kind, name) for kind, (_, kinds) in CONSTRUCTORS.items() for name in kinds]
each_argument = pytest.mark.parametrize(("kind", "name"), ARGUMENTS, ids=lambda v: getattr(v, "__name__", v))


def make(kind, **arguments):
    needed, _ = CONSTRUCTORS[kind]
    layers = [nn.Dense(2)] if kind is nn.Sequential else []
    return kind(*layers, **needed | arguments)


def test_the_table_has_all_constructors_with_options():
    spaces = (nn, nn.schedules, nn.data, nn.init, nn.metrics)
    kinds = {value for space in spaces for value in vars(space).values() if inspect.isclass(value)}
    others = {nn.Context, nn.Concat, nn.Residual, nn.Trainer, nn.History, nn.Optimizer, nn.data.Dataset, nn.data.Datasets}
    others |= {nn.data.ImageFiles}  # an array of images, whose arguments are its own
    for kind in kinds - others - {nn.init.DeclaredShape}:
        if kind.__module__.startswith("nnlite.") and not issubclass(kind, Exception) and not kind.__name__.startswith("_"):
            parameters = inspect.signature(kind).parameters.values()
            names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            assert names - {"images", "monitor"} == set(CONSTRUCTORS.get(kind, ({}, {}))[1]), kind


@each_argument
@given(data=st.data())
def test_what_is_given_is_kept(kind, name, data):
    """scikit-learn's `clone` demands the very object."""
    value = data.draw(CONSTRUCTORS[kind][1][name][0])
    made = make(kind, **{name: value})
    assert getattr(made, name) is value
    assert len(repr(made)) < LONGEST


@each_argument
@given(data=st.data())
def test_what_makes_no_sense_is_refused_at_once(kind, name, data):
    value = data.draw(CONSTRUCTORS[kind][1][name][1])
    with pytest.raises(ValueError, match=name) as caught:
        make(kind, **{name: value})
    assert len(str(caught.value)) <= LONGEST and "\n" not in str(caught.value)


def fit(**arguments):
    trainer = nn.Trainer(nn.Sequential(nn.Dense(3), input_shape=(4,)), nn.CrossEntropy(), nn.SGD())
    trainer.fit((X, T), **{"progress": False} | arguments)


def dataset():
    return nn.data.Dataset(X, T)


# Arguments of functions: their names, their kinds, a call with a value.
CALLS = [
    ("threads", POSITIVE_WHOLE, nn.set_num_threads),
    ("name", choices("auto", "direct", "winograd"), nn.set_conv_algorithm),
    ("passes", POSITIVE_WHOLE, lambda v: nn.profile(nn.Sequential(nn.Dense(3), input_shape=(4,)), X, T, passes=v)),
    ("seed", WHOLE, lambda v: nn.gradcheck(nn.Dense(3), X, seed=v)),
    ("tolerance", NOT_NEGATIVE, lambda v: nn.gradcheck(nn.Dense(3), X, tolerance=v)),
    ("pass_id", WHOLE, lambda v: nn.gradcheck(nn.Dense(3), X, pass_id=v)),
    ("epochs", WHOLE, lambda v: fit(epochs=v)),
    ("batch_size", POSITIVE_WHOLE, lambda v: fit(batch_size=v)),
    ("seed", WHOLE, lambda v: fit(seed=v)),
    ("shuffle", FLAG, lambda v: fit(shuffle=v)),
    ("progress", FLAG, lambda v: fit(progress=v)),
    ("nonfinite", choices("raise", "skip"), lambda v: fit(nonfinite=v)),
    ("every", POSITIVE_WHOLE, lambda v: fit(every=v, checkpoint="nowhere")),
    ("keep", POSITIVE_WHOLE, lambda v: fit(keep=v, checkpoint="nowhere")),
    ("resume", FLAG, lambda v: fit(resume=v, checkpoint="nowhere")),
    ("batch_size", POSITIVE_WHOLE, lambda v: dataset().batches(v)),
    ("epoch", WHOLE, lambda v: dataset().batches(2, epoch=v)),
    ("start", WHOLE, lambda v: dataset().batches(2, start=v)),
    ("shuffle", FLAG, lambda v: dataset().batches(2, shuffle=v)),
    ("n", POSITIVE_WHOLE, lambda v: dataset().subset(v)),
    ("seed", WHOLE, lambda v: dataset().split(2, seed=v)),
    ("n", POSITIVE_WHOLE, nn.data.shapes),
    ("shift", WHOLE, nn.data.views),
    ("download", FLAG, lambda v: nn.data.cifar10("nowhere", download=v)),
    ("download", FLAG, lambda v: nn.data.mnist("nowhere", download=v)),
    ("classes", POSITIVE_WHOLE, nn.zoo.tutorial_cnn),
    ("classes", POSITIVE_WHOLE, lambda v: nn.zoo.airbench((2, 2, 2), classes=v)),
    ("padding", choices("valid", "same"), lambda v: nn.zoo.airbench((2, 2, 2), padding=v)),
    ("classes", POSITIVE_WHOLE, lambda v: nn.zoo.resnet(8, classes=v)),
    ("depth", (None, st.one_of(NO_NUMBERS, st.sampled_from([0, 7, 21, 20.0]))), nn.zoo.resnet),
    ("preactivation", FLAG, lambda v: nn.zoo.resnet(8, preactivation=v)),
    ("projection", FLAG, lambda v: nn.zoo.resnet(8, preactivation=False, projection=v)),
    ("classes", POSITIVE_WHOLE, lambda v: nn.zoo.imagenet_resnet(18, classes=v, size=32)),
    ("classes", POSITIVE_WHOLE, lambda v: nn.zoo.vgg_small((2,), classes=v)),
    ("sizes", (None, st.sampled_from([3, (3,), "32", {}])), nn.zoo.mlp),
    ("augmentations", (None, STRANGE), lambda v: dataset().augmented(v)),
    # What is refused for another reason: the names of a large model, many axes.
    ("the names are", (None, st.just("*.nothing" * 200)), lambda v: nn.zoo.resnet(20).freeze(v)),
    ("expects vectors", (None, st.just((1,) * 500)), lambda v: nn.Sequential(nn.Dense(3), input_shape=v)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "call"), CALLS, ids=[name for name, _, _ in CALLS])
@given(data=st.data())
def test_functions_refuse_what_makes_no_sense(name, kind, call, data):
    with pytest.raises(ValueError, match=name) as caught:
        call(data.draw(kind[1]))
    assert len(str(caught.value)) <= LONGEST


@given(value=STRANGE)
def test_devices_that_are_none(value):
    model = nn.Sequential(nn.Dense(2), input_shape=(3,))
    for call in (lambda: model.to(value), lambda: model.to("cpu", precision=value)):
        with pytest.raises(nn.DeviceError) as caught:
            call()
        assert len(str(caught.value)) <= LONGEST


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.Residual(),
        lambda: nn.Sequential(),
        lambda: nn.Residual(nn.ReLU(), shortcut=[3]),
        lambda: nn.Concat(nn.ReLU()),
        lambda: nn.Concat(nn.ReLU(), [3]),
    ],
)
def test_a_network_is_made_of_layers(call):
    with pytest.raises((TypeError, nn.ShapeError), match="layer"):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: nn.Dense(4, 16),
            r"Dense\(units\) has no place for 16: write options by name \(bias=, init=\); the shape of the in",
        ),
        (
            lambda: nn.Conv2D(3, 16, 3),
            r"Conv2D\(filters, kernel_size\) has no place for 3: .*\(stride=, padding=, dilation=, g",
        ),
        (lambda: nn.MaxPool2D(2, 2, 1), r"MaxPool2D\(size, stride\) has no place for 1: .*\(padding=, dilation=, ceil_mode=\)"),
        (lambda: nn.BatchNorm(16), r"BatchNorm\(\) has no place for 16"),
        (lambda: nn.LayerNorm("x" * 3000), r"LayerNorm\(\) has no place for 'xxx"),
        (lambda: nn.ReLU(True), r"ReLU\(\) takes no arguments"),
        (lambda: nn.Adam(1e-3, 0.9), "positional"),
        (lambda: nn.CrossEntropy([1.0, 2.0]), "positional"),
        (lambda: nn.schedules.cosine(0.1, 10, 0.01), "positional"),
        (lambda: nn.EarlyStopping("val_loss", 3), "positional"),
    ],
)
def test_options_have_names(call, words):
    with pytest.raises(TypeError, match=words) as caught:
        call()
    assert len(str(caught.value)) <= LONGEST


def test_what_is_obvious_needs_no_name():
    for layer in (nn.Dense(4), nn.Conv2D(4, 3), nn.MaxPool2D(3, 2), nn.GELU("tanh"), nn.LeakyReLU(0.1), nn.Dropout(0.5)):
        assert eval(repr(layer), vars(nn)).config() == layer.config()
    assert nn.Huber(0.5).threshold == 0.5 and nn.TopK(3).k == 3 and nn.EarlyStopping("loss").monitor == "loss"


@given(
    value=st.one_of(STRANGE, NO_NUMBERS, st.recursive(st.integers(), lambda inner: st.lists(inner) | st.tuples(inner, inner)))
)
def test_any_value_is_shown_in_a_short_line(value):
    text = shortened(value)
    assert text and len(text) <= 80 and "\n" not in text


def test_short_values_are_shown_as_they_are():
    for value in (3, 1.5, "same", (3, 3), None, [1.0, 2.0]):
        assert shortened(value) == repr(value)
    assert [shortened(v) for v in (np.int64(3), np.float32(0.5), np.array([1.0, 2.0]), nn.ReLU, nn.init.ones)] == [
        "3", "0.5", "[1.0, 2.0]", "ReLU", "ones",
    ]  # fmt: skip
    assert shortened(range(3)) == "range(0, 3)" and listing("abc") == "a, b, c"
    assert listing(range(13)) == "0, 1, 2, 3, 4, 5, 6, 7 and 5 more"


def test_long_arguments_are_shortened_wherever_they_are_shown(capsys):
    """3,072 means made errors of 30,000 characters and a summary as wide."""
    model = nn.Sequential(nn.Normalize(np.zeros(3072), np.ones(3072)), nn.Dense(3), input_shape=(3072,))
    assert len(repr(model)) < 300
    model.summary()
    assert max(map(len, capsys.readouterr().out.splitlines())) < 150
    with pytest.raises(nn.ShapeError, match="layer 0 Normalize") as caught:
        model(np.zeros((2, 5)))
    assert len(str(caught.value)) < LONGEST


def test_where_a_layer_inside_others_is_said_in_short():
    layer = nn.Conv2D(3, 9)
    for _ in range(8):
        layer = nn.Residual(nn.ReLU(), layer, *[nn.Conv2D(3, 3, padding="same") for _ in range(9)])
    with pytest.raises(nn.ShapeError, match=r"layer 0 Residual: layer 1 Residual: .* Conv2D\(3, 9\): the kernel") as caught:
        nn.Sequential(layer, input_shape=(4, 4, 3))
    assert len(str(caught.value)) < LONGEST


def test_choices_and_bounds_are_said():
    with pytest.raises(ValueError, match='must be "none" or "tanh"'):
        nn.GELU("erf")
    with pytest.raises(ValueError, match=r"ignore_index must be a whole number, not 1\.5"):
        nn.CrossEntropy(ignore_index=1.5)
    with pytest.raises(ValueError, match="eps"):
        nn.BatchNorm(eps=-0.5)
    with pytest.raises(TypeError):
        nn.BatchNorm(0.5)
    with pytest.raises(nn.ShapeError, match=r"mean has 2 values for inputs \(5, 4, 3\) of 3 channels"):
        nn.Sequential(nn.Normalize([1, 2], 1), input_shape=(5, 4, 3))
    assert repr(nn.Sequential(nn.ReLU(), nn.Dense(2), input_shape=(3,))) == "Sequential(ReLU(), Dense(2), input_shape=(3,))"
