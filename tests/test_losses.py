"""Losses: deltas by central differences, formulas in plain NumPy, weights, shards, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

import nnlite as nn

N, C = 6, 4
rng = np.random.default_rng(0)
LABELS = rng.integers(0, C, N)
PROBABILITIES = rng.dirichlet(np.ones(C), N)
REALS = rng.standard_normal((N, C))
UNIT = rng.uniform(size=(N, C))
WEIGHTS = rng.uniform(0.1, 2, C)
PIXELS = rng.integers(0, C, (N, 2, 3))
SEQUENCES = rng.dirichlet(np.ones(C), (N, 3))

LOSSES = {
    "CrossEntropy": (nn.CrossEntropy(), LABELS),
    "CrossEntropy smoothed": (nn.CrossEntropy(label_smoothing=0.2), LABELS),
    "CrossEntropy class weights": (nn.CrossEntropy(class_weight=WEIGHTS), LABELS),
    "CrossEntropy both": (nn.CrossEntropy(label_smoothing=0.1, class_weight=WEIGHTS), LABELS),
    "CrossEntropy probabilities": (nn.CrossEntropy(), PROBABILITIES),
    "CrossEntropy shares that do not add up to 1": (nn.CrossEntropy(), UNIT),
    "CrossEntropy probabilities, both": (nn.CrossEntropy(label_smoothing=0.1, class_weight=WEIGHTS), PROBABILITIES),
    "CrossEntropy of pixels": (nn.CrossEntropy(), PIXELS),
    "CrossEntropy of pixels, all options": (
        nn.CrossEntropy(label_smoothing=0.1, class_weight={0: 3.0, 2: 0.5}, ignore_index=1),
        PIXELS,
    ),
    "CrossEntropy of pixels in a column": (nn.CrossEntropy(ignore_index=1), PIXELS[..., None]),
    "CrossEntropy of sequences, probabilities": (nn.CrossEntropy(label_smoothing=0.1, class_weight=WEIGHTS), SEQUENCES),
    "CrossEntropy of truth": (nn.CrossEntropy(class_weight={True: 3}), LABELS > 1),
    "BinaryCrossEntropy": (nn.BinaryCrossEntropy(), UNIT),
    "BinaryCrossEntropy pos_weight": (nn.BinaryCrossEntropy(pos_weight=WEIGHTS), UNIT),
    "BinaryCrossEntropy class weights": (nn.BinaryCrossEntropy(class_weight=[0.5, 3]), UNIT),
    "BinaryCrossEntropy both": (nn.BinaryCrossEntropy(pos_weight=2.5, class_weight={0: 0.5}), UNIT > 0.5),
    "MSE": (nn.MSE(), REALS),
    "MAE": (nn.MAE(), REALS),
    "Huber": (nn.Huber(0.7), REALS),
}
SHAPES = {name: (*t.shape[:-1], C) if t.shape[-1] in (1, C) else (*t.shape, C) for name, (_, t) in LOSSES.items()}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
@given(seed=st.integers(0, 1000), weighted=st.booleans())
def test_delta_is_the_derivative(name, seed, weighted):
    criterion, t = LOSSES[name]
    draw = np.random.default_rng(seed)
    z, v = draw.standard_normal((2, *SHAPES[name]))
    w = draw.uniform(0.1, 3, N) if weighted else None
    h = 1e-6
    numeric = (criterion(z + h * v, t, w)[0] - criterion(z - h * v, t, w)[0]) / (2 * h)
    _, delta = criterion(z, t, w)
    assert np.vdot(delta, v) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_shards_add_up_to_the_batch(name, weighted):
    criterion, t = LOSSES[name]
    z, w = rng.standard_normal(SHAPES[name]), rng.uniform(0.1, 3, N) if weighted else None
    loss, delta = criterion(z, t, w)
    t, w, total = criterion.prepare(z.shape, z.dtype, t, w, nn.Dense.backend)
    parts = [
        criterion.of_rows(nn.Dense.backend, z[s], t[s], None if w is None else w[s], total)
        for s in (slice(0, 1), slice(1, 4), slice(4, N))
    ]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(np.concatenate([d for _, d in parts]), delta, rtol=1e-12)


@each_loss
def test_arguments_are_not_written_to_and_dtype_is_kept(name):
    criterion, t = LOSSES[name]
    z = rng.standard_normal(SHAPES[name]).astype(np.float32)
    before = z.copy(), t.copy()
    loss, delta = criterion(z, t)
    assert type(loss) is float
    assert delta.dtype == np.float32 and delta.shape == z.shape
    assert np.array_equal(before[0], z) and np.array_equal(before[1], t)


BAD = {"CrossEntropy": (nn.CrossEntropy, [-100, C, 255]), "MSE": (nn.MSE, [np.nan, np.inf])} | {
    "BinaryCrossEntropy": (nn.BinaryCrossEntropy, [np.nan, 7.0]),
    "MAE": (nn.MAE, [np.nan, -np.inf]),
    "Huber": (nn.Huber, [np.nan, np.inf]),
    "CrossEntropy class weights": (lambda: nn.CrossEntropy(class_weight=WEIGHTS, label_smoothing=0.1), [-1, 99]),
    "CrossEntropy probabilities": (nn.CrossEntropy, [np.nan, np.inf, -1.0]),
}


@pytest.mark.parametrize("name", BAD)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_weight_zero_means_not_there(name, data, dtype):
    """Whatever the target and the outputs of such a sample are: loss and delta are those of the others."""
    make, values = BAD[name]
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    z, t, w = draw.standard_normal((N, C)).astype(dtype), LOSSES[name][1].copy(), draw.uniform(0.1, 3, N)
    there = draw.permutation(N) < data.draw(st.integers(1, N - 1))
    expected, delta = make()(z[there], t[there], w[there])
    w[~there] = 0
    t[~there] = data.draw(st.sampled_from(values))
    z[~there] = data.draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    loss, full = make()(z, t, w)
    assert loss == pytest.approx(expected, rel=1e-6) and full.dtype == delta.dtype
    np.testing.assert_allclose(full[there], delta, rtol=1e-6)
    assert not full[~there].any()


def test_weight_zero_in_training():
    """Through a model, a sweep in shards, and the metrics; backward, an input that is not finite still meets the delta 0."""
    x, t, w = rng.standard_normal((N, 3)), LABELS.copy(), np.array([1.0, 0, 2, 0, 1, 1])
    models = [nn.Sequential(nn.Dense(C), input_shape=(3,), dtype="float64") for _ in range(2)]
    expected = models[0].loss_and_grad(x[w > 0], t[w > 0], nn.CrossEntropy(), w[w > 0])
    t[w == 0] = -1
    assert models[1].loss_and_grad(x, t, nn.CrossEntropy(), w) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(models[1].grads, models[0].grads, rtol=1e-9, atol=1e-12)
    trainers = [nn.Trainer(model, nn.CrossEntropy(), nn.SGD(), [nn.Accuracy(), nn.F1()]) for model in models]
    figures = trainers[0].evaluate((x[w > 0], t[w > 0], w[w > 0])), trainers[1].evaluate((x, t, w))
    assert figures[0] == pytest.approx(figures[1], rel=1e-12)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "class_weight": WEIGHTS}])
@pytest.mark.parametrize("index", [-100, 2, np.uint8(255)])
def test_an_ignored_label_is_left_out_of_the_mean(shape, weighted, options, index):
    """As in PyTorch: the mean is that of the others, the delta zero."""
    z, t, w = rng.standard_normal((N, C)), LABELS.copy(), rng.uniform(0.1, 3, N) if weighted else None
    t[[1, 4]] = index
    there = t != index
    expected, delta = nn.CrossEntropy(**options)(z[there], t[there], None if w is None else w[there])
    loss, full = nn.CrossEntropy(**options, ignore_index=index)(z, t.reshape(shape), w)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(full[there], delta, rtol=1e-12)
    assert not full[~there].any()
    with pytest.raises(nn.DataError, match="add up to zero"):
        nn.CrossEntropy(ignore_index=index)(z, np.full(shape, index), w)


def test_probabilities_have_no_label_to_ignore():
    z = rng.standard_normal((N, C))
    for t in (PROBABILITIES, np.eye(C, dtype=int)[LABELS]):
        assert nn.CrossEntropy(ignore_index=1)(z, t)[0] == nn.CrossEntropy()(z, t)[0]


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_cross_entropy_by_its_formula():
    z, w = rng.standard_normal((N, C)), rng.uniform(0.1, 3, N)
    picked = -log_softmax(z)[np.arange(N), LABELS]
    assert nn.CrossEntropy()(z, LABELS)[0] == pytest.approx(picked.mean())
    assert nn.CrossEntropy()(z, LABELS, w)[0] == pytest.approx((w * picked).sum() / w.sum())
    cw = WEIGHTS[LABELS] * w
    assert nn.CrossEntropy(class_weight=WEIGHTS)(z, LABELS, w)[0] == pytest.approx((cw * picked).sum() / cw.sum())
    smooth = 0.8 * picked + 0.2 * -log_softmax(z).mean(axis=1)
    assert nn.CrossEntropy(label_smoothing=0.2)(z, LABELS)[0] == pytest.approx(smooth.mean())
    soft = -(PROBABILITIES * log_softmax(z)).sum(axis=1)
    assert nn.CrossEntropy()(z, PROBABILITIES)[0] == pytest.approx(soft.mean())
    heavy = -(PROBABILITIES * WEIGHTS * log_softmax(z)).sum(axis=1)
    assert nn.CrossEntropy(class_weight=WEIGHTS)(z, PROBABILITIES, w)[0] == pytest.approx((w * heavy).sum() / w.sum())


@given(
    positions=st.sampled_from([(), (5,), (2, 3), (2, 1, 3)]),
    smoothing=st.sampled_from([0.0, 0.1]),
    weight=st.sampled_from([None, WEIGHTS, {3: 2.0, 0: 0.5}]),
    ignored=st.sampled_from([None, 1, 255]),
    weighted=st.booleans(),
    column=st.booleans(),
    data=st.data(),
)
def test_each_position_counts_as_a_sample(positions, smoothing, weight, ignored, weighted, column, data):
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    z, t = draw.standard_normal((N, *positions, C)), draw.integers(0, C, (N, *positions))
    t.flat[0] = 255 if ignored == 255 else 0
    w = draw.uniform(0.1, 3, N) * (draw.random(N) < 0.8) + [1, *[0] * (N - 1)] if weighted else None
    criterion = nn.CrossEntropy(label_smoothing=smoothing, class_weight=weight, ignore_index=ignored)
    repeated, there = None if w is None else np.repeat(w, t[0].size), t.reshape(-1) != ignored
    of_those_there = z.reshape(-1, C)[there], t.reshape(-1)[there], None if w is None else repeated[there]
    expected = nn.CrossEntropy(label_smoothing=smoothing, class_weight=weight)(*of_those_there)
    loss, delta = criterion(z, t[..., None] if column else t, w)
    assert loss == pytest.approx(expected[0]) and delta.shape == z.shape
    np.testing.assert_allclose(delta.reshape(-1, C)[there], expected[1], rtol=1e-12, atol=1e-15)
    assert not delta.reshape(-1, C)[~there].any()
    soft = np.eye(C)[np.minimum(t, C - 1)]
    of_soft, expected = criterion(z, soft, w)[0], criterion(z.reshape(-1, C), soft.reshape(-1, C), repeated)
    assert of_soft == pytest.approx(expected[0])


def test_classes_without_a_weight_weigh_1():
    z = rng.standard_normal((N, C))
    some, all_of_them = nn.CrossEntropy(class_weight={1: 3, np.int64(2): 0.0}), nn.CrossEntropy(class_weight=[1, 3, 0, 1])
    for t in (LABELS, PROBABILITIES):
        assert some(z, t)[0] == all_of_them(z, t)[0] and np.array_equal(some(z, t)[1], all_of_them(z, t)[1])
    z = rng.standard_normal(N)
    ours, expected = (nn.BinaryCrossEntropy(class_weight=v)(z, LABELS > 1) for v in ({1: 3}, [1, 3]))
    assert ours[0] == expected[0] and np.array_equal(ours[1], expected[1])


def test_booleans_are_labels():
    z, t = rng.standard_normal((N, 2)), LABELS > 1
    for criterion in (nn.CrossEntropy(), nn.CrossEntropy(class_weight={True: 2.0})):
        ours, expected = criterion(z, t), criterion(z, t.astype(int))
        assert ours[0] == expected[0] and np.array_equal(ours[1], expected[1])


@given(seed=st.integers(0, 1000), outputs=st.sampled_from([(), (1,), (C,), (2, 3, 1)]), weighted=st.booleans())
def test_class_weights_of_two_classes(seed, outputs, weighted):
    """As scikit-learn's log_loss has it, and as CrossEntropy of two classes, whose first logit is 0."""
    draw = np.random.default_rng(seed)
    z, t, v = draw.standard_normal((N, *outputs)), draw.integers(0, 2, (N, *outputs)), draw.uniform(0.1, 3, 2)
    w = draw.uniform(0.1, 3, N) if weighted else None
    loss, delta = nn.BinaryCrossEntropy(class_weight=v)(z, t, w)
    each = (1 if w is None else w.reshape(N, *[1] * len(outputs))) * v[t]
    y = 1 / (1 + np.exp(-z))
    assert loss == pytest.approx(log_loss(t.ravel(), y.ravel(), sample_weight=each.ravel(), labels=[0, 1]))
    of_two, of_both = nn.CrossEntropy(class_weight=v)(np.stack([0 * z, z], axis=-1), t, w)
    assert loss == pytest.approx(of_two)
    np.testing.assert_allclose(delta, of_both[..., 1], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("p", [2.5, WEIGHTS])
def test_pos_weight_by_its_formula(p):
    z, w = rng.standard_normal((N, C)), rng.uniform(0.1, 3, N)
    y = 1 / (1 + np.exp(-z))
    each = -(p * UNIT * np.log(y) + (1 - UNIT) * np.log(1 - y))
    assert nn.BinaryCrossEntropy(pos_weight=p)(z, UNIT)[0] == pytest.approx(each.mean())
    expected = (w * each.mean(axis=1)).sum() / w.sum()
    assert nn.BinaryCrossEntropy(pos_weight=p)(z, UNIT, w)[0] == pytest.approx(expected)


def test_the_others_by_their_formulas():
    z = rng.standard_normal((N, C))
    y, d = 1 / (1 + np.exp(-z)), z - REALS
    bce = -(UNIT * np.log(y) + (1 - UNIT) * np.log(1 - y)).mean()
    huber = np.where(abs(d) <= 0.7, d * d / 2, 0.7 * (abs(d) - 0.35)).mean()
    assert nn.BinaryCrossEntropy()(z, UNIT)[0] == pytest.approx(bce)
    assert nn.MSE()(z, REALS)[0] == pytest.approx((d * d).mean())
    assert nn.MAE()(z, REALS)[0] == pytest.approx(abs(d).mean())
    assert nn.Huber(0.7)(z, REALS)[0] == pytest.approx(huber)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_stay_finite(dtype):
    z = np.array([[1e4, -1e4, 0, 1], [-1e4, 1e4, 3e4, 0]], dtype)
    labels = [[0, 1, 1, 0], [1, 0, 1, 0]]
    weighted = nn.BinaryCrossEntropy(pos_weight=2.0, class_weight=[1, 3])
    for criterion, t in ((nn.CrossEntropy(), [1, 0]), (nn.BinaryCrossEntropy(), labels), (weighted, labels)):
        loss, delta = criterion(z, np.array(t))
        assert np.isfinite(loss) and np.isfinite(delta).all()
    assert nn.CrossEntropy()(z, np.array([1, 0]))[0] == pytest.approx((2e4 + 4e4) / 2)
    for criterion in (nn.BinaryCrossEntropy(), nn.BinaryCrossEntropy(pos_weight=1.0)):
        assert criterion(np.array([20, -20], dtype), [1, 0])[0] == pytest.approx(np.exp(-20), rel=1e-6)
    np.testing.assert_array_equal(nn.softmax(z), [[1, 0, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_that_is_ruled_out_costs_nothing(smoothing):
    """log y = -inf where p = 0: as PyTorch has it, p log y = 0 there."""
    inf = np.inf
    z, ruled_out = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[1.0, -inf, 2.0], [-inf, 1.0, 2.0]])
    loss, delta = nn.CrossEntropy()(ruled_out, [0, 2])
    expected, two = nn.CrossEntropy()(z, [0, 1])
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(delta, [[two[0, 0], 0, two[0, 1]], [0, two[1, 0], two[1, 1]]])
    for weight in (None, [1.0, 2.0, 3.0]):
        criterion = nn.CrossEntropy(label_smoothing=smoothing, class_weight=weight)
        assert criterion(ruled_out, [1, 2])[0] == inf
        with np.errstate(invalid="ignore"):
            for bad in (np.nan, inf):
                assert np.isnan(criterion([[1.0, bad, 2.0]], [0])[0])


def test_lists_and_integers_are_logits_too():
    wanted = nn.CrossEntropy(label_smoothing=0.1)(np.array([[1.0, 2.0]]), np.array([0]))
    for z in ([[1.0, 2.0]], [[1, 2]], np.array([[1, 2]])):
        loss, delta = nn.CrossEntropy(label_smoothing=0.1)(z, [0])
        assert loss == wanted[0] and np.array_equal(delta, wanted[1])
        assert np.array_equal(nn.softmax(z), nn.softmax(np.array([[1.0, 2.0]])))
    for call in (lambda: nn.CrossEntropy()([["a", "b"]], [0]), lambda: nn.softmax([["a", "b"]])):
        with pytest.raises(nn.DataError, match="real numbers"):
            call()


def test_labels_in_a_column():
    z = rng.standard_normal((N, C))
    flat, column = nn.CrossEntropy()(z, LABELS), nn.CrossEntropy()(z, LABELS[:, None])
    assert flat[0] == column[0] and np.array_equal(flat[1], column[1])
    weighted = nn.CrossEntropy(class_weight=WEIGHTS)
    assert weighted(z, LABELS[:, None])[0] == weighted(z, LABELS)[0]


def test_softmax_by_its_formula():
    z = rng.standard_normal((N, 2, C))
    np.testing.assert_allclose(nn.softmax(z), np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True), rtol=1e-12)


def test_a_column_of_logits_takes_flat_targets():
    z = rng.standard_normal((N, 1))
    flat = nn.BinaryCrossEntropy()(z, LABELS % 2)
    column = nn.BinaryCrossEntropy()(z, (LABELS % 2)[:, None])
    assert flat[0] == column[0] and flat[1].shape == z.shape
    z, t = rng.standard_normal((N, 2, 3, 1)), rng.integers(0, 2, (N, 2, 3))
    assert nn.BinaryCrossEntropy()(z, t)[0] == nn.BinaryCrossEntropy()(z, t[..., None])[0]


@pytest.mark.parametrize(
    ("criterion", "z", "t", "weight", "error", "words"),
    [
        (nn.CrossEntropy(), (N, C), LABELS.astype(float), None, nn.DataError, "integers"),
        (nn.CrossEntropy(), (N, C), LABELS + C, None, nn.DataError, "0 ... 3"),
        (nn.CrossEntropy(), (N, C), LABELS - C, None, nn.DataError, "0 ... 3"),
        (nn.CrossEntropy(), (N, C), [0, 1, -1, 3, 0, 1][:N], None, nn.DataError, "found -1"),
        (nn.CrossEntropy(), (N, C), [0, 1, 2, 3, 4, 0], None, nn.DataError, "found 4"),
        (nn.CrossEntropy(), (N, C), LABELS[:-1], None, nn.ShapeError, r"\(5,\)"),
        (nn.CrossEntropy(), (N, C), PROBABILITIES * 2, None, nn.DataError, r"\[0, 1\]"),
        (nn.CrossEntropy(), (N, C, 2), LABELS, None, nn.ShapeError, "logits"),
        (nn.CrossEntropy(), (N, 2, 3, C), PIXELS[:, :1], None, nn.ShapeError, r"\(6, 1, 3\)"),
        (nn.CrossEntropy(), (N, 2, 3, C), PIXELS + C, None, nn.DataError, "0 ... 3"),
        (nn.CrossEntropy(), (N,), LABELS, None, nn.ShapeError, r"logits \(N, ..., C\)"),
        (nn.CrossEntropy(), (N, 1, C), LABELS, None, nn.ShapeError, r"\(6,\)"),
        (nn.CrossEntropy(class_weight=[1, 2]), (N, C), LABELS, None, nn.ShapeError, "2 values for 4"),
        (nn.CrossEntropy(class_weight={1: 2, 4: 3}), (N, C), LABELS, None, nn.ShapeError, "class 4, the classes are 0 ... 3"),
        (nn.BinaryCrossEntropy(class_weight=[1, 2, 3]), (N, C), UNIT, None, nn.ShapeError, "3 values for 2"),
        (nn.BinaryCrossEntropy(pos_weight=[1, 2]), (N, C), UNIT, None, nn.ShapeError, "2 values for 4"),
        (nn.BinaryCrossEntropy(pos_weight=[1.0] * N), (N,), UNIT[:, 0], None, nn.ShapeError, "6 values for 1"),
        (nn.BinaryCrossEntropy(class_weight=[0, 1]), (N, C), UNIT * 0, None, nn.DataError, "add up"),
        (nn.CrossEntropy(), (N, C), LABELS, np.ones(3), nn.ShapeError, r"sample_weight must have shape \(6,\)"),
        (nn.CrossEntropy(), (N, C), LABELS, np.zeros(N), nn.DataError, "add up"),
        (nn.CrossEntropy(), (N, C), LABELS * 1j, None, nn.DataError, "real"),
        (nn.CrossEntropy(ignore_index=9), (N, C), [0, 1, 9, 9, 4, 0], None, nn.DataError, "found 4"),
        (nn.CrossEntropy(ignore_index=9), (N, C), LABELS[:-1], np.ones(N), nn.ShapeError, r"\(5,\)"),
        (nn.CrossEntropy(), (0, C), np.zeros(0, int), None, nn.DataError, "empty"),
        (nn.MSE(), (0, C), np.zeros((0, C)), np.zeros(0), nn.DataError, "empty"),
        (nn.BinaryCrossEntropy(), (N, C), REALS, None, nn.DataError, r"\[0, 1\]"),
        (nn.BinaryCrossEntropy(), (N, C), PROBABILITIES * np.nan, None, nn.DataError, r"\[0, 1\]"),
        (nn.MSE(), (N, C), REALS[:, :2], None, nn.ShapeError, r"\(6, 2\)"),
        (nn.MSE(), (N, C), REALS[:, 0], None, nn.ShapeError, r"\(6,\)"),
    ],
)
def test_bad_input(criterion, z, t, weight, error, words):
    with pytest.raises(error, match=words):
        criterion(np.zeros(z), t, weight)


def test_bad_arguments():
    for make in (lambda: nn.CrossEntropy(label_smoothing=1), lambda: nn.Huber(0)):
        with pytest.raises(ValueError):
            make()
    for z in (np.zeros((2, 0)), 3.0):
        with pytest.raises(nn.ShapeError, match="softmax expects"):
            nn.softmax(z)


@pytest.mark.parametrize("bad", [-0.5, 1.5, np.nan])
def test_targets_outside_the_unit_interval_are_refused(bad):
    with pytest.raises(nn.DataError, match=r"in \[0, 1\]"):
        nn.BinaryCrossEntropy()(np.zeros((2, 1)), np.array([[0.5], [bad]]))


def test_weights_that_add_up_to_less_than_nothing_are_refused():
    with pytest.raises(nn.DataError, match=r"add up to -0\.5"):
        nn.MSE()(np.zeros((2, 1)), np.zeros((2, 1)), [-1.0, 0.5])


@pytest.mark.parametrize("smoothing", [-0.5, 1.0])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        nn.CrossEntropy(label_smoothing=smoothing)


def test_an_ignored_index_is_a_label_not_a_probability():
    """Of probabilities (N, C), and of labels for another number of samples, nothing is ignored."""
    z, p = np.zeros((3, 2)), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert nn.CrossEntropy(ignore_index=0)(z, p)[0] == nn.CrossEntropy()(z, p)[0]
    with pytest.raises(nn.ShapeError):
        nn.CrossEntropy(ignore_index=0)(z, np.zeros((3, 4), int))
