"""Losses: deltas by central differences, formulas in plain NumPy, weights, shards, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn

N, C = 6, 4
rng = np.random.default_rng(0)
LABELS = rng.integers(0, C, N)
PROBABILITIES = rng.dirichlet(np.ones(C), N)
REALS = rng.standard_normal((N, C))
UNIT = rng.uniform(size=(N, C))
WEIGHTS = rng.uniform(0.1, 2, C)

LOSSES = {
    "CrossEntropy": (nn.CrossEntropy(), LABELS),
    "CrossEntropy smoothed": (nn.CrossEntropy(label_smoothing=0.2), LABELS),
    "CrossEntropy class weights": (nn.CrossEntropy(class_weight=WEIGHTS), LABELS),
    "CrossEntropy both": (nn.CrossEntropy(label_smoothing=0.1, class_weight=WEIGHTS), LABELS),
    "CrossEntropy probabilities": (nn.CrossEntropy(), PROBABILITIES),
    "CrossEntropy shares that do not add up to 1": (nn.CrossEntropy(), UNIT),
    "CrossEntropy probabilities, both": (nn.CrossEntropy(label_smoothing=0.1, class_weight=WEIGHTS), PROBABILITIES),
    "BinaryCrossEntropy": (nn.BinaryCrossEntropy(), UNIT),
    "MSE": (nn.MSE(), REALS),
    "MAE": (nn.MAE(), REALS),
    "Huber": (nn.Huber(0.7), REALS),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
@given(seed=st.integers(0, 1000), weighted=st.booleans())
def test_delta_is_the_derivative(name, seed, weighted):
    criterion, t = LOSSES[name]
    draw = np.random.default_rng(seed)
    z, v = draw.standard_normal((2, N, C))
    w = draw.uniform(0.1, 3, N) if weighted else None
    h = 1e-6
    numeric = (criterion(z + h * v, t, w)[0] - criterion(z - h * v, t, w)[0]) / (2 * h)
    _, delta = criterion(z, t, w)
    assert np.vdot(delta, v) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_shards_add_up_to_the_batch(name, weighted):
    criterion, t = LOSSES[name]
    z, w = rng.standard_normal((N, C)), rng.uniform(0.1, 3, N) if weighted else None
    loss, delta = criterion(z, t, w)
    _, _, total = criterion.prepare(z.shape, z.dtype, t, w, nn.Dense.backend)
    parts = [criterion(z[s], t[s], None if w is None else w[s], total=total) for s in (slice(0, 1), slice(1, 4), slice(4, N))]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(np.concatenate([d for _, d in parts]), delta, rtol=1e-12)


@each_loss
def test_arguments_are_not_written_to_and_dtype_is_kept(name):
    criterion, t = LOSSES[name]
    z = rng.standard_normal((N, C)).astype(np.float32)
    before = z.copy(), t.copy()
    loss, delta = criterion(z, t)
    assert type(loss) is float
    assert delta.dtype == np.float32 and delta.shape == z.shape
    assert np.array_equal(before[0], z) and np.array_equal(before[1], t)


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
    for criterion, t in ((nn.CrossEntropy(), [1, 0]), (nn.BinaryCrossEntropy(), [[0, 1, 1, 0], [1, 0, 1, 0]])):
        loss, delta = criterion(z, np.array(t))
        assert np.isfinite(loss) and np.isfinite(delta).all()
    assert nn.CrossEntropy()(z, np.array([1, 0]))[0] == pytest.approx((2e4 + 4e4) / 2)
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
        (nn.CrossEntropy(class_weight=[1, 2]), (N, C), LABELS, None, nn.ShapeError, "2 values for 4"),
        (nn.CrossEntropy(), (N, C), LABELS, np.ones(3), nn.ShapeError, r"sample_weight must have shape \(6,\)"),
        (nn.CrossEntropy(), (N, C), LABELS, np.zeros(N), nn.DataError, "add up"),
        (nn.CrossEntropy(), (N, C), LABELS * 1j, None, nn.DataError, "real"),
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
