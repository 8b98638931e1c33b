"""Every algorithm for convolutions computes the same thing, within the error that it states."""

import copy

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import Memory, Window
from nnlite.backend.conv import ConvPlan, DepthwisePlan, GroupedPlan, PointwisePlan
from nnlite.backend.cpu import winograd
from nnlite.backend.cpu.winograd import WinogradPlan

pytestmark = pytest.mark.usefixtures("numpy_kernels")

BOUND = {None: 1e-6, 2: 1e-6, 3: 5e-6, 4: 2e-5}  # of the largest value, in float32; as `set_conv_algorithm` states
tiles = pytest.mark.parametrize("m", [None, 2, 3, 4])


@pytest.fixture(autouse=True)
def _back_to_auto():
    yield
    nn.set_conv_algorithm("auto")


def make(monkeypatch, m, shape, filters, padding, dtype, bias=True):
    monkeypatch.setattr(winograd.conv_algorithm, "tile", lambda *arguments: m)
    model = nn.Sequential(nn.Conv2D(filters, 3, padding=padding, bias=bias), input_shape=shape, dtype=dtype, seed=1)
    monkeypatch.undo()
    assert type(model[0].plan) is (ConvPlan if m is None else WinogradPlan)
    return model


def run(model, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, *model.in_shape)).astype(model.dtype)
    if model[0].bias:
        model[0].b = rng.standard_normal(model[0].filters)
    z = model.forward(x, training=True)
    delta = rng.standard_normal(z.shape).astype(model.dtype)
    dx = model.backward(delta)
    return x, delta, [z, dx, *(g.copy() for g in model.named_grads().values())]


@tiles
@given(data=st.data())
def test_against_naive_loops(m, data):
    shape = (*(data.draw(st.integers(3, 10)) for _ in range(2)), data.draw(st.integers(1, 4)))
    padding = data.draw(st.sampled_from([0, 1, "same", (0, 1), (2, 1)]))
    with pytest.MonkeyPatch.context() as patch:
        model = make(patch, m, shape, data.draw(st.integers(1, 4)), padding, "float64", bias=data.draw(st.booleans()))
    x, delta, results = run(model)
    layer = model[0]
    if m is not None:
        for axis, size in zip((layer.plan.rows, layer.plan.columns), layer.plan.window.out_size, strict=True):
            assert axis.count == -(-size // m)
    z, dx, dW, db = reference.conv(x, layer.W, layer.b if layer.bias else None, delta, 1, padding, 1, 1)
    for actual, wanted in zip(results, (z, dx, dW, db), strict=False):
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-10)
    nn.gradcheck(model, x)


@tiles
@pytest.mark.parametrize(("shape", "filters", "padding"), [((13, 13, 32), 64, 0), ((32, 32, 64), 64, 1), ((8, 8, 256), 256, 1)])
def test_the_error_in_float32_is_bounded(monkeypatch, m, shape, filters, padding):
    single = make(monkeypatch, m, shape, filters, padding, "float32")
    double = make(monkeypatch, None, shape, filters, padding, "float64")
    double.params = single.params
    for actual, exact in zip(run(single)[2], run(double)[2], strict=True):
        assert abs(actual - exact).max() < BOUND[m] * abs(exact).max()


def planes(a):
    return np.ascontiguousarray(a.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)


def part_of_a_pixel(a):
    return np.concatenate([a, a], axis=-1)[..., : a.shape[-1]]


def backwards(a):
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


class Scattered(nn.Layer):
    """The identity; what it returns does not lie in one piece."""

    keeps = None

    def __init__(self, order):
        self.order = order

    def forward(self, a, ctx):
        return self.order(a)

    def backward(self, delta, ctx):
        return self.order(delta)


@pytest.mark.parametrize("order", [planes, part_of_a_pixel, backwards])
@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd"])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {}),
        (16, {}),
        (16, {"padding": 1}),
        (4, {"stride": 2}),
        (4, {"dilation": 2}),
        (4, {"groups": 2}),
        (16, {"groups": 16}),
        (16, {"kernel_size": 1}),
    ],
)
def test_in_whatever_order_values_lie(channels, options, algorithm, order):
    nn.set_conv_algorithm(algorithm)
    shape, options = (12, 12, channels), {"kernel_size": 3} | options
    plain = nn.Sequential(nn.Conv2D(16, **options), input_shape=shape)
    scattered = nn.Sequential(Scattered(order), nn.Conv2D(16, **options), Scattered(order), input_shape=shape)
    rng = np.random.default_rng(0)
    x, delta = rng.standard_normal((3, *shape)), rng.standard_normal((3, *plain.out_shape))
    for model in (plain, scattered):
        model.z = model.forward(x, training=True)
        model.dx = model.backward(order(delta) if model is scattered else delta)
    for name in ("z", "dx", "grads"):
        np.testing.assert_allclose(getattr(scattered, name), getattr(plain, name), rtol=1e-4, atol=1e-4)


