"""Activations, dropout and losses in C against NumPy's, on any shape and at every vector width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend.cpu.numpy import get_numpy_backend
from nnlite.backend.native.operations import kernels
from nnlite.layers import activation
from nnlite.layers.activation import prelu, prelu_delta

DTYPES = st.sampled_from(["float32", "float64"])
SIZES = st.sampled_from([(), (3, 5)])
SHAPES = st.tuples(st.integers(0, 9), SIZES, st.integers(1, 70)).map(lambda drawn: (drawn[0], *drawn[1], drawn[2]))
PLACES = st.sampled_from(["new", "in", "strided"])
NOTHING = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-42]
ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Softplus(), nn.Softmax(),
    nn.GELU(), nn.GELU("tanh"), nn.Dropout(0.3), nn.SpatialDropout2D(0.3),
]  # fmt: skip
SWEEPS = [
    (activation.leaky_relu, (0.3,), False), (activation.leaky_relu_delta, (0.3,), True), (activation.leaky_relu, (0.0,), False),
    (activation.elu, (0.7,), False), (activation.elu_delta, (0.7,), True), (activation.sigmoid_delta, (), True),
    (activation.tanh_delta, (), True), (activation.softplus, (), False), (activation.softplus_delta, (), True),
    (activation.silu, (), False), (activation.silu_delta, (), True), (activation.gelu, (), False),
    (activation.gelu_delta, (), True),
    (activation.gelu_tanh, (0.8, 0.04), False), (activation.gelu_tanh_delta, (0.8, 0.04), True),
]  # fmt: skip


def drawn(shape, dtype, seed=0):
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def tolerance(dtype):
    return 64 * np.finfo(dtype).eps


def agree(actual, expected, dtype):
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=tolerance(dtype), atol=tolerance(dtype))


@given(shape=SHAPES, dtype=DTYPES, place=PLACES, name=st.sampled_from(["relu", "exp", "tanh", "sigmoid", "softmax"]))
def test_functions_of_one_array(native, displaced, shape, dtype, place, name):
    a = drawn(shape, dtype)
    expected = getattr(get_numpy_backend(), name)(a, None)
    out = {"new": None, "in": a.copy(), "strided": np.empty(shape[::-1], dtype).T}[place]
    result = getattr(native, name)(out if place == "in" else displaced(a), out)
    assert out is None or result is out
    agree(result, expected, dtype)


@given(shape=SHAPES, dtype=DTYPES, place=PLACES, name=st.sampled_from(["relu_delta", "drop", "softmax_delta"]))
def test_functions_of_two_arrays(native, displaced, shape, dtype, place, name):
    a, b = drawn(shape, dtype), np.maximum(drawn(shape, dtype, 1), 0)
    expected = getattr(get_numpy_backend(), name)(a, b, None)
    out = {"new": None, "in": a.copy(), "strided": np.empty(shape[::-1], dtype).T}[place]
    result = getattr(native, name)(out if place == "in" else displaced(a), displaced(b), out)
    assert out is None or result is out
    agree(result, expected, dtype)


@pytest.mark.parametrize(("formula", "numbers", "is_delta"), SWEEPS)
@given(shape=SHAPES, dtype=DTYPES, place=PLACES, scale=st.sampled_from([1, 30]))
def test_sweeps_are_the_formulas(native, displaced, formula, numbers, is_delta, shape, dtype, place, scale):
    arrays = [np.asarray(scale, dtype) * drawn(shape, dtype, seed) for seed in range(1 + is_delta)]
    swept(native, displaced, formula, arrays, numbers, dtype, place)


@pytest.mark.parametrize(("formula", "is_delta"), [(prelu, False), (prelu_delta, True)])
@given(shape=SHAPES, dtype=DTYPES, place=PLACES, shared=st.booleans())
def test_sweeps_with_a_slope_for_each_column(native, displaced, formula, is_delta, shape, dtype, place, shared):
    slopes = drawn(1 if shared else shape[-1], dtype, 2)
    swept(native, displaced, formula, [drawn(shape, dtype, seed) for seed in range(1 + is_delta)], (slopes,), dtype, place)


def swept(native, displaced, formula, arrays, numbers, dtype, place):
    """Compare with the formula, by functions of NumPy's with more digits than its erf has."""
    assert formula.__name__ in kernels(np.dtype(dtype))
    with_erf = formula in (activation.gelu, activation.gelu_delta)  # NumPy's has an error of 1.5e-7, absolute
    with np.errstate(over="ignore"):
        expected = formula(native if with_erf else get_numpy_backend(), *arrays, *numbers, None)
    shape = expected.shape
    out = {"new": None, "in": arrays[0].copy(), "strided": np.empty(shape[::-1], dtype).T}[place]
    first = out if place == "in" else displaced(arrays[0])
    result = native.sweep(formula, first, *map(displaced, arrays[1:]), *numbers, out=out)
    assert (out is None or result is out) and result.dtype == expected.dtype
    largest = max(abs(a).max(initial=1) for a in arrays)  # of its size 1 + tanh u leaves few digits
    np.testing.assert_allclose(result, expected, rtol=tolerance(dtype), atol=largest * tolerance(dtype))


