"""Against naive loops, on drawn shapes."""

import copy

import numpy as np
import pytest
import reference
from cases import CASES, convolution, large_pooling, pooling, three_by_three, windows
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nnlite as nn

pytestmark = pytest.mark.usefixtures("both_kernels")

seeds = st.integers(0, 1000)


def run(layers, shape, seed, levels=None):
    """Outputs, dx and gradients of a training pass on random numbers, few of them different where `levels` is given."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(*layers, input_shape=shape, dtype="float64")
    x = rng.standard_normal((2, *shape)) if levels is None else rng.integers(0, levels, (2, *shape)).astype(float)
    for view in model.named_params().values():
        view[...] = rng.standard_normal(view.shape)
    z = model.forward(x, training=True)
    delta = rng.standard_normal(z.shape)
    return model, x, delta, z, model.backward(delta)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@given(case=st.one_of(convolution(), convolution(depthwise=True), three_by_three()), seed=seeds)
def test_convolution(case, seed):
    model, x, delta, z, dx = run(*case, seed)
    layer, g = model[0], model.named_grads()
    b = layer.b if layer.bias else None
    expected = reference.conv(x, layer.W, b, delta, layer.stride, layer.padding, layer.dilation, layer.groups)
    for actual, wanted in zip((z, dx, g["0.W"], g.get("0.b")), expected, strict=True):
        if actual is not None:
            assert_close(actual, wanted)


def check_max_pool(layer, x, seed):
    """Outputs and dx, to the last bit: all numbers are whole."""
    model = nn.Sequential(layer, input_shape=x.shape[1:], dtype="float64")
    z = model.forward(x, training=True)
    delta = np.random.default_rng(seed).integers(-5, 6, z.shape).astype(float)
    stride = layer.size if layer.stride is None else layer.stride
    y, da = reference.max_pool(x, delta, layer.size, stride, layer.padding, layer.dilation, layer.ceil_mode)
    assert np.array_equal(z, y, equal_nan=True) and np.array_equal(model(x), y, equal_nan=True)
    assert np.array_equal(model.backward(delta), da)


any_pooling = st.one_of(pooling(nn.MaxPool2D), large_pooling())
LEVELS = [[0.0, 1.0], [-np.inf, 0.0], [-np.inf], [np.nan, 0.0, 1.0], [np.nan, np.inf, -np.inf], range(-9, 9)]


@settings(max_examples=60)
@given(case=any_pooling, seed=seeds, levels=st.sampled_from(LEVELS))
def test_max_pool(case, seed, levels):
    """Ties, and what is smaller or larger than every number, at borders as inside."""
    (layer,), shape = case
    check_max_pool(layer, np.random.default_rng(seed).choice(list(levels), (2, *shape)), seed)


@settings(max_examples=60)
@given(case=any_pooling, seed=seeds)
def test_max_pool_of_a_single_bad_pixel(case, seed):
    (layer,), shape = case
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 50, (2, *shape)).astype(float)
    x[tuple(draw.integers(0, x.shape))] = draw.choice([np.nan, -np.inf, np.inf])
    check_max_pool(layer, x, seed)


@given(case=any_pooling, seed=seeds, bad=st.sampled_from([np.inf, -np.inf, np.nan]))
def test_a_bad_delta_reaches_only_the_pixels_that_won(case, seed, bad):
    """0 times infinity is NaN: no delta is multiplied by zero."""
    (layer,), shape = case
    draw = np.random.default_rng(seed)
    model, x = nn.Sequential(layer, input_shape=shape, dtype="float64"), draw.standard_normal((2, *shape))
    delta = np.ones((2, *model.out_shape))
    delta[tuple(draw.integers(0, delta.shape))] = bad
    model.forward(x, training=True)
    assert (~np.isfinite(model.backward(delta))).sum() == 1


@pytest.mark.parametrize("size", [17, 24])
def test_max_pool_of_more_pixels_than_a_byte_counts(size):
    check_max_pool(nn.MaxPool2D(size, 3), np.random.default_rng(0).integers(0, 999, (2, 26, 25, 2)).astype(float), 0)


@given(case=large_pooling(), training=st.booleans())
def test_no_turn_for_each_pixel_of_a_large_window(case, training):
    (layer,), shape = case
    model, calls = nn.Sequential(layer, input_shape=shape), []
    (kh, kw), x = model[0].plan.window.kernel, np.zeros((2, *shape))

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(np, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.backend), "xp", Counting())
        z = model.forward(x, training=training)
        if training:
            model.backward(z)
    assert calls and (kh * kw < 50 or len(calls) < 5 * (kh + kw) + 20)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 2.0), ((1.0, -1.0), (0.5, 3.0)), (0, 4)])
@pytest.mark.parametrize("shape", [(2,), (5, 3, 2)])
def test_normalize(shape, mean, std):
    _, x, delta, z, dx = run([nn.Normalize(mean, std)], shape, 0)
    assert_close(z, (x - np.asarray(mean)) / std)
    assert_close(dx, delta / std)


@given(case=pooling(nn.AvgPool2D), seed=seeds)
def test_average_pool(case, seed):
    model, x, delta, z, dx = run(*case, seed)
    layer = model[0]
    stride = layer.size if layer.stride is None else layer.stride
    options = layer.padding, layer.dilation, layer.ceil_mode, layer.count_padding
    for actual, wanted in zip((z, dx), reference.average_pool(x, delta, layer.size, stride, *options), strict=True):
        assert_close(actual, wanted)


def test_a_window_of_nothing_but_padding_is_refused():
    for layer, shape in ((nn.MaxPool2D(2, padding=2), (5, 5, 1)), (nn.AvgPool2D(2, padding=1, dilation=2), (5, 1, 1))):
        with pytest.raises(nn.ShapeError, match=r"padding . leaves a window \(2, 2\) without a pixel of"):
            nn.Sequential(layer, input_shape=shape)


def test_counts_of_an_average():
    """As PyTorch's: padding counts on request, what rounding up adds never."""
    means = []
    for counts in (True, False):
        layer = nn.AvgPool2D(2, padding=(1, 0), ceil_mode=True, count_padding=counts)
        means.append(nn.Sequential(layer, input_shape=(3, 3, 1))(np.ones((1, 3, 3, 1)))[0, :, :, 0].tolist())
    assert means == [[[0.5, 0.5], [1, 1]], [[1, 1], [1, 1]]]


