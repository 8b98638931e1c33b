"""Convolutions in C against NumPy's plans and against each other, on drawn shapes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import Memory, Window, get_numpy_backend
from nnlite.backend.native.folded import FoldedPlan, Folds, best_fold
from nnlite.backend.native.plans import NativePlan
from nnlite.backend.native.winograd import TILES, NativeTilesPlan, NativeWinogradPlan

DTYPES = st.sampled_from(["float32", "float64"])
padding = st.tuples(st.integers(0, 3), st.integers(0, 3))
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def convolutions(draw, kernel=pairs, stride=pairs, dilation=pairs, groups=None):
    """A window, its filters, groups and the number of images."""
    groups = draw(st.sampled_from([1, 1, 2, 3])) if groups is None else groups
    channels, filters = (groups * draw(st.integers(1, 20)) for _ in range(2))
    if groups > 1 and draw(st.booleans()):
        groups = filters = channels
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)), channels)
    try:
        window = Window.of(shape, draw(kernel), draw(stride), (draw(padding), draw(padding)), draw(dilation))
    except nn.ShapeError:
        assume(False)
    return window, filters, groups, draw(st.integers(1, 5))


def arrays(window, filters, groups, n, dtype, seed=0):
    """a, W, b and delta."""
    rng = np.random.default_rng(seed)
    h, w, c = window.in_shape
    shapes = (n, h, w, c), (filters, *window.kernel, c // groups), (filters,), (n, *window.out_size, filters)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run(plan, a, W, b, delta):
    """z, max(z, 0), dW, db and da; every array is checked for values that were never written."""
    memory = Memory(plan.backend)
    filters = plan.prepare(W, b, Memory(plan.backend))
    z = plan.forward(a, filters, memory, None).copy()
    rectified = plan.forward(a, filters, memory, None, relu=True).copy()
    plan.forward(a, filters, memory, None)
    dW, db = np.full_like(W, np.nan), np.full_like(b, np.nan)
    out = plan.backend.empty_batch(a.shape, a.dtype)
    out[...] = np.nan
    da = plan.gradients(a, delta, filters, memory, dW, db, out).copy()
    return z, rectified, dW, db, da


def assert_close(actual, expected, dtype, factor=1.0):
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=factor * 64 * np.finfo(dtype).eps * max(1, abs(y).max()))


@settings(max_examples=60)
@given(case=convolutions(), dtype=DTYPES)
def test_convolutions_agree_with_numpys(native, case, dtype):
    window, filters, groups, _ = case
    values = arrays(*case, dtype)
    expected = run(get_numpy_backend().conv_plan(window, filters, groups, True), *values)
    assert_close(run(native.conv_plan(window, filters, groups, True), *values), expected, dtype, 4)


@pytest.mark.parametrize("kernel", [(3, 3), (3, 4), (5, 5), (1, 7)])
@pytest.mark.parametrize("channels", [5, 48])
def test_depthwise_windows_of_any_number_of_taps(native, kernel, channels):
    window = Window.of((11, 12, channels), kernel, (2, 1), 2, 1)
    values = arrays(window, channels, channels, 3, "float32")
    expected = run(get_numpy_backend().conv_plan(window, channels, channels, True), *values)
    assert_close(run(native.conv_plan(window, channels, channels, True), *values), expected, "float32", 4)


@settings(max_examples=40)
@given(case=convolutions(st.just((3, 3)), st.just(1), st.just(1), 1), dtype=DTYPES, m=st.sampled_from(TILES[3]))
def test_tiles_agree_with_pixels_in_place(native, case, dtype, m):
    window, filters, _, _ = case
    values = arrays(*case, dtype)
    direct, tiles = NativePlan(native, window, filters, True), NativeWinogradPlan(native, window, filters, True, m)
    expected, actual = run(direct, *values), run(tiles, *values)
    assert_close(actual, expected, dtype, 8)
    memory, prepared = Memory(native), tiles.prepare(values[1], values[2], Memory(native))
    dW, db = np.empty_like(values[1]), np.empty_like(values[2])
    tiles.weight_gradient(values[0], values[3], memory, dW, db)
    assert np.array_equal(dW, actual[2]) and np.array_equal(db, actual[3])  # alone the same bits
    assert np.array_equal(tiles.input_gradient(values[3], prepared, memory, None), actual[4])


# Of outputs, as a share of their root mean square: docs/kernels.md
ERRORS = {2: 5.5e-7, 3: 9e-7, 4: 1.7e-6, 5: 3.3e-6, 6: 7e-6, 7: 1.7e-5}


@pytest.mark.parametrize("m", TILES[3])
def test_points_lose_few_digits(native, m):
    window = Window.of((2 * m, 2 * m, 256), 3, 1, 1)
    a, W, b, delta = arrays(window, 16, 1, 4, "float32")
    exact = run(NativePlan(native, window, 16, True), *(x.astype("float64") for x in (a, W, b, delta)))
    found = run(NativeWinogradPlan(native, window, 16, True, m), a, W, b, delta)
    errors = [np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2)) for x, y in zip(found, exact, strict=True)]
    assert max(errors) < ERRORS[m]


@pytest.mark.parametrize(
    ("size", "few", "many"), [(4, 4, 4), (6, 3, 6), (7, 4, 7), (8, 4, 4), (10, 5, 5), (14, 5, 7), (15, 5, 5), (32, 4, 4)]
)
def test_tiles_that_cover_an_image_are_chosen_larger_for_many_images(native, size, few, many):
    plan = NativeTilesPlan(native, Window.of((size, size, 64), 3, 1, 1), 64, True)
    assert [plan.of_batch(n).name for n in (0, 512)] == [f"winograd{few}3", f"winograd{many}3"]


def test_a_training_pass_has_the_tiles_for_its_batch(native, monkeypatch):
    nn.set_kernels("native")
    model = nn.Sequential(nn.Conv2D(64, 3, padding=1), nn.Conv2D(64, 3, padding=1), input_shape=(7, 7, 64), dtype="float64")
    nn.set_kernels("auto")
    x, delta = np.random.default_rng(0).standard_normal((2, 256, 7, 7, 64))
    found = []
    for _ in range(2):
        z = model.forward(x, training=True).copy()
        found.append([z, model.backward(delta).copy(), model.grads.copy()])
        assert set(model[1].plan._plans) == {4, 7}
        monkeypatch.setattr(Memory, "batch", property(lambda self: 0, lambda self, n: None), raising=False)
    for tiles, few in zip(*found, strict=True):
        assert not np.array_equal(tiles, few)
        np.testing.assert_allclose(tiles, few, rtol=0, atol=1e-11 * abs(few).max())


wide = st.tuples(st.integers(1, 8), st.integers(1, 8))


@settings(max_examples=40)
@given(
    case=st.one_of(convolutions(wide, pairs, st.just(1), 1), convolutions(wide, st.just(1), pairs, 1)),
    dtype=DTYPES,
    tile=st.sampled_from([(m, r) for r in TILES for m in TILES[r]]),
)
def test_folded_images_agree_with_pixels_in_place(native, case, dtype, tile):
    (window, filters, _, _), (m, r) = case, tile
    a, W, b, delta = values = arrays(*case, dtype)
    folded = FoldedPlan(native, window, filters, True, Folds(window, filters, r), m)
    expected, actual = run(NativePlan(native, window, filters, True), *values), run(folded, *values)
    assert_close(actual, expected, dtype, 16)
    prepared, dW, db = folded.prepare(W, b, Memory(native)), np.empty_like(W), np.empty_like(b)
    folded.weight_gradient(a, delta, Memory(native), dW, db)
    assert np.array_equal(dW, actual[2]) and np.array_equal(db, actual[3])  # alone the same bits
    assert np.array_equal(folded.input_gradient(delta, prepared, Memory(native), None), actual[4])


def test_windows_are_folded_where_that_saves_much(native):
    def folds(shape, filters, kernel, stride=1, dilation=1):
        found = best_fold(Window.of(shape, kernel, stride, kernel // 2 * dilation, dilation), filters)
        return found and found[1]

    assert folds((16, 16, 32), 64, 5, stride=2) == folds((32, 32, 32), 32, 3, dilation=4) == 4
    assert folds((14, 14, 16), 32, 7) == 3
    assert not folds((32, 32, 3), 32, 5, stride=2)  # few channels
    assert not folds((32, 32, 32), 32, 3, stride=2)  # as many multiplications
    assert not folds((16, 16, 32), 64, 5, stride=2, dilation=2)  # neither
    nn.set_conv_algorithm("direct")
    try:
        assert not folds((16, 16, 32), 64, 5, stride=2)
    finally:
        nn.set_conv_algorithm("auto")


@settings(max_examples=20)
@given(case=convolutions(), dtype=DTYPES)
def test_any_strides_and_places_of_the_inputs(native, case, dtype):
    """Views, read-only and unaligned arrays, and targets that C cannot write to."""
    window, filters, groups, _ = case
    a, W, b, delta = arrays(*case, dtype)
    plan = native.conv_plan(window, filters, groups, True)
    expected = run(plan, a, W, b, delta)
    others = [np.asfortranarray(a), W, b, np.repeat(delta, 2, axis=3)[..., ::2]]
    for x in others:
        x.flags.writeable = False
    for x, y in zip(run(plan, *others), expected, strict=True):
        assert np.array_equal(x, y)
    raw = np.empty(a.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype).reshape(a.shape)
    unaligned[...] = a
    assert np.array_equal(run(plan, unaligned, W, b, delta)[0], expected[0])
    out = np.empty(expected[0].shape[::-1], dtype).T
    assert np.array_equal(plan.forward(a, plan.prepare(W, b, Memory(native)), Memory(native), out), expected[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kernel", [3, 5])
def test_what_is_not_finite_is_seen(native, kernel, value):
    window = Window.of((9, 9, 4), kernel, 1, 1, 1)
    a, W, b, delta = arrays(window, 5, 1, 2, "float32")
    a[1, 4, 4, 2] = value
    z = run(native.conv_plan(window, 5, 1, True), a, W, b, delta)[0]
    assert np.isfinite(z[0]).all() and not np.isfinite(z[1]).all()


@given(m=st.integers(0, 40), k=st.integers(0, 600), n=st.integers(0, 40), dtype=DTYPES, seed=st.integers(0, 9))
def test_products_of_any_strides(native, m, k, n, dtype, seed):
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        x = rng.standard_normal((rows, columns)).astype(dtype)
        unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
        unaligned[...] = x
        kinds = [x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], np.repeat(x, 3, axis=0)[::-3][::-1], unaligned]
        return kinds[rng.integers(len(kinds))]

    a, b, out = matrix(m, k), matrix(k, n), matrix(m, n)
    expected = a.astype("float64") @ b.astype("float64")
    assert native.matmul(a, b, out) is out
    np.testing.assert_allclose(out, expected, rtol=0, atol=64 * np.finfo(dtype).eps * max(1, k) ** 0.5)


@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False)])
def test_a_large_product_is_cut_into_the_same_bits(native, transposed):
    rng = np.random.default_rng(0)
    shapes = ((70, 1000), (1000, 515))
    a, b = (rng.standard_normal(s[::-1] if t else s).astype("f") for s, t in zip(shapes, transposed, strict=True))
    a, b = (x.T if t else x for x, t in zip((a, b), transposed, strict=True))
    bias, room = rng.standard_normal(515).astype("f"), np.zeros((70, 600), "f")
    for threads in (1, 2, 3):
        nn.set_num_threads(threads)
        assert np.array_equal(native.product(a, b, None), native.matmul(a, b))
        native.biased_product(a, b, bias, room[:, 3:518], True)
        assert np.array_equal(room[:, 3:518], np.maximum(native.matmul(a, b) + bias, 0))
    assert not room[:, :3].any() and not room[:, 518:].any()


def test_products_refuse_shapes_that_do_not_fit(native):
    with pytest.raises(ValueError, match="product"):
        native.matmul(np.ones((2, 3), "f"), np.ones((4, 5), "f"))
    with pytest.raises(ValueError, match="product"):
        native.matmul(np.ones((2, 3), "f"), np.ones((3, 5), "f"), np.ones((2, 4), "f"))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_arrays_of_another_dtype_are_converted_and_of_another_shape_refused(native, kernel, groups):
    """Such as those of a custom layer that breaks its word."""
    window = Window.of((8, 8, 4), kernel, 1, 1, 1)
    a, W, b, delta = arrays(window, 4, groups, 3, "float32")
    plan = native.conv_plan(window, 4, groups, True)
    expected = run(plan, a, W, b, delta)
    for x, y in zip(run(plan, a.astype("float64"), W, b, delta.astype("float64")), expected, strict=True):
        assert np.array_equal(x, y)
    memory, filters = Memory(native), plan.prepare(W, b, Memory(native))
    with pytest.raises(ValueError):
        plan.forward(a[:, :7], filters, memory, None)
    with pytest.raises(ValueError):
        plan.weight_gradient(a[:, :7], delta, memory, np.empty_like(W), np.empty_like(b))
    with pytest.raises(ValueError):
        plan.input_gradient(delta[:, :5], filters, memory, None)


@settings(max_examples=30)
@given(case=convolutions(groups=1), size=st.integers(1, 3), dtype=DTYPES, relu=st.booleans())
def test_pooling_in_the_plan_is_pooling_after_it(native, case, size, dtype, relu):
    window, filters, _, n = case
    assume(min(window.out_size) >= size)
    pool = Window.of((*window.out_size, filters), size, size)
    cropped = window.before(pool)
    a, W, b, _ = arrays(*case, dtype)
    delta = np.random.default_rng(1).standard_normal((n, *pool.out_size, filters)).astype(dtype)
    joined, alone = native.conv_plan(cropped, filters, 1, True, (size, size)), NativePlan(native, window, filters, True)
    memory, prepared = MemoryOfTraining(native), joined.prepare(W, b, Memory(native))
    y = joined.forward(a, prepared, memory, None, relu)
    dW, db = np.empty_like(W), np.empty_like(b)
    da = joined.gradients(a, delta, prepared, memory, dW, db, None)
    maxima, kept, filters_alone = native.max_pool_plan(pool), Memory(native), alone.prepare(W, b, Memory(native))
    kept_by_pool = MemoryOfTraining(native)
    expected = maxima.forward(alone.forward(a, filters_alone, kept, None), kept_by_pool, None)
    before = maxima.backward(delta, kept_by_pool, None)
    dW_alone, db_alone = np.empty_like(W), np.empty_like(b)
    da_alone = alone.gradients(a, before, filters_alone, kept, dW_alone, db_alone, None)
    expected = np.maximum(expected, 0) if relu else expected
    assert_close([y, dW, db, da], [expected, dW_alone, db_alone, da_alone], dtype, 8)


class MemoryOfTraining(Memory):
    """A memory whose forward pass is followed by a backward pass."""

    needs_backward = True


@pytest.mark.parametrize(("m", "bound"), [(None, 1e-6), (2, 1e-6), (3, 5e-6), (4, 1e-5), (5, 2e-5), (6, 5e-5), (7, 1e-4)])
@pytest.mark.parametrize(("shape", "filters", "padding"), [((13, 13, 32), 64, 0), ((32, 32, 64), 64, 1), ((8, 8, 256), 256, 1)])
def test_the_error_in_float32_is_bounded_as_set_conv_algorithm_says(native, m, bound, shape, filters, padding):
    window = Window.of(shape, 3, 1, padding)
    values = [x.astype("float32") for x in arrays(window, filters, 1, 4, "float64")]
    exact = run(NativePlan(native, window, filters, True), *(x.astype("float64") for x in values))
    tiles = NativePlan(native, window, filters, True) if m is None else NativeWinogradPlan(native, window, filters, True, m)
    for actual, wanted in zip(run(tiles, *values), exact, strict=True):
        assert abs(actual - wanted).max() < bound * abs(wanted).max()


def test_the_algorithm_can_be_chosen(native):
    def plan(name, channels=64):
        nn.set_conv_algorithm(name)
        return type(native.conv_plan(Window.of((16, 16, channels), 3, 1), 64, 1, True))

    try:
        chosen = [plan(name) for name in ("direct", "winograd", "auto")]
        assert chosen == [NativePlan, NativeTilesPlan, NativeTilesPlan]
        assert [plan(name, 1) for name in ("winograd", "auto")] == [NativeTilesPlan, NativePlan]
    finally:
        nn.set_conv_algorithm("auto")


@given(m=st.integers(1, 20), k=st.integers(1, 40), n=st.integers(1, 40), relu=st.booleans(), dtype=DTYPES)
def test_products_with_a_bias(native, m, k, n, relu, dtype):
    rng = np.random.default_rng(0)
    a, W, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (n, k), (n,)))
    expected = native.matmul(a, W.T) + bias
    actual = native.biased_product(a, W.T, bias, None, relu)
    assert np.array_equal(actual, np.maximum(expected, 0) if relu else expected)


@pytest.mark.parametrize("kernel", [(3, 4), (5, 5)])
@pytest.mark.parametrize("channels", [5, 16])
def test_depthwise_windows_of_many_taps(native, kernel, channels):
    window = Window.of((9, 8, channels), kernel, 1, 2)
    values = arrays(window, channels, channels, 3, "float64")
    expected = run(get_numpy_backend().conv_plan(window, channels, channels, True), *values)
    assert_close(run(native.conv_plan(window, channels, channels, True), *values), expected, "float64")