def test_a_sweep_of_other_arrays_is_the_formula(native):
    """Of two dtypes, of integers, and of a formula that is nobody's kernel."""
    a, y = np.ones((3, 5)), np.full((3, 5), 0.25, "float32")
    assert (native.sweep(activation.sigmoid_delta, a, y, out=None) == 0.1875).all()
    assert (native.sweep(prelu, a.astype("int64"), np.ones(5), out=None) == 1).all()
    assert (native.sweep(lambda backend, a, out: backend.xp.add(a, 1, out=out), a, out=None) == 2).all()


@given(shape=SHAPES, dtype=DTYPES, key=st.integers(0, (1 << 128) - 1), start=st.integers(0, 1 << 40), rate=st.floats(0, 0.99))
def test_masks_are_the_same_bits(native, shape, dtype, key, start, rate):
    arguments = key, ((1 << 64) - 1, 7), start, shape, rate, dtype
    assert np.array_equal(native.dropout_mask(*arguments), get_numpy_backend().dropout_mask(*arguments))


def trained(kernels, layer, shape, n, dtype):
    """What a training pass gives."""
    nn.set_kernels(kernels)
    try:
        model = nn.Sequential(type(layer)(**layer.config()), input_shape=shape, dtype=dtype)
    finally:
        nn.set_kernels("auto")
    z = model.forward(drawn((n, *shape), dtype, 1), training=True).copy()
    return [z, model.backward(drawn(z.shape, dtype, 2)), model.grads]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
@given(channels=st.integers(1, 40), n=st.integers(1, 20), dtype=DTYPES)
def test_layers_agree_with_numpys(native, layer, channels, n, dtype):
    arguments = layer, (3, 2, channels), n, dtype
    for actual, expected in zip(trained("native", *arguments), trained("numpy", *arguments), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=50 * tolerance(dtype))


@given(rows=st.integers(1, 20), classes=st.integers(1, 70), dtype=DTYPES)
def test_cross_entropy(native, displaced, rows, classes, dtype):
    z, q = drawn((rows, classes), dtype), abs(drawn((rows, classes), dtype, 1))
    q[:, ::3] = 0
    labels = np.random.default_rng(2).integers(0, classes, rows)
    numpy = get_numpy_backend()
    results = native.cross_entropy(displaced(z), displaced(q), False), numpy.cross_entropy(z, q, False)
    shares = q / np.maximum(q.sum(axis=1, keepdims=True), 1)
    for actual, expected in (
        results,
        (native.cross_entropy(z, shares, True), numpy.cross_entropy(z, shares, True)),
        (native.cross_entropy_of_labels(z, labels.astype("int32")), numpy.cross_entropy_of_labels(z, labels)),
    ):
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=4 * tolerance(dtype), atol=40 * tolerance(dtype))


@given(shape=SHAPES, dtype=DTYPES, scale=st.sampled_from([1, 30]))
def test_binary_cross_entropy(native, displaced, shape, dtype, scale):
    z, t = np.asarray(scale, dtype) * drawn(shape, dtype), np.random.default_rng(1).random(shape).astype(dtype)
    results = native.binary_cross_entropy(displaced(z), displaced(t)), get_numpy_backend().binary_cross_entropy(z, t)
    for actual, expected in zip(*results, strict=True):
        agree(actual, expected, dtype)
    assert native.binary_cross_entropy(z, t.astype("float64"))[1].dtype == "float64"


@given(shape=SHAPES, dtype=DTYPES, scale=st.sampled_from([1, 30]), is_row=st.booleans(), v_0=st.sampled_from([1.0, 0.3]))
def test_weighted_binary_cross_entropy(native, displaced, shape, dtype, scale, is_row, v_0):
    z, t = np.asarray(scale, dtype) * drawn(shape, dtype), np.random.default_rng(1).random(shape).astype(dtype)
    v_1 = abs(drawn(shape[-1:], dtype, 2)) if is_row else np.asarray(2.5, dtype)
    results = native.weighted_binary_cross_entropy(displaced(z), displaced(t), v_0, v_1)
    for actual, expected in zip(results, get_numpy_backend().weighted_binary_cross_entropy(z, t, v_0, v_1), strict=True):
        agree(actual, expected, dtype)
    other = t.astype("float64")
    assert native.weighted_binary_cross_entropy(z, other, v_0, v_1)[1].dtype == "float64"


def test_binary_cross_entropy_of_large_logits(native):
    z, t = np.array([200.0, -200, 200, -200, 0, np.nan]), np.array([1.0, 0, 0, 1, 0.5, 0])
    losses, delta = native.binary_cross_entropy(z, t)
    np.testing.assert_allclose(losses, [0, 0, 200, 200, np.log(2), np.nan], atol=1e-80)
    np.testing.assert_allclose(delta, [0, 0, 1, -1, 0, np.nan], atol=1e-80)
    weighted = native.weighted_binary_cross_entropy(z, t, 1.0, np.asarray(1.0))
    np.testing.assert_allclose(weighted, [losses, delta], atol=1e-80)