@given(case=st.one_of(CASES["Conv1D"], CASES["MaxPool1D"], CASES["AvgPool1D"]), seed=seeds)
def test_layers_of_sequences(case, seed):
    """Those of images of one row."""
    model, x, delta, z, dx = run(*case, seed)
    layer, g, rows = model[0], model.named_grads(), (x[:, None], delta[:, None])
    padding = layer.padding if layer.padding == "same" else ((0, 0), reference.both(layer.padding))
    if isinstance(layer, nn.Conv1D):
        W, b, steps = layer.W[:, None], layer.b if layer.bias else None, ((1, layer.stride), padding, (1, layer.dilation))
        y, da, dW, db = reference.conv(rows[0], W, b, rows[1], *steps, layer.groups)
        assert_close(g["0.W"], dW[:, 0])
        if layer.bias:
            assert_close(g["0.b"], db)
    else:
        size, stride = (1, layer.size), (1, layer.size if layer.stride is None else layer.stride)
        window = size, stride, padding, (1, layer.dilation), layer.ceil_mode
        if isinstance(layer, nn.MaxPool1D):
            y, da = reference.max_pool(*rows, *window)
        else:
            y, da = reference.average_pool(*rows, *window, layer.count_padding)
    assert_close(z, y[:, 0])
    assert_close(dx, da[:, 0])