pooled = pytest.mark.parametrize(("m", "size"), [(None, 2), (None, (2, 3)), (2, 2), (4, 2), (3, 3), (4, 4)])


@pooled
@given(data=st.data())
def test_pooling_in_the_convolution_changes_nothing(m, size, data):
    """The plan joins convolution, ReLU and max-pooling; without rewriting they are three layers."""
    draw, (ph, pw) = data.draw, size if isinstance(size, tuple) else (size, size)
    shape = (draw(st.integers(ph + 2, 12)), draw(st.integers(pw + 2, 12)), draw(st.integers(1, 4)))
    options = {"padding": draw(st.sampled_from([0, 1, "same"])), "bias": draw(st.booleans())}
    if m is None:
        options["kernel_size"] = draw(st.integers(1, 3))
        options["stride"] = draw(st.integers(1, 1 if min(shape) < 2 * max(ph, pw) + 2 else 2))
    conv = nn.Conv2D(shape[2] * draw(st.integers(1, 3)), **{"kernel_size": 3} | options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd.conv_algorithm, "tile", lambda *arguments: m)
        model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2D(size), input_shape=shape, dtype="float64", seed=1)
        assert len(model.plan.training[0].steps) == len(model.plan.inference.steps) == 2
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, *shape))
        if m in (None, 2):  # exact for whole numbers, of which many tie
            x = rng.integers(-3, 4, (3, *shape)).astype("float64")
            model.params = rng.integers(-2, 3, model.params.shape)
        delta = rng.standard_normal((3, *model.out_shape))
        z, outputs = model.forward(x, training=True), model(x)
        joined = [z, outputs, model.backward(delta), model.grads.copy()]
        model.rewrite = False
        assert len(model.plan.training[0].steps) == 3
        z, outputs = model.forward(x, training=True), model(x)
        apart = [z, outputs, model.backward(delta), model.grads.copy()]
    for a, b in zip(joined, apart, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_pooled_convolution_has_the_right_gradient():
    model = nn.Sequential(
        nn.Conv2D(6, 3),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(8, 3, padding=1),
        nn.MaxPool2D(2),
        input_shape=(13, 11, 3),
        dtype="float64",
    )
    assert len(model.plan.training[0].steps) == 3
    nn.gradcheck(model, np.random.default_rng(0).standard_normal((2, 13, 11, 3)))


def test_overlapping_and_padded_pooling_stay_layers():
    for pool in (nn.MaxPool2D(3, stride=2), nn.MaxPool2D(2, padding=1), nn.AvgPool2D(2)):
        model = nn.Sequential(nn.Conv2D(4, 3), pool, input_shape=(8, 8, 2))
        assert len(model.plan.training[0].steps) == 2


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "blocks"), [(96, 48, 3, 3), (8, 16, 4, 1), (128, 128, 16, 2), (6, 12, 3, 1)]
)
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2, "bias": False}, {"dilation": 2, "kernel_size": 2}])
def test_groups_in_blocks(channels, filters, groups, blocks, options):
    """Against the plan for every shape, one product for each group."""
    conv = nn.Conv2D(filters, **{"kernel_size": 3, "groups": groups} | options)
    model = nn.Sequential(conv, input_shape=(7, 6, channels), dtype="float64")
    assert type(conv.plan) is GroupedPlan and conv.plan.blocks == blocks
    if conv.bias:
        conv.b = np.random.default_rng(1).standard_normal(filters)
    _, _, fast = run(model)
    conv.plan = ConvPlan(conv.backend, conv.plan.window, filters, groups, conv.bias)
    model.rewrite = True  # nothing prepared before is used again
    if conv.bias:
        conv.b = np.random.default_rng(1).standard_normal(filters)
    _, _, plain = run(model)
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pool", [(), (nn.MaxPool2D(2),)])
def test_nothing_of_an_earlier_pass_is_used_again(pool):
    """The delta that one gradient keeps for the other belongs to its own pass, also where only one of them is wanted."""
    model = nn.Sequential(nn.Conv2D(16, 3), *pool, input_shape=(14, 14, 16), dtype="float64")
    rng, criterion = np.random.default_rng(0), nn.MSE()
    x, delta = rng.standard_normal((4, 14, 14, 16)), rng.standard_normal((4, *model.out_shape))
    model.forward(x, training=True)
    wanted = model.backward(delta)
    model.loss_and_grad(x, delta, criterion)  # no dJ/dx
    model.freeze("0.*")
    model.forward(x, training=True)
    assert np.array_equal(model.backward(delta), wanted)


