"""Every kernel, compiled by g++ and run in a random order of its threads, gives what its NumPy twin gives."""

import emulator
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite.backend.base import Backend
from nnlite.backend.conv import ConvPlan, DepthwisePlan, PointwisePlan
from nnlite.backend.cuda.cupy import get_cupy_backend
from nnlite.backend.cuda.kernels import Kernels, kernels, source
from nnlite.backend.memory import Memory
from nnlite.backend.pool import AveragePoolPlan, MaxPoolPlan
from nnlite.backend.window import Window
from nnlite.errors import ShapeError
from nnlite.layers.activation import gelu_tanh, gelu_tanh_delta
from nnlite.layers.norm import Normalization
from nnlite.optim.adam import adam
from nnlite.optim.rmsprop import rmsprop
from nnlite.optim.sgd import sgd

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
LAUNCHED = set()


class Twin(Backend):
    """The base class on NumPy: the working program that every kernel must agree with."""

    device, xp = "cpu", np

    def asarray(self, x, dtype=None):
        return np.asarray(x, dtype)


twin = Twin()


@pytest.fixture(autouse=True)
def backend(cuda, monkeypatch):
    monkeypatch.setattr("nnlite.backend.cuda.kernels._MOST_BLOCKS", 3)  # so that threads go round their loops
    launch = Kernels.launch
    monkeypatch.setattr(
        Kernels, "launch", lambda self, name, *rest, **more: (LAUNCHED.add(name), launch(self, name, *rest, **more))
    )
    return get_cupy_backend()