@given(case=CASES["DepthwiseConv2D"], seed=seeds)
def test_depthwise_convolution(case, seed):
    model, x, delta, z, dx = run(*case, seed)
    layer, g = model[0], model.named_grads()
    assert layer.W.shape[0] == model.out_shape[2] == layer.multiplier * x.shape[3]
    b = layer.b if layer.bias else None
    expected = reference.conv(x, layer.W, b, delta, layer.stride, layer.padding, layer.dilation, x.shape[3])
    for actual, wanted in zip((z, dx, g["0.W"], g.get("0.b")), expected, strict=True):
        if actual is not None:
            assert_close(actual, wanted)


def test_spatial_dropout_drops_whole_channels():
    model = nn.Sequential(nn.SpatialDropout2D(0.25), input_shape=(3, 4, 200), dtype="float64")
    x = np.random.default_rng(0).standard_normal((20, 3, 4, 200))
    z = model.forward(x, training=True)
    kept = z[:, 0, 0] != 0
    assert_close(z, np.where(kept[:, None, None], x / 0.75, 0))
    assert_close(model.backward(np.ones_like(z)), np.broadcast_to(kept[:, None, None] / 0.75, z.shape))
    assert abs(kept.mean() - 0.75) < 0.03 and len(np.unique(kept, axis=0)) == 20 and np.array_equal(model(x), x)
    with pytest.raises(nn.ShapeError, match="expects images"):
        nn.Sequential(nn.SpatialDropout2D(0.5), input_shape=(4,))


@given(shape=st.sampled_from([(3,), (2, 3, 4)]), seed=seeds, shared=st.booleans())
def test_prelu(shape, seed, shared):
    model, x, delta, z, dx = run([nn.PReLU(shared=shared)], shape, seed)
    slopes = np.broadcast_to(model[0].slopes, shape[-1:])
    assert_close(z, np.where(x > 0, x, slopes * x))
    assert_close(dx, np.where(x > 0, delta, slopes * delta))
    of_channels = np.where(x > 0, 0, delta * x).reshape(-1, shape[-1]).sum(axis=0)
    assert_close(model.named_grads()["0.slopes"], of_channels.sum() if shared else of_channels)


@given(shape=st.sampled_from([(4,), (3, 4), (2, 3, 4)]), seed=seeds, groups=st.sampled_from([1, 2, 4]))
def test_group_norm(shape, seed, groups):
    model, x, _, z, _ = run([nn.GroupNorm(groups, eps=0.1)], shape, seed)
    assert_close(z, reference.group_norm(x, model[0].gamma, model[0].beta, 0.1, groups))


@given(value=st.floats(-(2.0**100), 2.0**100, width=32), dtype=st.sampled_from(["float32", "float64"]))
@example(1e6 / 3, "float32")
def test_group_norm_of_equal_values_is_beta(value, dtype):
    model = nn.Sequential(nn.GroupNorm(2), input_shape=(30, 7, 4), dtype=dtype)
    model[0].beta = [1.0, 2.0, 3.0, 4.0]
    z = model.forward(np.full((3, 30, 7, 4), value, dtype), training=True)
    assert np.array_equal(z, np.broadcast_to(model[0].beta, z.shape))


def test_groups_that_do_not_divide_the_channels():
    with pytest.raises(nn.ShapeError, match=r"groups=3 must divide the channels of \(5, 5, 4\)"):
        nn.Sequential(nn.GroupNorm(3), input_shape=(5, 5, 4))
    with pytest.raises(nn.ShapeError, match=r"expects sequences of shape \(length, channels\), got \(5, 5, 4\)"):
        nn.Sequential(nn.Conv1D(3, 3), input_shape=(5, 5, 4))


@given(case=CASES["Upsample2D"], seed=seeds)
def test_upsample(case, seed):
    model, x, delta, z, dx = run(*case, seed)
    for actual, wanted in zip((z, dx), reference.upsample(x, delta, model[0].factor, model[0].mode), strict=True):
        assert_close(actual, wanted)


