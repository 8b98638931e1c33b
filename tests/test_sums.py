"""Sums over many terms: in float32 the relative error is below 2e-6 at 10^6 terms, wherever a sum or a mean is taken."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import get_backend
from nnlite.backend.base import Backend
from nnlite.engine import cut

BOUND = 2e-6
plain = Backend()
plain.xp = np

pytestmark = pytest.mark.usefixtures("both_kernels")


@pytest.fixture
def backend(both_kernels):
    return get_backend("cpu")


many = st.one_of(st.integers(1, 400), st.sampled_from([4097, 65_536, 10**6]))
few = st.integers(1, 4)
sizes = st.one_of(st.tuples(many, few), st.tuples(st.integers(1, 400), st.integers(5, 400)))


@st.composite
def positive(draw, *shape, kinds=("equal", "random", "one large")):
    """Terms of one sign, so that nothing cancels: equal ones, random ones, and equal ones after a large one."""
    rng, kind = np.random.default_rng(draw(st.integers(0, 100))), draw(st.sampled_from(kinds))
    values = np.empty(shape, "float32")
    values[...] = rng.uniform(0.5, 1, shape if kind == "random" else shape[-1:])
    if kind == "one large":
        values[rng.integers(min(4, shape[0]))] *= draw(st.sampled_from([10, 100, 1000]))
    return values


def exact(a):
    return a.astype("float64")


def assert_close(actual, expected, bound=BOUND):
    np.testing.assert_array_less(abs(np.asarray(actual, "float64") - expected), bound * abs(expected))


@given(sizes, st.data())
def test_sums_of_columns_and_of_their_products(backend, size, data):
    a, b = (data.draw(positive(*size)) for _ in range(2))
    for some in (backend, plain):
        assert_close(some.column_sums(a), exact(a).sum(axis=0))
        assert_close(some.column_products(a, b), (exact(a) * exact(b)).sum(axis=0))


def test_rounding_errors_of_many_terms_cancel(backend):
    a, b = (np.random.default_rng(i).uniform(0.5, 1, (200_000, 3)).astype("float32") for i in range(2))
    assert_close(backend.column_sums(a), exact(a).sum(axis=0), 1e-8)
    assert_close(backend.column_products(a, b), (exact(a) * exact(b)).sum(axis=0), 1e-8)


@given(st.integers(1, 300), st.integers(1, 300), few, st.data())
def test_sums_over_pixels(backend, height, width, channels, data):
    a, b = (data.draw(positive(height, width + 1, channels)) for _ in range(2))
    a, b = a[:, 1:], b[:, 1:]  # not in one piece
    assert_close(backend.column_products(a, b), (exact(a) * exact(b)).sum(axis=(0, 1)))
    for images in (np.stack([a, b]), backend.empty_batch((2, *a.shape), "float32")):
        images[...] = a, b
        assert_close(backend.pixel_sums(images), exact(images).sum(axis=(1, 2)))


@given(many, few, few, st.data())
def test_products_over_many_rows(backend, rows, m, n, data):
    a, b = (data.draw(positive(rows, columns, kinds=("equal", "random"))) for columns in (m, n))
    expected = exact(a).T @ exact(b)
    assert_close(backend.matmul_rows(a, b), expected)
    assert_close(backend.product_of_rows(a, b, np.empty((m, n), "float32")), expected)
    assert_close(backend.matmul_rows(np.stack([a, a]), np.stack([b, b])), np.stack([expected] * 2))


@pytest.mark.parametrize(("rows", "columns"), [(20_000, 150), (10_007, 128)])
def test_products_of_wide_matrices(backend, rows, columns):
    a, b = (np.random.default_rng(i).uniform(0.5, 1, (rows, columns)).astype("float32") for i in range(2))
    assert_close(backend.matmul_rows(a, b), exact(a).T @ exact(b))


@given(many, st.data())
def test_norms(backend, size, data):
    v = data.draw(positive(size, 1))[:, 0]
    assert_close(backend.norm(v), np.sqrt((exact(v) ** 2).sum()))


@pytest.mark.parametrize("size", [3, 5_000, 300_000])
@pytest.mark.parametrize(("dtype", "large"), [("float32", 1e37), ("float64", 1e305)])
def test_norms_of_values_whose_squares_overflow(backend, size, dtype, large):
    v = np.full(size, large, dtype)
    np.testing.assert_allclose(backend.norm(v), large * np.sqrt(size), rtol=1e-6)
    for bad in (np.inf, np.nan):
        v[size // 2] = bad
        assert not np.isfinite(backend.norm(v))


LAYERS = {
    "Dense": (lambda: nn.Dense(2), (3,), 300_000, "z dx W b"),
    "GlobalAvgPool2D": (lambda: nn.GlobalAvgPool2D(), (700, 700, 2), 1, "z dx"),
    "AvgPool2D": (lambda: nn.AvgPool2D(200), (400, 400, 2), 1, "z dx"),
    "AvgPool2D, overlapping": (lambda: nn.AvgPool2D(40, 1), (70, 70, 2), 1, "z dx"),
    "Conv2D": (lambda: nn.Conv2D(2, 3, stride=2), (301, 301, 3), 8, "z dx W b"),
    "Conv2D, many values": (lambda: nn.Conv2D(64, 5, stride=4), (101, 101, 16), 4, "b"),
    "Conv2D 1x1": (lambda: nn.Conv2D(2, 1), (300, 300, 3), 2, "z dx W b"),
    "Conv2D depthwise": (lambda: nn.Conv2D(3, 3, groups=3), (300, 300, 3), 2, "z dx W b"),
    "Conv2D depthwise, small": (lambda: nn.Conv2D(3, 3, groups=3, padding=1), (9, 9, 3), 2000, "z dx W b"),
    "Conv2D, groups": (lambda: nn.Conv2D(4, 3, stride=2, groups=2), (201, 201, 4), 4, "z dx W b"),
    "LayerNorm": (lambda: nn.LayerNorm(), (300, 300, 4), 2, "z gamma beta"),
    "LayerNorm, many channels": (lambda: nn.LayerNorm(), (200_000,), 2, "z gamma beta"),
    "BatchNorm": (lambda: nn.BatchNorm(), (2,), 300_000, "beta"),
    "Softmax": (lambda: nn.Softmax(), (500_000,), 2, "z"),
}


def train(make, shape, x, delta, dtype):
    """Outputs, dx and gradients by name, with weights that are positive."""
    model = nn.Sequential(make(), input_shape=shape, dtype=dtype)
    model.params[...] = abs(model.params) + 0.5
    z = model.forward(x, training=True)
    dx = model.backward(np.broadcast_to(delta, z.shape).astype("float32"))
    return {"z": z, "dx": dx} | {name.removeprefix("0."): g for name, g in model.named_grads().items()}


@pytest.mark.parametrize("spread", [0.0, 0.5], ids=["equal", "random"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, spread):
    """What does not cancel, in float32 against float64, relative to the largest."""
    make, shape, n, keys = LAYERS[name]
    rng = np.random.default_rng(1)
    x = rng.uniform(0.1, 0.1 + spread, (n, *shape)) + (np.arange(shape[-1]) if "Norm" in name else 0)
    delta = rng.uniform(0.1, 0.1 + spread, shape[-1] if "Norm" in name else 1)
    single, double = (train(make, shape, x.astype("float32"), delta, dtype) for dtype in ("float32", "float64"))
    for key in keys.split():
        assert abs(single[key] - double[key]).max() < BOUND * abs(double[key]).max(), key


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_bias_of_a_convolution_with_and_without_pooling(algorithm):
    nn.set_conv_algorithm(algorithm)
    try:
        for pool in ([], [nn.MaxPool2D(2)]):
            model = nn.Sequential(nn.Conv2D(64, 3, padding=1), *pool, input_shape=(64, 64, 32))
            z = model.forward(np.ones((16, 64, 64, 32), "float32"), training=True)
            model.backward(np.full(z.shape, 0.1, "float32"))
            assert_close(model.named_grads()["0.b"], z[..., 0].size * float(np.float32(0.1)))
    finally:
        nn.set_conv_algorithm("auto")


LOSSES = [nn.MSE(), nn.MAE(), nn.Huber(), nn.BinaryCrossEntropy(), nn.CrossEntropy(), nn.CrossEntropy(label_smoothing=0.1)]


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(500_000, 2), (2, 500_000)], ids=str)
@pytest.mark.parametrize("criterion", LOSSES, ids=repr)
def test_losses(criterion, shape, order):
    rng = np.random.default_rng(0)
    z = np.array(rng.uniform(0.5, 1, shape), "float32", order=order)
    t = rng.uniform(0, 0.5, shape).astype("float32")
    if isinstance(criterion, nn.CrossEntropy):
        t = rng.integers(0, shape[1], shape[0])
    weight = np.full(shape[0], 0.1, "float32")
    loss, delta = criterion(z, t, weight)
    expected, expected_delta = criterion(exact(z), t if t.dtype.kind == "i" else exact(t), exact(weight))
    assert_close(loss, expected)
    assert abs(delta - expected_delta).max() < BOUND * abs(expected_delta).max()


def test_metrics_count_every_sample():
    z, t = np.tile(np.array([[0.0, 1.0]], "float32"), (10**6, 1)), np.arange(10**6) % 2
    metric = nn.Accuracy()
    metric.update(z, t, np.full(10**6, 0.1, "float32"))
    assert metric.result() == 0.5 and metric.counted_weight == pytest.approx(10**6 * float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_many_shards(threads, monkeypatch):
    for name, value in (("BUDGET", 1), ("WORTH_CUTTING", 0), ("FLOPS_PER_SUMMED_VALUE", 0)):
        monkeypatch.setattr(cut, name, value)
    nn.set_num_threads(threads)
    model = nn.Sequential(nn.Dense(2), input_shape=(64,))
    x = np.full((6000, 64), 0.1, "float32")
    assert len(model.plan.training[0].cut(len(x), 4)) > 1000
    z = model.forward(x, training=True)
    model.backward(np.full(z.shape, 0.7, "float32"))
    grads = model.named_grads()
    assert_close(grads["0.b"], len(x) * float(np.float32(0.7)))
    assert_close(grads["0.W"], len(x) * float(np.float32(0.7)) * float(np.float32(0.1)))


def test_clipping_to_the_norm_of_a_million_gradients():
    model = nn.Sequential(nn.Dense(1000), input_shape=(1000,))
    model.params[...] = 0
    model.grads[...] = 0.1
    nn.SGD(1.0, clip_norm=1.0).step(model)
    assert_close(np.sqrt((exact(model.params) ** 2).sum()), 1.0)


@pytest.mark.parametrize("decay", [0.999, None])
def test_averages_of_weights_over_many_steps(decay):
    """They go on moving though each step changes them by less than a digit of float32."""
    model = nn.Sequential(nn.Dense(1), input_shape=(50,))
    trainer, average, rng = types.SimpleNamespace(model=model, steps=1), nn.WeightAverage(decay), np.random.default_rng(0)
    expected = 0.0
    for count in range(1, 20_001):
        model.params[...] = 1 + 1e-3 * rng.standard_normal(51) if count < 5000 or decay is None else 1
        expected += max(1 / count, 0 if decay is None else 1 - decay) * (exact(model.params) - expected)
        average.on_step_end(trainer)
    with average.applied(model):
        assert_close(model.params, expected, 2e-7)


ratios = st.one_of(st.floats(0, 40), st.sampled_from([1e2, 1e3, 1e4]))


@st.composite
def channels(draw):
    """(rows, 5 channels) whose mean is up to 10^4 standard deviations from zero, in various units."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rows = draw(st.sampled_from([6, 33, 200, 1500, 30_000]))
    noise = draw(st.sampled_from([rng.standard_normal((rows, 5)), rng.uniform(-1.7, 1.7, (rows, 5))]))
    return ((draw(ratios) + noise) * [1, -1, 2.3, 1e-3, 1e4]).astype("float32")