@st.composite
def windows(draw, most=9):
    """Ragged ones: odd sizes, strides, dilations and paddings of all kinds."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    shape = (draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.sampled_from([1, 2, 3, 33, 40])))
    padding = draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("same")))
    try:
        return Window.of(shape, draw(pairs), draw(pairs), padding, draw(pairs), draw(st.booleans()))
    except ShapeError:
        return Window.of(shape, 1, 1)


dtypes = st.sampled_from(["float32", "float64"])
counts = st.sampled_from([1, 2, 3, 5])


def drawn(seed, *shape, dtype):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(backend, ours, expected):
    """Each kernel's result against its twin's."""
    for a, b in zip(ours, expected, strict=True):
        a = backend.to_host(a)
        assert a.shape == b.shape and a.dtype == b.dtype
        largest = abs(b[np.isfinite(b)]).max(initial=0)  # windows of nothing but padding give minus infinity
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[a.dtype.name], atol=TOLERANCE[a.dtype.name] * (1 + largest))


def host(backend, value):
    return backend.to_host(value) if hasattr(value, "__cuda_array_interface__") else value


def run_conv(backend, plan, a, W, b, delta):
    """A plan's three directions; with host arrays for NumPy's, device arrays for the other."""
    a, W, b, delta = (backend.asarray(v) for v in (a, W, b, delta))
    memory, empty = Memory(backend), backend.xp.empty
    filters = plan.prepare(W, b, memory)
    z = plan.forward(a, filters, memory, backend.empty_batch((len(a), *plan.out_shape), a.dtype))
    dW, db = empty(W.shape, W.dtype), empty(b.shape, b.dtype)
    plan.weight_gradient(a, delta, memory, dW, db)
    return [z, dW, db, plan.input_gradient(delta, filters, memory, backend.empty_batch(a.shape, a.dtype))]


def compare_conv(backend, reference, window, filters, groups, n, dtype):
    W_shape = (filters, *window.kernel, window.in_shape[2] // groups)
    a, W, b = (drawn(i, *shape, dtype=dtype) for i, shape in enumerate([(n, *window.in_shape), W_shape, (filters,)]))
    delta = drawn(3, n, *window.out_size, filters, dtype=dtype)
    plan = backend.conv_plan(window, filters, groups, bias=True)
    close(backend, run_conv(backend, plan, a, W, b, delta), run_conv(twin, reference, a, W, b, delta))


@given(windows(), counts, dtypes, st.integers(1, 3))
def test_patches_and_their_adjoint(backend, window, n, dtype, filters):
    compare_conv(backend, ConvPlan(twin, window, filters, 1, True), window, filters, 1, n, dtype)


def test_patches_in_several_pieces(backend, monkeypatch):
    monkeypatch.setattr(backend, "room_for_patches", 20_000)
    window = Window.of((9, 8, 3), 3, 1, 1)
    compare_conv(backend, ConvPlan(twin, window, 4, 1, True), window, 4, 1, 7, "float64")


@given(counts, dtypes)
def test_one_by_one(backend, n, dtype):
    window = Window.of((3, 5, 7), 1, 1)
    compare_conv(backend, PointwisePlan(twin, window, 4, True), window, 4, 1, n, dtype)


@given(windows(), counts, dtypes)
def test_depthwise(backend, window, n, dtype):
    channels = window.in_shape[2]
    if channels > 1:
        compare_conv(backend, DepthwisePlan(twin, window, channels, True), window, channels, channels, n, dtype)


def test_depthwise_of_many_images(backend):
    for size, n in (((12, 13, 35), 17), ((20, 19, 2), 3)):  # the second is more than one block's part of an image
        window = Window.of(size, 3, 1, 1)
        compare_conv(backend, DepthwisePlan(twin, window, size[2], True), window, size[2], size[2], n, "float64")


def run_pool(backend, plan, a, delta, *memory):
    y = plan.forward(backend.asarray(a), *memory, None)
    return [y, plan.backward(backend.asarray(delta), *memory, None)]


def has_pixels(window):
    """Whether each window has a pixel of the image."""
    return all(0 not in window.taps_met(axis, with_padding=False) for axis in (0, 1))


@given(windows(), counts, dtypes, st.booleans())
def test_pooling(backend, window, n, dtype, ties):
    a = drawn(0, n, *window.in_shape, dtype=dtype)
    a = np.round(a) if ties else a  # of equal values the first takes the delta
    delta = drawn(1, n, *window.out_size, window.in_shape[2], dtype=dtype)
    memories = Memory(twin, swept=True), Memory(backend, swept=True)
    expected = run_pool(twin, MaxPoolPlan(twin, window), a, delta, memories[0])
    close(backend, run_pool(backend, backend.max_pool_plan(window), a, delta, memories[1]), expected)
    for count_padding in (True, False) if has_pixels(window) else (True,):
        expected = run_pool(twin, AveragePoolPlan(twin, window, count_padding), a, delta)
        close(backend, run_pool(backend, backend.average_pool_plan(window, count_padding), a, delta), expected)


def test_padding_is_never_the_largest(backend):
    plan, memory = backend.max_pool_plan(Window.of((2, 2, 1), 2, 2, 1)), Memory(backend, swept=True)
    plan.forward(backend.asarray(np.array([[-np.inf, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)), memory, None)
    assert backend.to_host(plan.backward(backend.asarray(np.ones((1, 2, 2, 1))), memory, None)).ravel().tolist() == [1, 1, 1, 1]


def test_of_a_window_with_nan_the_first_nan_takes_the_delta(backend):
    a = np.array([[5.0, np.nan, 1.0], [np.nan, 7.0, np.nan]]).reshape(1, 2, 3, 1)
    for arrays in (backend, twin):
        plan, memory = arrays.max_pool_plan(Window.of((2, 3, 1), (2, 3), 1)), Memory(arrays, swept=True)
        plan.forward(arrays.asarray(a), memory, None)
        da = plan.backward(arrays.asarray(np.ones((1, 1, 1, 1))), memory, None)
        assert np.ravel(host(arrays, da)).tolist() == [0, 1, 0, 0, 0, 0]


def test_gelu_has_its_limits_at_infinity(backend):
    a, numbers = backend.asarray(np.array([-np.inf, np.inf, 0.0])), (np.sqrt(2 / np.pi), 0.044715)
    assert backend.to_host(backend.sweep(gelu_tanh, a, *numbers, out=None)).tolist() == [0, np.inf, 0]
    assert backend.to_host(backend.sweep(gelu_tanh_delta, backend.asarray(np.ones(3)), a, *numbers, out=None)).tolist() == [
        0,
        1,
        0.5,
    ]


def test_max_pooling_shows_a_nan(backend):
    a = np.zeros((1, 4, 4, 1))
    a[0, 1, 1] = np.nan
    y = backend.to_host(backend.max_pool_plan(Window.of((4, 4, 1), 2, 2)).forward(backend.asarray(a), Memory(backend), None))
    assert np.isnan(y).sum() == 1


@given(st.integers(1, 70), st.integers(1, 5), st.sampled_from([1, 5, 32, 40]), dtypes, st.sampled_from([0, 1e3]), st.booleans())
def test_batch_norm(backend, rows, images, channels, dtype, offset, affine):
    a = drawn(0, images * rows, channels, dtype=dtype) + np.dtype(dtype).type(offset)
    delta, d = drawn(1, *a.shape, dtype=dtype), backend.asarray
    tolerance = TOLERANCE[dtype] * (1 + offset)
    _, mean, _, inv_std = combined = twin.combine_moments([(len(a), *twin.moments(a))], 1e-3)
    for ours, expected in zip(backend.combine_moments([(len(a), *backend.moments(d(a)))], 1e-3), combined, strict=True):
        np.testing.assert_allclose(host(backend, ours), expected, rtol=tolerance, atol=tolerance)
    mean = mean.astype(dtype)
    gamma, beta = (drawn(i, channels, dtype=dtype) if affine else None for i in (2, 3))
    maybe = [None if v is None else d(v) for v in (gamma, beta)]
    by = backend.normalization(d(mean), d(inv_std), *maybe, len(a))
    twin_by = Normalization(twin, mean, inv_std, gamma, beta, len(a))
    for ours, expected in ((by.forward(d(a), None), twin_by.forward(a, None)), (by.scale, twin_by.scale[:channels])):
        np.testing.assert_allclose(backend.to_host(ours), expected, rtol=tolerance, atol=10 * tolerance)
    gradients = [backend.xp.empty(channels, dtype) for _ in range(2)] if affine else [None, None]
    results = [*by.combine_deltas([by.delta_sums(d(delta), d(a))], float(len(a)), *gradients), *gradients[: 2 * affine]]
    total, total_x = twin_by.delta_sums(delta, a)
    twin_gradients = np.empty((2, channels), dtype)
    twin_by.combine_deltas([(total, total_x)], float(len(a)), *twin_gradients)
    expected = [total / len(a), total_x / len(a), *twin_gradients[: 2 * affine]]
    for ours, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(backend.to_host(ours), other, rtol=tolerance, atol=10 * tolerance * rows * images)
    part = drawn(4, channels, dtype=dtype), drawn(5, channels, dtype=dtype)
    da = by.backward(d(delta), d(a), *map(d, part), None)
    expected = twin_by.backward(delta, a, *twin_by.combine_deltas([part], 1.0, None, None), None)
    np.testing.assert_allclose(backend.to_host(da), expected, rtol=tolerance, atol=40 * tolerance)


def test_moments_of_many_rows(backend):
    a = drawn(0, 9000, 33, dtype="float32") + np.float32(100)
    moments = backend.combine_moments([(len(a), *backend.moments(backend.asarray(a)))], 0.0)
    m, mean, var, inv_std = (host(backend, v) for v in moments)
    assert m == len(a)
    np.testing.assert_allclose(mean, a.astype("f8").mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, a.astype("f8").var(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(inv_std, a.astype("f8").std(axis=0) ** -1, rtol=1e-4)


@given(st.integers(1, 90), st.integers(1, 9), dtypes)
def test_relu_in_the_sweep_before_it(backend, rows, channels, dtype):
    z, b, delta = drawn(0, rows, channels, dtype=dtype), drawn(1, channels, dtype=dtype), drawn(2, rows, channels, dtype=dtype)
    plain, fused = backend.asarray(z), backend.asarray(z.copy())
    backend.add_bias(plain, backend.asarray(b))
    backend.add_bias(fused, backend.asarray(b), relu=True)
    close(backend, [plain, fused], [z + b, np.maximum(z + b, 0)])
    close(backend, [backend.relu_delta(backend.asarray(delta), fused, None)], [delta * (z + b > 0)])
    one = np.ones(channels, dtype)
    by = backend.normalization(backend.asarray(b), backend.asarray(one), None, None, rows)
    close(backend, [by.forward(backend.asarray(z), None, relu=True)], [np.maximum(z - b, 0)])


@given(st.integers(1, 700), dtypes, st.sampled_from([1, 100, 1e30]))
def test_gelu(backend, n, dtype, scale):
    a, delta = drawn(0, n, dtype=dtype) * np.dtype(dtype).type(scale), drawn(1, n, dtype=dtype)
    numbers = np.sqrt(2 / np.pi), 0.044715
    ours = [
        backend.sweep(gelu_tanh, backend.asarray(a), *numbers, out=None),
        backend.sweep(gelu_tanh_delta, *map(backend.asarray, (delta, a)), *numbers, out=None),
    ]
    if scale > 100:  # where u overflows the function is still max(a, 0)
        expected = [np.maximum(a, 0), delta * (a > 0)]
    else:
        expected = [gelu_tanh(twin, a, *numbers, None), gelu_tanh_delta(twin, delta, a, *numbers, None)]
    close(backend, ours, expected)


@given(
    st.integers(0, 2**70),
    st.tuples(st.integers(0, 9), st.integers(0, 2**40)),
    st.integers(0, 99),
    st.integers(1, 9),
    st.integers(1, 30),
)
def test_random_bits_are_those_of_numpy(backend, key, stream, start, rows, words):
    bits = backend.to_host(backend.random_bits(key, stream, start, rows, words))
    assert np.array_equal(bits, twin.random_bits(key, stream, start, rows, words))
    shape = (rows, words, 1)
    for dtype in ("float32", "float64"):
        mask = backend.to_host(backend.dropout_mask(key, stream, start, shape, 0.3, dtype))
        expected = twin.dropout_mask(key, stream, start, shape, 0.3, dtype)
        assert np.array_equal(mask, expected) and mask.dtype == expected.dtype


@given(st.integers(1, 40), st.integers(2, 70), dtypes, st.sampled_from([1, 1e4]), st.booleans())
def test_cross_entropy(backend, n, classes, dtype, scale, sums_to_one):
    z, rng = drawn(0, n, classes, dtype=dtype) * np.dtype(dtype).type(scale), np.random.default_rng(1)
    t = rng.integers(0, classes, n)
    q = backend.one_hot(backend.asarray(t), classes, dtype)
    close(backend, [q], [twin.one_hot(t, classes, dtype)])
    q = rng.dirichlet(np.ones(classes), n).astype(dtype)
    ours = backend.cross_entropy(backend.asarray(z), backend.asarray(q), sums_to_one)
    close(backend, ours, twin.cross_entropy(z, q, sums_to_one))


@pytest.mark.parametrize("sums_to_one", [False, True])
def test_cross_entropy_of_classes_that_are_ruled_out(backend, sums_to_one):
    z = np.array([[1, -np.inf, 2], [-np.inf, 1, 2]], "float32")
    q = np.array([[0.25, 0, 0.75], [0.5, 0.25, 0.25]], "float32")
    losses, deltas = (backend.to_host(a) for a in backend.cross_entropy(backend.asarray(z), backend.asarray(q), sums_to_one))
    expected_losses, expected_deltas = twin.cross_entropy(z, q, sums_to_one)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    np.testing.assert_allclose(deltas, expected_deltas, rtol=1e-5)
    assert np.isfinite(losses).tolist() == [True, False] and np.isfinite(deltas).all()


def test_a_label_out_of_range_makes_the_loss_nan(backend):
    q = backend.to_host(backend.one_hot(backend.asarray(np.array([0, 3, -1])), 3, "float32"))
    assert np.isnan(q).any(axis=1).tolist() == [False, True, True]


@given(st.integers(1, 700), dtypes, st.sampled_from([0.0, 0.9]), st.booleans(), st.sampled_from([1.0, 0.99]))
def test_optimisers(backend, n, dtype, momentum, nesterov, decay):
    p, g, m = (drawn(i, n, dtype=dtype) for i in range(3))
    v = abs(drawn(3, n, dtype=dtype))
    moved = [backend.asarray(x) for x in (p, g, m, v)]
    adam(twin, p, g, m, v, (0.9, 0.99), 1e-3, 0.1, decay)
    backend.adam(*moved, (0.9, 0.99), 1e-3, 0.1, decay)
    close(backend, moved, [p, g, m, v])
    rmsprop(twin, p, g, v, 0.9, 1e-3, 0.1)
    backend.rmsprop(*moved[:2], moved[3], 0.9, 1e-3, 0.1)
    close(backend, moved, [p, g, m, v])
    moved, velocity = moved[:3], bool(momentum)
    sgd(twin, p, g, m if velocity else None, 0.1, momentum, nesterov and velocity)
    backend.sgd(moved[0], moved[1], moved[2] if velocity else None, 0.1, momentum, nesterov and velocity)
    close(backend, moved, [p, g, m])


def step_down(backend, p, tally):
    """One update of an optimiser, which the device takes back after a bad number."""
    backend.unless_halted(tally.halted, [p], lambda: backend.sgd(p, backend.asarray(np.ones(5)), None, 0.25, 0.0, False))


def test_a_tally_finds_the_first_bad_loss_and_halts_the_optimisers(backend):
    tally, expected = backend.tally(), twin.tally()
    for loss, weight in ((1.5, 4.0), (0.5, 2.0)):
        tally.add(backend.asarray(np.float64(loss)), weight)
        expected.add(loss, weight)
    assert tally.read() == expected.read()
    p = backend.asarray(np.ones(5))
    step_down(backend, p, tally)
    for loss in (np.inf, 1.0, np.nan):
        tally.add(backend.asarray(np.float64(loss)), 1.0)
    assert tally.read()[1] == 3
    step_down(backend, p, tally)
    assert backend.to_host(p).tolist() == [0.75] * 5


@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_gradient_halts_the_optimisers(backend, skip):
    tally, p = backend.tally(skip), backend.asarray(np.ones(5))
    for g in (1.0, np.inf, 1.0):
        tally.add(backend.asarray(np.float64(2.0)), 1.0)
        backend.halt_unless_finite(backend.norm(backend.asarray(np.full(3, g))), tally.halted)
        step_down(backend, p, tally)
    assert tally.read() == (2.0, 0 if skip else 2)
    assert backend.to_host(p).tolist() == [0.5 if skip else 0.75] * 5


def test_a_tally_leaves_bad_losses_out(backend):
    tally, expected = backend.tally(skip=True), twin.tally(skip=True)
    p = backend.asarray(np.ones(5))
    for loss in (1.5, np.nan, 0.5):
        tally.add(backend.asarray(np.float64(loss)), 2.0)
        expected.add(loss, 2.0)
        step_down(backend, p, tally)
    assert tally.read() == expected.read() == (1.0, 0)
    assert backend.to_host(p).tolist() == [0.5] * 5


@given(st.sampled_from([1, 2, 700, 40_000]), dtypes, st.sampled_from([1e-10, 1.0, 1e19, 3e38]), st.sampled_from([0.5, 1e9]))
def test_norm_and_scaling_to_it(backend, n, dtype, scale, most):
    g = drawn(0, n, dtype=dtype)
    g = (g / abs(g).max() * scale).astype(dtype)
    ours, norm = backend.asarray(g), float(np.linalg.norm(g.astype("f8")))
    for arrays, vector in ((backend, ours), (twin, g)):
        found = arrays.norm(vector)
        assert float(found) == pytest.approx(norm, rel=2e-6)
        arrays.scale_to_norm(vector, found, most)
        host = vector if arrays is twin else backend.to_host(vector)
        assert np.linalg.norm(host.astype("f8")) == pytest.approx(min(norm, most), rel=1e-5)


@given(st.sampled_from([1, 31, 3000]), st.sampled_from([1, 5, 32, 40]), dtypes)
def test_column_sums(backend, rows, channels, dtype):
    a = drawn(0, rows, channels, dtype=dtype)
    sums = backend.to_host(backend.column_sums(backend.asarray(a)))
    np.testing.assert_allclose(sums, a.sum(axis=0, dtype="f8"), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * rows**0.5)


def test_column_sums_of_more_parts_than_rows_of_threads(backend):
    a = drawn(0, 20_000, 2, dtype="float64")
    np.testing.assert_allclose(backend.to_host(backend.column_sums(backend.asarray(a))), a.sum(axis=0), rtol=1e-10)


@given(st.integers(1, 700), dtypes)
def test_lerp(backend, n, dtype):
    a, b = drawn(0, n, dtype=dtype), drawn(1, n, dtype=dtype)
    ours = backend.asarray(a)
    backend.lerp(ours, backend.asarray(b), 0.1)
    twin.lerp(a, b, 0.1)
    close(backend, [ours], [a])


def test_of_equal_values_the_first_takes_the_delta(backend):
    plan, memory = backend.max_pool_plan(Window.of((2, 2, 3), 2, 2)), Memory(backend, swept=True)
    plan.forward(backend.asarray(np.zeros((1, 2, 2, 3))), memory, None)
    da = backend.to_host(plan.backward(backend.asarray(np.ones((1, 1, 1, 3))), memory, None))
    assert da[0, 0, 0].tolist() == [1, 1, 1] and da.sum() == 3


def test_the_same_bits_whatever_the_order_of_warps_and_blocks(backend):
    a, window = drawn(0, 6, 12, 13, 35, dtype="float32"), Window.of((12, 13, 35), 3, 1, 1)
    delta, W, b = drawn(1, *a.shape, dtype="float32"), drawn(2, 35, 3, 3, 1, dtype="float32"), drawn(3, 35, dtype="float32")

    def once():
        rows = backend.asarray(a.reshape(-1, 35))
        results = [*backend.combine_moments([(len(rows), *backend.moments(rows))], 0.0)[1:]]
        results += run_conv(backend, backend.conv_plan(window, 35, 35, True), a, W, b, delta)
        return [backend.to_host(v) for v in results]

    assert all(np.array_equal(x, y) for x, y in zip(once(), once(), strict=True))


def test_launches_are_checked(backend):
    wrong = backend.asarray(np.ones((4, 4)))
    with pytest.raises(TypeError, match="needs float32"):
        backend.kernels.values("gelu_tanh", "float32", 16, wrong, wrong, 1.0, 1.0, 16)
    with pytest.raises(TypeError, match="strides"):
        backend.kernels.values("gelu_tanh", "float64", 16, wrong, wrong.T, 1.0, 1.0, 16)


def test_the_emulator_notices_what_a_gpu_would_not_forgive():
    code = source("norm.cu") + "KERNEL past(real* a) { a[threadIdx.x + 1] = 0; }\n"
    code += "KERNEL half(real* a) { if (threadIdx.x < 7) __syncthreads(); }\n"
    module, a = emulator.Module(code, ("-DREAL=float",)), emulator.guarded((8,), "float32")
    with pytest.raises(emulator.KernelFailure, match="outside"):
        module.launch("past", (1, 1, 1), (8, 1, 1), [a])
    with pytest.raises(emulator.KernelFailure, match="7 threads at a barrier"):
        module.launch("half", (1, 1, 1), (32, 1, 1), [emulator.guarded((8,), "float32")])


def test_every_kernel_was_run():
    assert set(kernels()) == LAUNCHED