def test_concat_is_its_branches_side_by_side():
    branches = [[nn.Conv2D(2, 3, padding=1), nn.BatchNorm()], nn.Tanh(), []]
    model, x, delta, z, dx = run([nn.Concat(*copy.deepcopy(branches))], (4, 3, 5), 0)
    dx_sum, first = delta[..., 7:].copy(), 0
    for k, branch in enumerate(branches[:2]):
        part = nn.Sequential(*(branch if isinstance(branch, list) else [branch]), input_shape=(4, 3, 5), dtype="float64")
        for name, view in part.named_params().items():
            view[...] = model.named_params()[f"0.{k}.{name}"]
        channels = slice(first, first + part.out_shape[2])
        assert_close(z[..., channels], part.forward(x, training=True))
        dx_sum += part.backward(delta[..., channels])
        for name, gradient in part.named_grads().items():
            assert_close(model.named_grads()[f"0.{k}.{name}"], gradient)
        first = channels.stop
    assert_close(z[..., first:], x)
    assert_close(dx, dx_sum)


def test_branches_that_do_not_fit_side_by_side():
    with pytest.raises(nn.ShapeError, match=r"layer 0 Concat: the branches give \(2, 2, 1\), \(4, 4, 1\), which differ"):
        nn.Sequential(nn.Concat(nn.MaxPool2D(2), []), input_shape=(4, 4, 1))


@given(shape=st.sampled_from([(3,), (2, 3, 4)]), seed=seeds)
def test_batch_norm(shape, seed):
    model, x, delta, z, dx = run([nn.BatchNorm()], shape, seed)
    g = model.named_grads()
    expected = reference.batch_norm(x, model[0].gamma, model[0].beta, delta, model[0].eps)
    for actual, wanted in zip((z, dx, g["0.gamma"], g["0.beta"]), expected, strict=True):
        assert_close(actual, wanted)


@given(
    value=st.floats(-(2.0**100), 2.0**100, width=32),
    channels=st.integers(1, 3000),
    dtype=st.sampled_from(["float32", "float64"]),
    offset=st.sampled_from([0.0, 1 / 3]),
)
@example(100.1, 100, "float32", 0.0)
@example(1e6 / 3, 768, "float32", 0.0)
@example(1e6 / 3, 100_003, "float64", 1 / 3)
def test_layer_norm_of_equal_values_is_beta(value, channels, dtype, offset):
    """To the last bit, whatever the mean of so many values is rounded to."""
    model = nn.Sequential(nn.LayerNorm(), input_shape=(2, channels), dtype=dtype)
    model[0].beta = np.random.default_rng(0).standard_normal(channels)
    z = model.forward(np.full((3, 2, channels), value + offset, dtype), training=True)
    assert np.array_equal(z, np.broadcast_to(model[0].beta, z.shape))
    assert np.isfinite(model.backward(z)).all()


@given(seed=seeds, mean=st.sampled_from([0.0, 1e3, 1e6]), channels=st.integers(2, 400))
def test_layer_norm_far_from_zero(seed, mean, channels):
    """float32 loses no digits where the mean is many times the deviations."""
    x = (np.random.default_rng(seed).integers(-8, 9, (3, channels)) + mean).astype("float32")
    x[:, 0] += 1  # not all equal
    narrow, wide = (nn.Sequential(nn.LayerNorm(), input_shape=(channels,), dtype=d)(x) for d in ("float32", "float64"))
    np.testing.assert_allclose(narrow, wide, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 100.1, 1e6 / 3, -1 / 3])
def test_batch_norm_of_equal_values_in_shards(dtype, value):
    model = nn.Sequential(nn.BatchNorm(), input_shape=(3,), dtype=dtype)
    parts = [model[0].statistics(np.full((n, 3), value, dtype)) for n in (7, 11, 3)]
    m, mean, var, _ = model[0].combine(parts)
    assert m == 21 and np.array_equal(mean.astype(dtype), np.full(3, value, dtype)) and not var.any()


@given(shape=st.sampled_from([(3,), (2, 3, 4)]), seed=seeds)
def test_layer_norm(shape, seed):
    model, x, _, z, _ = run([nn.LayerNorm(eps=0.1)], shape, seed)
    assert_close(z, reference.layer_norm(x, model[0].gamma, model[0].beta, 0.1))