@given(channels())
def test_variance_of_a_batch(x):
    """Of any mean; with momentum 0 the running statistics are the batch's."""
    model = nn.Sequential(nn.BatchNorm(momentum=0.0), input_shape=(5,))
    model.forward(x, training=True)
    assert_close(model[0].running_var, exact(x).var(axis=0, ddof=1), 1e-6)
    assert (abs(model[0].running_mean - exact(x).mean(axis=0)) < 2e-7 * abs(exact(x)).mean(axis=0)).all()


@given(channels())
def test_batch_norm_of_any_mean(x):
    """Outputs and deltas against float64: no digits are lost beyond those that the mean itself, a float32, has not."""
    ratio = (abs(exact(x).mean(axis=0)) / exact(x).std(axis=0)).max()
    delta = np.random.default_rng(1).standard_normal(x.shape).astype("float32")
    results = []
    for dtype in ("float32", "float64"):
        model = nn.Sequential(nn.BatchNorm(momentum=0.0, eps=0.0), input_shape=(5,), dtype=dtype)
        y = model.forward(x, training=True)
        results.append((y, model.backward(delta) * exact(x).std(axis=0), *model.named_grads().values()))
    (y, da, dgamma, dbeta), expected = results
    for actual, wanted, scale in zip((y, da, dgamma, dbeta), expected, (1, 1, len(x), len(x)), strict=True):
        assert abs(actual - wanted).max() < scale * (3e-6 + 7e-8 * ratio)


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([1, 2, 7, 129, 1500, 5000]), st.booleans())
def test_a_constant_channel_is_beta_exactly(value, rows, other):
    x = np.full((rows, 2), value, "float32")
    x[:, 1] = np.random.default_rng(0).standard_normal(rows) + 100 * other
    model = nn.Sequential(nn.BatchNorm(momentum=0.0), input_shape=(2,))
    y = model.forward(x, training=True)
    assert not y[:, 0].any() and (rows == 1 or model[0].running_var[0] == 0)