@given(rows=st.integers(1, 5000), dtype=DTYPES)
def test_total(native, rows, dtype):
    a = drawn(rows, dtype)
    assert native.total(a) == pytest.approx(get_numpy_backend().total(a), rel=0, abs=float(tolerance(dtype)) * rows)


def test_weights_are_added_in_one_order(native):
    """Of float64: one after another. Of float32: as the values of a column."""
    rng, v = np.random.default_rng(0), [0.1, 0.7, 1.3]
    t, weight = rng.integers(0, 3, 1000), rng.random(1000).astype("float32")
    assert nn.CrossEntropy(class_weight=v).total(native, t, None) == sum(v[label] for label in t)
    assert nn.CrossEntropy(class_weight=v).total(native, t[:0], None) == 0
    assert nn.MSE().total(native, t, weight) == native.column_sums(weight[:, None])[0]
    positive = (t > 1).astype("float32")[:, None]
    weighed = weight[:, None] * (1 + 2 * positive)
    assert nn.BinaryCrossEntropy(class_weight=(1, 3)).total(native, positive, weight) == native.column_sums(weighed)[0]


def test_cross_entropy_of_what_is_not_finite(native):
    """A class of logit minus infinity and probability 0 costs nothing; NaN is seen; a label that is none gives NaN."""
    z, q = np.zeros((4, 21), "float32"), np.zeros((4, 21), "float32")
    z[:, 20], q[:, 3] = [-np.inf, np.nan, np.inf, 0], 1
    for losses, _ in (native.cross_entropy(z, q, True), native.cross_entropy_of_labels(z, np.full(4, 3))):
        np.testing.assert_allclose(losses[[0, 3]], np.log([20, 21]), rtol=1e-6)
        assert np.isnan(losses[1:3]).all()
    losses, _ = native.cross_entropy_of_labels(np.zeros((2, 5)), np.array([5, -1]))
    assert np.isnan(losses).all()


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropy(), nn.CrossEntropy(label_smoothing=0.1, class_weight=[1, 2, 3]), nn.BinaryCrossEntropy(),
        nn.BinaryCrossEntropy(pos_weight=[1, 2, 3]),
    ],
    ids=repr,
)  # fmt: skip
def test_gradients_of_losses(native, loss):
    """(J(z + h d) - J(z - h d)) / 2h is the sum of delta d."""
    nn.set_kernels("native")
    try:
        z, d = drawn((5, 3), "float64"), drawn((5, 3), "float64", 1)
        t = drawn((5, 3), "float64", 2) > 0 if isinstance(loss, nn.BinaryCrossEntropy) else np.array([0, 2, 1, 1, 0])
        slope = (loss(z + 1e-6 * d, t)[0] - loss(z - 1e-6 * d, t)[0]) / 2e-6
        assert slope == pytest.approx((loss(z, t)[1] * d).sum(), rel=1e-6)
    finally:
        nn.set_kernels("auto")


def test_infinite_inputs_of_activations(native):
    """As NumPy's: 0 or infinite, nowhere NaN except for NaN."""
    a = np.array([*NOTHING, 1e30, -1e30, 300, -300], "float32")
    for layer in [*ACTIVATIONS[:8], *ACTIVATIONS[9:11], nn.LeakyReLU(0.0)]:
        nn.set_kernels("native")
        try:
            model = nn.Sequential(type(layer)(**layer.config()), input_shape=a.shape)
        finally:
            nn.set_kernels("auto")
        assert np.array_equal(np.isnan(model.forward(a[None], training=True)[0]), np.isnan(a)), layer
        assert not np.isnan(model.backward(np.ones((1, *a.shape), "float32"))[0][~np.isnan(a)]).any(), layer


def test_the_same_bits_at_every_width(same_bits, native):
    def work():
        for dtype in ("float32", "float64"):
            for rows, columns in [(1, 1), (3, 7), (2, 16), (5, 37), (2, 200)]:
                a, b = drawn((rows, columns), dtype), abs(drawn((rows, columns), dtype, 1))
                for formula, numbers, is_delta in SWEEPS:
                    yield native.sweep(formula, *(a, b)[: 1 + is_delta], *numbers, out=None)
                yield from (native.sweep(prelu, a, b[0], out=None), native.sweep(prelu_delta, b, a, b[0], out=None))
                yield from (native.softmax(a), native.softmax_delta(a, b), native.drop(a, b, None), native.relu(a, None))
                yield from (*native.cross_entropy(a, b, False), *native.cross_entropy_of_labels(a, np.zeros(rows, int)))
                yield from (*native.binary_cross_entropy(a, b / b.max()),)
                yield from native.weighted_binary_cross_entropy(a, b / b.max(), 0.3, b[0])
                yield native.dropout_mask(5, (1, 2), 3, (rows, columns), 0.4, dtype)
                native.add_bias(a, b[0], True)
                yield from (a, native.relu_delta(b, a, None))

    assert same_bits(work, "activation", "pointwise", "loss")