def test_running_statistics_are_those_of_pytorch():
    """running <- momentum running + (1 - momentum) batch, with the unbiased variance."""
    model = nn.Sequential(nn.BatchNorm(momentum=0.8), input_shape=(3,), dtype="float64")
    x = np.random.default_rng(0).standard_normal((5, 3)) * 3 + 1
    model.forward(x, training=True)
    assert_close(model[0].running_mean, 0.2 * x.mean(axis=0))
    assert_close(model[0].running_var, 0.8 + 0.2 * x.var(axis=0, ddof=1))
    assert_close(model(x), (x - model[0].running_mean) / np.sqrt(model[0].running_var + 1e-5))


def test_batch_norm_of_one_value_a_channel():
    model = nn.Sequential(nn.BatchNorm(), input_shape=(3,), dtype="float64")
    model[0].beta = [1.0, 2.0, 3.0]
    z = model.forward(np.array([[5.0, -7.0, 1e4]]), training=True)
    dx = model.backward(np.ones((1, 3)))
    assert_close(z, [[1.0, 2.0, 3.0]])
    assert_close(dx, 0)
    assert_close(model.named_grads()["0.gamma"], 0)
    assert_close(model[0].running_var, 1)
    assert not np.allclose(model[0].running_mean, 0)


def test_batch_norm_of_constant_channels_is_beta():
    model = nn.Sequential(nn.BatchNorm(), input_shape=(4, 4, 2))
    x = np.broadcast_to(np.float32([1e4 + 0.1, 1 / 3]), (64, 4, 4, 2))
    np.testing.assert_allclose(model.forward(x, training=True), 0, atol=1e-2)


@given(case=st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 4)] * 2))
def test_same_padding_leaves_one_output_for_every_stride(case):
    size, other, kernel, stride = case
    layer = nn.Conv2D(1, kernel, stride=stride, padding="same")
    model = nn.Sequential(layer, input_shape=(size, other, 1))
    assert model.out_shape == (-(-size // stride), -(-other // stride), 1)


def test_same_padding_puts_the_surplus_at_bottom_and_right():
    model = nn.Sequential(nn.Conv2D(1, 2, padding="same", bias=False, init=nn.init.ones), input_shape=(2, 2, 1))
    x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    assert model(x)[0, :, :, 0].tolist() == [[10, 6], [7, 4]]


@given(windows())
def test_what_a_window_says_of_itself(window):
    met = np.zeros((1, *window.padded_size, 1))
    for tap in window.taps:
        met[tap] += 1
    assert met.max() <= window.overlap
    side_by_side = met.max() == 1 and window.stride == window.kernel and window.dilation == (1, 1)
    assert window.tiles_exactly == (side_by_side and met.min() == 1)
    assert window.is_blockwise == (side_by_side and window.padding == ((0, 0), (0, 0)))
    assert window.is_padded == (window.padding != ((0, 0), (0, 0)))


@given(windows())
def test_planes_of_a_window_are_its_padded_image(window):
    """Pixels sorted by their remainders by the stride: the same taps, the same image."""
    padded = np.arange(1, 1 + np.prod(window.padded_size)).reshape(window.padded_size)
    sh, sw = window.stride
    assert window.plane_size == padded[::sh, ::sw].shape
    planes = np.zeros((sh, sw, *window.plane_size), int)
    for i in range(sh):
        for j in range(sw):
            part = padded[i::sh, j::sw]
            planes[i, j, : part.shape[0], : part.shape[1]] = part
    for tap, plane_tap in zip(window.taps, window.plane_taps, strict=True):
        assert np.array_equal(padded[tap[1:]], planes[plane_tap])
    image = np.zeros(window.in_shape[:2], int)
    for place, pixels in window.plane_pixels:
        image[pixels] = planes[place]
    assert np.array_equal(image, padded[window.interior[1:]])