def test_two_values_a_channel_have_a_variance():
    model = nn.Sequential(nn.BatchNorm(momentum=0.0), input_shape=(1,), dtype="float64")
    model.forward([[1.0], [3.0]], training=True)
    assert model.buffers.tolist() == [2.0, 2.0]


def test_a_mean_far_from_zero_in_units_of_the_deviation():
    """1 +- 0.001: 1,000 deviations, though the mean is small."""
    x = (1 + 1e-3 * np.random.default_rng(0).standard_normal((500, 4))).astype("float32")
    model = nn.Sequential(nn.BatchNorm(eps=0), input_shape=(4,))
    y = model.forward(x, training=True)
    exact = (x - x.astype("float64").mean(axis=0)) / x.astype("float64").std(axis=0)
    np.testing.assert_allclose(y, exact, atol=2e-4)


@pytest.mark.parametrize("rows", [2000, 2001, 1991])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_sums_over_rows_in_halves(backend, monkeypatch, rows, stack):
    """Where all pieces together would take too much memory."""
    from nnlite.backend.cpu import products

    monkeypatch.setattr(products, "MOST", 1)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((*stack, rows, 5)), rng.standard_normal((*stack, rows, 3))
    ours = get_backend("cpu").matmul_rows(a, b)
    np.testing.assert_allclose(ours, a.swapaxes(-2, -1) @ b, rtol=1e-10)
