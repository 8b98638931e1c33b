"""Normalisation in C against NumPy's, on any shape and at every vector width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import Memory
from nnlite.backend.cpu.numpy import get_numpy_backend
from nnlite.layers.base import Context, Shard

DTYPES = st.sampled_from(["float32", "float64"])
SHAPES = st.tuples(st.integers(0, 40), st.integers(1, 70))


def drawn(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tolerance(dtype):
    return 64 * np.finfo(dtype).eps


@given(shape=SHAPES, dtype=DTYPES, relu=st.booleans(), center=st.booleans(), place=st.sampled_from(["new", "in", "strided"]))
def test_maps_of_columns(native, displaced, shape, dtype, relu, center, place):
    a, (c, scale, shift) = drawn(shape, dtype), drawn((3, shape[1]), dtype, 1)
    y = (a - c if center else a) * scale + shift
    expected = [np.maximum(y, 0) if relu else y, a * scale, a + shift]

    for k, wanted in enumerate(expected):
        out = {"new": None, "in": a.copy(), "strided": np.empty(shape[::-1], dtype).T}[place]
        given_a = out if place == "in" else displaced(a)
        if k == 0:
            result = native.affine(given_a, c if center else None, displaced(scale), shift, out, relu)
        else:
            result = native.by_column(("multiply", "add")[k - 1], given_a, (scale, shift)[k - 1], out)
        assert out is None or result is out
        np.testing.assert_allclose(result, wanted, rtol=0, atol=tolerance(dtype))


@given(rows=st.integers(0, 700), channels=st.sampled_from([1, 2, 3, 17, 70, 341, 342, 1023, 1024, 1025, 2500]), dtype=DTYPES,
       has_mean=st.booleans(), place=st.sampled_from(["new", "strided"]))  # fmt: skip
def test_bytes_are_cast_and_standardized_in_one_sweep(native, displaced, rows, channels, dtype, has_mean, place):
    """The same bits as one after another."""
    a = np.random.default_rng(rows).integers(0, 256, (rows // max(1, channels // 16), channels), np.uint8)
    minus_mean, inv_std = 100 * drawn((2, channels), dtype)
    minus_mean = minus_mean if has_mean else None
    expected = (a.astype(dtype) + (minus_mean if has_mean else 0)) * inv_std
    for backend in (native, get_numpy_backend()) if a.size else (native,):
        out = np.empty(a.shape, dtype) if place == "new" else np.empty(a.shape[::-1], dtype).T
        assert backend.standardize(displaced(a), minus_mean, displaced(inv_std), out) is out
        assert np.array_equal(out, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_constants_of_other_channels_are_refused(native, channels):
    a, rows = np.zeros((5, 2), "uint8"), np.ones(3, "float32")
    with pytest.raises((ValueError, nn.ShapeError)):
        native.standardize(a, rows, rows, np.empty((5, 2), "float32"))


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_network_of_bytes(both_kernels, rewrite):
    """As of the same numbers; a batch that is cut, with dJ/dx; the bytes are not written."""
    bytes_ = np.random.default_rng(0).integers(0, 256, (300, 9, 8, 3), np.uint8)
    bytes_.flags.writeable = False
    results = []
    for x in (bytes_, bytes_.astype("float32"), bytes_.astype("int64")):
        first = nn.Normalize((120, 110, 100), (60, 70, 80)), nn.Conv2D(4, 3), nn.BatchNorm()
        model = nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Dense(3), input_shape=(9, 8, 3))
        model.rewrite = rewrite
        z = model.forward(x, training=True)
        dx = model.backward(drawn(z.shape, "float32"))
        loss = model.loss_and_grad(x, np.arange(300) % 3, nn.CrossEntropy())
        results.append([z, dx, loss, model.grads.copy(), model(x[::2])])
    for others in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], others, strict=True)) and abs(others[1]).max() > 0


@pytest.mark.parametrize(("dtype", "rewrite", "given"), [("uint8", True, "uint8"), ("uint8", False, "float32"),
                                                       ("int16", True, "float32"), ("float64", True, "float32")])  # fmt: skip
def test_only_bytes_are_given_as_they_are(both_kernels, monkeypatch, dtype, rewrite, given):
    seen, forward = set(), nn.Normalize.forward
    monkeypatch.setattr(nn.Normalize, "forward", lambda self, a, ctx: seen.add(a.dtype.name) or forward(self, a, ctx))
    model = nn.Sequential(nn.Normalize(3, 2), nn.Dense(3), input_shape=(12,))
    model.rewrite = rewrite
    x = np.arange(24).reshape(2, 12).astype(dtype)
    model(x), model.loss_and_grad(x, np.arange(2), nn.CrossEntropy()), model.input_gradient(x, np.ones((2, 3), "float32"))
    assert seen == {given}


class OfReals(nn.Normalize):
    """A layer of a user's, which expects the model's dtype."""

    def forward(self, a, ctx):
        assert a.dtype == "float32"
        return super().forward(a, ctx)


def test_others_still_get_the_models_dtype(both_kernels):
    x = np.arange(24, dtype=np.uint8).reshape(2, 12)
    for layers in ([OfReals(3, 2)], [nn.Residual(nn.Normalize(3, 2))], [nn.Flatten(), nn.Normalize(3, 2)], [nn.ReLU()]):
        model = nn.Sequential(*layers, input_shape=(12,))
        assert np.array_equal(model(x), model(x.astype("float32"))) and model(x).dtype == "float32"


def trained(kernels, layer, shape, n, dtype):
    """What a training pass gives, and inference afterwards."""
    nn.set_kernels(kernels)
    try:
        model = nn.Sequential(type(layer)(**layer.config()), nn.ReLU(), input_shape=shape, dtype=dtype)
    finally:
        nn.set_kernels("numpy")
    model.params[...] += 0.5 * drawn(model.params.shape, dtype, 1)
    x = drawn((n, *shape), dtype, 2) * 3 + 1
    z = model.forward(x, training=True).copy()
    dx = model.backward(drawn(z.shape, dtype, 3)).copy()
    after = model(x).copy()
    model.freeze("*")
    frozen = model.forward(x, training=True).copy()
    return [z, dx, model.grads, model.buffers, after, frozen, model.backward(drawn(z.shape, dtype, 3))]


class Kept(Memory):
    """Memory of a shard that goes backward."""

    needs_backward = True


SAMPLE_NORMS = [
    nn.LayerNorm(),
    nn.LayerNorm(scale=False, shift=False),
    nn.GroupNorm(1),
    nn.GroupNorm(2),
    nn.GroupNorm(2, scale=False),
]


@pytest.mark.parametrize("layer", SAMPLE_NORMS, ids=repr)
@given(
    size=st.sampled_from([(), (1, 1), (9,), (7, 5)]),
    width=st.integers(1, 80),
    n=st.integers(1, 9),
    dtype=DTYPES,
    offset=st.sampled_from([0, 1000]),
)
def test_norms_of_samples(native, displaced, layer, size, width, n, dtype, offset):
    """Against the formula, forward and backward, of any arrays."""
    shape, numpy = (n, *size, 2 * width), get_numpy_backend()
    a, delta = drawn(shape, dtype) + np.asarray(offset, dtype), drawn(shape, dtype, 1)
    results = []
    for backend in (native, numpy):
        own = type(layer)(**layer.config())
        own.backend, own.in_shape = backend, shape[1:]
        own.gamma, own.beta = drawn((2, 2 * width), dtype, 2)
        ctx = Context(backend, 0, Shard(0), dtype)
        ctx.shard.training, ctx.dgamma, ctx.dbeta = True, *np.zeros((2, 2 * width), dtype)
        y = own.forward(displaced(a), ctx)
        results.append([y, own.backward(displaced(delta), ctx), ctx.dgamma, ctx.dbeta])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=200 * tolerance(dtype) * max(1, abs(expected).max(initial=0)))


@pytest.mark.parametrize("value", [0.1, 1e30, -1e-42])
@pytest.mark.parametrize("shape", [(2, 4), (3, 7, 5, 4), (1, 9, 60)])
def test_equal_values_give_exactly_beta(native, value, shape):
    a = np.full(shape, value, "float32")
    for parts in ((a.size // shape[-1], 1, 1), (shape[0], a[0, ..., 0].size, 2)):
        y, _, inv_std = native.sample_norm(a, parts, 1, 0.3, 1e-5, Memory(native), None)
        assert (y == np.float32(0.3)).all() and (inv_std == 1 / np.sqrt(np.float32(1e-5))).all()


@given(n=st.integers(0, 70), dtype=DTYPES, gamma=st.sampled_from([1, -0.7]), eps=st.sampled_from([0, 1e-3]))
def test_one_channel_has_nothing_to_normalise(native, displaced, n, dtype, gamma, eps):
    """x is 0, or NaN where a is not finite or eps is 0; so is dJ/da."""
    a, memory = drawn((n, 1), dtype), Kept(native)
    a[::3] = np.inf
    is_none = ~np.isfinite(a) | (eps == 0)
    y, x, inv_std = native.sample_norm(displaced(a), (n, 1, 1), gamma, 0.3, eps, memory, None)
    da = native.sample_norm_delta(displaced(drawn((n, 1), dtype, 1)), x, inv_std, (n, 1, 1), gamma, None)
    for result, elsewhere in ((y, 0.3), (x, 0), (da, 0)):
        assert np.array_equal(result, np.where(is_none, np.nan, np.asarray(elsewhere, dtype)), equal_nan=True)


@pytest.mark.parametrize(("first", "error"), [(1000.0, 2e-5), (0.0, 2e-4)])
def test_a_long_sum_loses_no_digits(native, first, error):
    """The mean and the variance of 10^6 values about 1,000, whatever the first of them is."""
    a = (1000 + drawn((1, 1_000_001), "float64")).astype("float32")
    a[0, 0] = first
    exact = (a - a.mean(dtype="float64")) / a.std(dtype="float64")
    for shape, parts in ((a.shape, (1, 1, 1)), ((1, 1_000_001, 1), (1, 1_000_001, 1))):
        y, *_ = native.sample_norm(a.reshape(shape), parts, 1, 0, 0.0, Memory(native), None)
        np.testing.assert_allclose(y.ravel()[1:], exact.ravel()[1:], rtol=0, atol=error)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm(), nn.BatchNorm(scale=False, shift=False), nn.LayerNorm(), nn.GroupNorm(2)], ids=repr
)
@given(size=st.sampled_from([(), (3, 5)]), channels=st.integers(1, 20), n=st.integers(1, 40), dtype=DTYPES)
def test_layers_agree_with_numpys(native, layer, size, channels, n, dtype):
    arguments = layer, (*size, 2 * channels), n, dtype
    for actual, expected in zip(trained("native", *arguments), trained("numpy", *arguments), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=50 * tolerance(dtype) * max(1, abs(expected).max(initial=0)))


WINDOWS = {
    "tiles": {"kernel_size": 3, "padding": 1},
    "ragged tiles": {"kernel_size": 3, "padding": ((0, 2), (1, 0))},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "no border": {"kernel_size": 1},
    "dilation": {"kernel_size": (2, 3), "dilation": 2, "padding": 2},
    "depthwise": {"kernel_size": 3, "groups": -1},
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("frozen", ["", "2.*", "0.*"])
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    channels=st.integers(1, 20),
    filters=st.integers(1, 20),
    pool=st.booleans(),
    dtype=DTYPES,
)
def test_a_norm_in_the_convolution_behind_it_changes_no_bit(native, window, frozen, size, channels, filters, pool, dtype):
    """Forward, both gradients, what is frozen and inference, against the same layers one by one."""
    options = dict(WINDOWS[window])
    filters = channels if options.pop("groups", 1) < 0 else filters
    groups = channels if window == "depthwise" else 1
    behind = [nn.MaxPool2D(2)] if pool else []
    nn.set_kernels("native")
    try:
        layers = nn.BatchNorm(), nn.ReLU(), nn.Conv2D(filters, groups=groups, **options), *behind, nn.Flatten()
        model = nn.Sequential(*layers, input_shape=(*size, channels), dtype=dtype)
    finally:
        nn.set_kernels("numpy")
    model.params[...] += 0.5 * drawn(model.params.shape, dtype, 1)
    if frozen:
        model.freeze(frozen)
    x, start, results = drawn((5, *size, channels), dtype, 2) * 3 + 1, model.snapshot(), []
    for rewrite in (True, False):
        model.rewrite = rewrite
        model.restore(start)
        z = model.forward(x, training=True).copy()
        dx = model.backward(drawn(z.shape, dtype, 3)).copy()
        results.append([z, dx, model.grads.copy(), model.buffers.copy(), model(x)])
    for joined, one_by_one in zip(*results, strict=True):
        assert joined.tobytes() == one_by_one.tobytes() or (pool and np.allclose(joined, one_by_one, atol=1e-3))


def test_a_norm_that_others_read_as_well_is_stored(native):
    """By a second branch: the convolution may not have it alone."""
    nn.set_kernels("native")
    try:
        inner = nn.Residual(nn.Conv2D(3, 3, padding=1), shortcut=())
        model = nn.Sequential(nn.BatchNorm(), nn.ReLU(), inner, nn.Flatten(), input_shape=(6, 6, 3))
    finally:
        nn.set_kernels("numpy")
    x, results = drawn((4, 6, 6, 3), "float32"), []
    for rewrite in (True, False):
        model.rewrite = rewrite
        results.append(model.forward(x, training=True))
    assert results[0].tobytes() == results[1].tobytes()


def test_a_mean_far_from_zero_loses_no_digits(native):
    """1,000 +- 1, in float32, against float64."""
    x = (1000 + drawn((5000, 3), "float64")).astype("float32")
    nn.set_kernels("native")
    try:
        model = nn.Sequential(nn.BatchNorm(eps=0), input_shape=(3,))
    finally:
        nn.set_kernels("numpy")
    exact = x.astype("float64")
    z = model.forward(x, training=True)
    np.testing.assert_allclose(z, (exact - exact.mean(0)) / exact.std(0), atol=2e-4)


def test_what_is_not_finite_is_seen(native):
    a, ones = drawn((9, 20), "float32"), np.ones(20, "float32")
    a[4, 7] = np.nan
    for y in (native.affine(a, ones, ones, ones, None, True), native.by_column("add", a, ones, None)):
        assert np.array_equal(np.isnan(y), np.isnan(a))
    normalization = native.normalization(ones, ones, None, None, 9)
    assert np.isnan(normalization.delta_sums(ones + 0 * a, a)[1]).tolist() == np.isnan(a).any(0).tolist()


def test_the_same_bits_at_every_width(same_bits, native):
    def work():
        for dtype in ("float32", "float64"):
            for rows, columns in [(1, 1), (300, 3), (33, 16), (9, 70)]:
                a, delta = drawn((rows, columns), dtype), drawn((rows, columns), dtype, 1)
                mean, deviations = native.moments(a)
                m, _, _, inv_std = native.combine_moments([(rows, mean, deviations)], 1e-5)
                for rectified in (False, True):
                    by = native.normalization(mean, inv_std, None, mean, rows)._replace(rectified=rectified)
                    gradients = by.combine_deltas([by.delta_sums(delta, a)], m, None, None)
                    yield from (by.forward(a, None, True), *gradients, by.backward(delta, a, *gradients, None))
                yield from (native.by_column("add", a, mean, None), native.by_column("multiply", a, mean, None))
                bytes_ = np.arange(a.size).astype("uint8").reshape(a.shape)
                yield native.standardize(bytes_, mean, inv_std, np.empty_like(a))

                for parts in ((rows, 1, 1), (1, rows, 1), (3, rows // 3, columns)) if rows % 3 == 0 else ((1, rows, columns),):
                    memory = Memory(native, swept=True)
                    y, x, inv_std = native.sample_norm(a, parts, mean, 1, 1e-5, memory, None)
                    yield from (y, x, inv_std, native.sample_norm_delta(delta, x, inv_std, parts, mean, None))

    assert same_bits(work, "sums", "norm", "samplenorm")


class Wide(nn.Layer):
    """The identity, in float64: a custom layer that breaks its word."""

    keeps = None

    def forward(self, a, ctx):
        return a.astype("float64")

    def backward(self, delta, ctx):
        return delta.astype("float64")


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm, lambda: nn.MaxPool2D(2), lambda: nn.AvgPool2D(2), nn.LayerNorm, nn.ReLU, nn.Softmax]
)
def test_what_is_wider_than_the_model_is_never_read_as_it_is(native, layer):
    x, t = np.random.default_rng(0).standard_normal((4, 6, 6, 5)).astype("f"), np.arange(4) % 2
    grads = []
    for wide in (False, True):
        nn.set_kernels("native")
        before, after = ([Wide()], [Wide()]) if wide else ([], [])
        layers = nn.Conv2D(5, 1), *before, layer(), *after, nn.Flatten(), nn.Dense(2)
        model = nn.Sequential(*layers, input_shape=(6, 6, 5))
        model.loss_and_grad(x, t, nn.CrossEntropy())
        grads.append(model.grads.copy())
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-5)


def test_arrays_of_another_dtype_are_converted(native):
    for dtype in ("float32", "float64"):
        for other in ("float32", "float64", "int32"):
            assert native.given(np.ones(3, other), np.dtype(dtype)).dtype == dtype


def test_a_normalisation_refuses_arrays_that_do_not_fit(native):
    norm = native.normalization(*(np.ones(3, "f") for _ in range(4)), 8)
    a = np.ones((8, 3), "f")
    for delta, inputs in ((a, a[:7]), (a[:, :2], a), (np.ones((8, 4), "f"), np.ones((8, 4), "f"))):
        with pytest.raises(nn.ShapeError):
            norm.delta_sums(delta, inputs)
    with pytest.raises(nn.ShapeError):
        norm.forward(np.ones((8, 4), "f"), None)