def test_plans_by_shape():
    def plan(*arguments, channels=16, size=16, **options):
        model = nn.Sequential(nn.Conv2D(*arguments, **options), input_shape=(size, size, channels))
        return model[0].plan

    assert type(plan(32, 1)) is PointwisePlan
    assert type(plan(32, 1, stride=2)) is ConvPlan
    assert type(plan(16, 3, groups=16)) is DepthwisePlan
    assert type(plan(32, 3, groups=16)) is GroupedPlan
    assert type(plan(32, 5)) is ConvPlan
    assert type(plan(32, 3, stride=2)) is ConvPlan
    assert type(plan(32, 3, dilation=2)) is ConvPlan
    assert type(plan(32, 3, channels=3)) is ConvPlan
    assert type(plan(64, 3, channels=64, padding=1)) is type(plan(64, 3, channels=64, padding=2)) is WinogradPlan
    assert type(plan(64, 3, channels=64, padding=3)) is ConvPlan  # a tile might lie outside the image


@pytest.mark.parametrize(
    ("shape", "filters", "pool", "tile"),
    [
        ((32, 32, 3), 32, 1, None),
        ((13, 13, 32), 64, 1, 4),
        ((7, 7, 128), 128, 1, 4),
        ((6, 6, 4), 16, 4, 4),
        ((30, 2, 12), 64, (1, 2), None),
        ((30, 2, 12), 64, (2, 1), None),
        ((30, 13, 4), 32, 3, 3),
        # Near the borders between the tiles: another cost of a product, a transform or a moved value chooses another.
        ((18, 7, 2), 4, 2, 2),
        ((8, 5, 3), 16, 3, 3),
        ((27, 23, 1), 2, 2, 4),
        ((21, 30, 4), 64, 3, None),
        ((14, 14, 6), 64, 1, 2),
        ((10, 18, 3), 4, 1, 3),
        ((14, 25, 6), 2, 1, 4),
        ((14, 22, 2), 4, 1, 2),
        ((18, 24, 6), 2, 1, 3),
        ((20, 7, 3), 8, 2, 2),
        ((14, 29, 32), 8, 1, 3),
    ],
)
def test_the_rule(shape, filters, pool, tile):
    window = Window.of(shape, 3, 1, 1)
    pooling = Window.of((*window.out_size, filters), pool, pool, 0)
    assert winograd.best_tile(window.before(pooling), filters, pooling.kernel) == tile


@pytest.mark.parametrize("size", [(1, 2), (2, 1)])
def test_a_tile_is_not_cut_by_pooling(size):
    nn.set_conv_algorithm("winograd")
    model = nn.Sequential(nn.Conv2D(4, 3), nn.MaxPool2D(size), input_shape=(9, 8, 3), dtype="float64", seed=1)
    assert len(model.plan.training[0].steps) == 1
    x = np.random.default_rng(0).standard_normal((2, 9, 8, 3))
    joined = model(x)
    model.rewrite = False
    np.testing.assert_allclose(joined, model(x), rtol=1e-9)


def sizes(arrays):
    """Values in a plan's filters, as prepared: an array, or several."""
    return 0 if arrays is None else arrays.size if hasattr(arrays, "size") else sum(sizes(a) for a in arrays)


@pytest.mark.parametrize(
    ("layers", "shape", "algorithm"),
    [
        ([nn.Conv2D(5, 2)], (6, 7, 3), "direct"),
        ([nn.Conv2D(4, 3), nn.MaxPool2D(2)], (8, 8, 1), "direct"),
        ([nn.Conv2D(4, 3), nn.MaxPool2D((1, 2))], (8, 8, 1), "direct"),
        ([nn.Conv2D(16, 3)], (9, 6, 4), "winograd"),
        ([nn.Conv2D(4, 3)], (9, 15, 16), "winograd"),
        ([nn.Conv2D(6, 1)], (5, 5, 3), "auto"),
        ([nn.Conv2D(6, 3, groups=6)], (5, 5, 6), "auto"),
        ([nn.Conv2D(96, 2, groups=3)], (5, 4, 96), "direct"),
    ],
)
def test_a_plan_tells_its_memory(monkeypatch, layers, shape, algorithm):
    """Shards are cut by it: what one image needs for a moment, and the filters in the form in which they are used."""
    nn.set_conv_algorithm(algorithm)
    model, n, taken = nn.Sequential(*layers, input_shape=shape), 2, {}
    conv = model.plan.inference.layers[0]

    def watch(method):
        def watched(self, name, shape, dtype):
            taken[name] = np.prod(shape)
            return method(self, name, shape, dtype)

        return watched

    for name in ("scratch", "scratch_batch"):
        monkeypatch.setattr(type(conv.backend), name, watch(getattr(type(conv.backend), name)))
    model(np.ones((n, *shape), "float32"))
    plan = conv.plan
    needed = sum(taken.values())
    if type(plan) is WinogradPlan:  # the transformed tiles of which two lie side by side
        half, v, products = (
            taken[name] - planes * winograd.PAD for name, planes in (("half", plan.k), ("V", plan.p), ("M", plan.p))
        )
        needed = v + max(half, products)
    assert plan.temporaries * n == needed
    assert ConvPlan(conv.backend, Window.of((5, 4, 6), 2, 1), 4, 2, True).temporaries == 4 * 3 * (4 * 6 + 2)
    filters = plan.prepare(conv.W, conv.b, Memory(conv.backend))
    if type(plan) in (ConvPlan, WinogradPlan):  # in both orders; a shard reads one at a time
        filters = filters[0]
    if type(plan) is GroupedPlan:
        filters = [block[0] for block in filters]
    assert plan.weights == sizes(filters)


def test_the_algorithm_can_be_chosen():
    def plan(name):
        nn.set_conv_algorithm(name)
        return type(nn.Sequential(nn.Conv2D(64, 3), input_shape=(16, 16, 64))[0].plan)

    assert [plan(name) for name in ("direct", "winograd", "auto")] == [ConvPlan, WinogradPlan, WinogradPlan]
    nn.set_conv_algorithm("winograd")
    assert type(nn.Sequential(nn.Conv2D(4, 3), input_shape=(5, 5, 1))[0].plan) is WinogradPlan
    with pytest.raises(ValueError, match="fft"):
        nn.set_conv_algorithm("fft")


def test_transforms_compute_a_convolution_exactly():
    """With whole numbers: y = A' ((G w G') (B' d B)) A, value by value inside, is the correlation of d and w."""
    rng = np.random.default_rng(0)
    for m in winograd.TILES:
        A, B, G = winograd.transforms(m)
        d, w = rng.integers(-9, 9, (m + 2, m + 2)), rng.integers(-9, 9, (3, 3))
        y = A @ ((G @ w @ G.T) * (B @ d @ B.T)) @ A.T
        expected = [[(d[i : i + 3, j : j + 3] * w).sum() for j in range(m)] for i in range(m)]
        np.testing.assert_allclose(y, expected, atol=1e-9)


def test_transforms_of_a_single_place_say_nothing_of_invalid_numbers():
    A, _, _ = winograd.transforms(3)
    x, half, y = np.full((5, 5, 1), np.inf), np.empty((3, 5, 1)), np.empty((3, 3, 1))
    winograd.BothSides(np, A, x, half, y)()
    assert np.isnan(y).any()


def test_the_ones_of_the_bias_stay_where_patches_lay():
    """Batches of several sizes through the same memory, and a layer without ones whose patches have the same shape."""
    rng = np.random.default_rng(0)
    layers = [nn.Conv2D(3, 2), nn.ReLU(), nn.Conv2D(3, (1, 3), padding=(0, 1), bias=False)]
    model, criterion = nn.Sequential(*layers, input_shape=(6, 6, 2), dtype="float64"), nn.MSE()
    model.params[...] = rng.standard_normal(model.params.shape)
    for n in (3, 2, 3, 3):
        x, t = rng.standard_normal((n, 6, 6, 2)), rng.standard_normal((n, *model.out_shape))
        fresh = nn.Sequential(*copy.deepcopy(layers), input_shape=(6, 6, 2), dtype="float64")
        fresh.params[...] = model.params
        assert model.loss_and_grad(x, t, criterion) == fresh.loss_and_grad(x, t, criterion)
        np.testing.assert_array_equal(model.grads, fresh.grads)
        np.testing.assert_array_equal(model(x), fresh(x))
