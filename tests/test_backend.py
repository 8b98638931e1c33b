"""The operations of the backend: each against its plain formula, on sizes that its fast form does not divide."""

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnlite as nn
from nnlite.backend import get_numpy_backend
from nnlite.backend.base import Backend
from nnlite.backend.memory import Buffers, Memory, Pool
from nnlite.backend.operations import by_pixel
from nnlite.backend.window import Window
from nnlite.layers.norm import Normalization

pytestmark = pytest.mark.usefixtures("numpy_kernels")
backend = get_numpy_backend()
sizes = st.tuples(st.integers(1, 70), st.integers(1, 40))


def draw(shape, seed=0, mean=0.0):
    return np.random.default_rng(seed).standard_normal(shape) + mean


@given(sizes, st.booleans(), st.booleans(), st.sampled_from(["add", "multiply"]))
def test_by_column(size, to_out, wide, name):
    a, row = draw(size), draw(size[1], 1)
    out = np.full(size, np.nan) if to_out else None
    result = backend.by_column(name, a, backend.wide_row(row, size[0]) if wide else row, out)
    assert np.array_equal(result, getattr(np, name)(a, row)) and (out is None or result is out)


def test_by_column_and_relu_of_arrays_that_do_not_lie_in_one_piece():
    a, row = draw((64, 32))[:, ::2], draw(16, 1)
    assert np.array_equal(backend.by_column("add", a, row, None), a + row)
    assert np.array_equal(backend.relu(a, None), np.maximum(a, 0))
    out = np.zeros((64, 32))
    backend.by_column("add", np.ascontiguousarray(a), row, out[:, ::2])
    assert np.array_equal(out[:, ::2], a + row) and not out[:, 1::2].any()
    backend.relu(np.ascontiguousarray(a), out[:, ::2])
    assert np.array_equal(out[:, ::2], np.maximum(a, 0)) and not out[:, 1::2].any()


@given(sizes)
def test_column_products(size):
    a, b = draw(size), draw(size, 1)
    np.testing.assert_allclose(backend.column_products(a, b), (a * b).sum(axis=0), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 5000))
def test_relu(size):
    a = draw(size).astype("float32")
    a[::7] = 0
    kept = a.copy()
    assert np.array_equal(backend.relu(a, None), np.maximum(a, 0)) and np.array_equal(a, kept)
    assert backend.relu(a, a) is a and np.array_equal(a, np.maximum(kept, 0))


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, 1e5])
@pytest.mark.parametrize("channels", [3, 16, 70])
def test_batch_norm_near_and_far_from_zero(mean, channels):
    """Folded into one product and one sum where that is safe, subtracted first where digits would be lost."""
    a, delta = draw((500, channels), mean=mean).astype("float32"), draw((500, channels), 1).astype("float32")
    a[:, 0] = mean  # a constant channel
    exact, d = a.astype("float64"), delta.astype("float64")
    m, squares = backend.moments(a)
    np.testing.assert_allclose(m, exact.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(squares, exact.var(axis=0) * 500, rtol=2e-3, atol=1e-6)
    assert squares[0] <= 1e-6 * (1 + mean)
    true_mean, inv_std = exact.mean(axis=0), 1 / np.sqrt(exact.var(axis=0) + 1e-5)
    x = (exact - true_mean) * inv_std
    single = [v.astype("float32") for v in (true_mean, inv_std)]
    gamma, beta = draw(channels, 2).astype("float32"), draw(channels, 3).astype("float32")
    tolerance = {"rtol": 1e-4, "atol": 1e-4 + 1e-6 * mean}
    for g, b in ((gamma, beta), (None, None), (gamma, None), (None, beta)):
        wanted = (1 if g is None else g) * x + (0 if b is None else b)
        actual = Normalization(backend, *single, g, b, len(a)).forward(a, None)
        np.testing.assert_allclose(actual[:, 1:], wanted[:, 1:], **tolerance)
    by = Normalization(backend, *single, gamma, beta, len(a))
    assert np.array_equal(by.forward(a, None, relu=True), np.maximum(by.forward(a, None), 0))
    total, with_x = by.delta_sums(delta, a)
    np.testing.assert_allclose(total, d.sum(axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(with_x[1:], (d * x).sum(axis=0)[1:], rtol=1e-3, atol=0.02 + 1e-4 * mean)
    mean_delta, mean_delta_x = d.mean(axis=0), (d * x).mean(axis=0)
    dgamma, dbeta = np.empty((2, channels), "float32")
    terms = by.combine_deltas([[v.astype("float32") for v in (mean_delta, mean_delta_x)]] * 2, 2.0, dgamma, dbeta)
    np.testing.assert_allclose([dgamma, dbeta], [2 * mean_delta_x, 2 * mean_delta], rtol=1e-6)
    actual = by.backward(delta, a, *terms, None)
    wanted = gamma * inv_std * (d - mean_delta - x * mean_delta_x)
    np.testing.assert_allclose(actual[:, 1:], wanted[:, 1:], **tolerance)


@pytest.mark.parametrize(("kernel", "channels", "groups"), [(5, 2, 1), (1, 2, 1), (3, 4, 4), (3, 4, 2), (3, 4, 1)])
def test_a_convolution_ends_with_relu_on_request(kernel, channels, groups):
    """By patches, as a plain product, depthwise, in blocks of groups, by Winograd's algorithm."""
    plan, memory = backend.conv_plan(Window.of((7, 6, channels), kernel, 1), 4, groups, True), Memory(backend)
    filters = plan.prepare(draw((4, kernel, kernel, channels // groups)), draw(4, 1), memory)
    z, y = (plan.forward(draw((3, 7, 6, channels), 2), filters, memory, None, relu).copy() for relu in (False, True))
    assert (z < 0).any() and np.array_equal(y, np.maximum(z, 0))


def test_relu_in_the_sweep_before_it_gives_the_same_bits(monkeypatch):
    """What `plan.py` does for a backend that gains from it."""
    monkeypatch.setattr(type(backend), "fuses_relu", True)
    layers = [nn.Conv2D(4, 3), nn.ReLU(), nn.BatchNorm(), nn.ReLU(), nn.Flatten(), nn.Dense(5), nn.ReLU(), nn.Dense(3)]
    model, results = nn.Sequential(*layers, input_shape=(8, 8, 2)), []
    start = model.snapshot()
    for model.rewrite in (True, False):
        model.restore(start)
        z = model.forward(draw((6, 8, 8, 2)), training=True).copy()
        results.append([z, model.backward(draw((6, 3), 1)), model.grads.copy(), model(draw((6, 8, 8, 2)))])
        ends = [step.layer.ends_with_relu for run in model.plan.training for step in run.steps]
        assert sum(ends) == 3 * model.rewrite and not any(layer.ends_with_relu for layer in model.layers)
    assert all(map(np.array_equal, *results))


def test_the_plain_operations_are_the_same_functions():
    """What a device without forms of its own computes."""
    plain, a, b = Backend(), draw((48, 16)), draw((48, 16), 1)
    plain.xp = np
    for name, arguments in (("column_products", (a, b)), ("by_column", ("multiply", a, b[0], None)), ("relu", (a, None))):
        np.testing.assert_allclose(getattr(plain, name)(*arguments), getattr(backend, name)(*arguments), rtol=1e-12, atol=1e-12)


def test_images_lie_pixel_by_pixel():
    for a in (backend.empty_batch((3, 4, 5, 2), "float32"), backend.scratch_batch("a test's", (3, 4, 5, 2), "float32")):
        a[...] = draw((3, 4, 5, 2))
        assert by_pixel(a).flags.c_contiguous
        rows = backend.rows(a)
        assert np.shares_memory(rows, a) and np.array_equal(rows, a.transpose(1, 2, 0, 3).reshape(60, 2))
        assert np.array_equal(backend.rows(np.ascontiguousarray(a)), rows)
    assert backend.empty_batch((3, 4), "float32").flags.c_contiguous


@given(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.booleans())
def test_what_goes_value_by_value_does_not_depend_on_the_order_in_memory(n, channels, given_by_pixel, to_by_pixel):
    shape = n, 16, 8, channels
    arrays = [np.full(shape, np.nan, "float32"), backend.empty_batch(shape, "float32")]
    given_, out = arrays[given_by_pixel].copy("K"), arrays[to_by_pixel]
    given_[...] = draw(shape)
    row = draw(channels, 1).astype("float32")
    assert np.array_equal(backend.relu(given_, out), np.maximum(given_, 0))
    assert np.array_equal(backend.by_column("add", given_, row, out), given_ + row)
    y = draw(shape, 2).astype("float32")
    assert np.array_equal(backend.relu_delta(given_, y, out), np.where(y > 0, given_, 0))


def test_memory_begins_at_lines_of_the_cache():
    model = nn.Sequential(nn.Conv2D(3, 3), nn.BatchNorm(), nn.Flatten(), nn.Dense(3), input_shape=(5, 5, 1))
    optimizer = nn.Adam()
    optimizer.step(model)
    kept = [model.params, model.grads, model.buffers, *optimizer.state_vectors.values()]
    for size in range(1, 20):
        kept += [backend.empty(size, "float32"), backend.scratch(f"a test's {size}", (size,), "float64")]
    assert {array.ctypes.data % 64 for array in kept} == {0}
    assert not backend.zeros(9, "float32").any()


def test_a_pool_gives_arrays_out_again():
    pool = Pool(backend)
    a = pool.take(30, "float32")
    b = pool.take(30, "float32")
    assert not np.shares_memory(a, b)
    pool.give(a)
    c = pool.take(20, "float32")
    assert len(c) >= 20 and np.shares_memory(a, c)
    pool.give(c)
    assert not np.shares_memory(pool.take(7, "float32"), c)  # less than half of it
    assert not np.shares_memory(pool.take(30, "float64"), c)  # another kind
    assert np.shares_memory(pool.take(30, "float32"), c)


def test_kept_views_do_not_keep_arrays_that_were_replaced():
    buffers = Buffers(backend)
    views = buffers.views("key", lambda: buffers.get("a", (4, 5), "float32").T)
    assert buffers.views("key", None) is views
    old = weakref.ref(views.base)
    del views
    assert old() is not None
    buffers.get("a", (100,), "float32")
    assert old() is None
    made = buffers.views("key", lambda: buffers.get("a", (4, 5), "float32").T)
    assert np.shares_memory(made, buffers.get("a", (1,), "float32"))


def test_constant_rows_are_kept_once():
    made = []

    def make(n):
        made.append(n)
        return np.ones(n)

    assert [len(backend.constant_rows("a test's", n, make)) for n in (3, 2, 5, 4, 5)] == [3, 2, 5, 4, 5]
    assert made == [3, 5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_cross_entropy_of_labels_has_the_bits_of_any_targets(dtype, scale):
    rng = np.random.default_rng(0)
    z, t = (scale * rng.standard_normal((37, 5))).astype(dtype), rng.integers(0, 5, 37)
    z[0] = [-np.inf, 1, 2, -np.inf, 0]
    t[0] = 1
    cpu = get_numpy_backend()
    expected = cpu.cross_entropy(z, cpu.one_hot(t, 5, dtype), True)
    for ours, theirs in zip(cpu.cross_entropy_of_labels(z, t), expected, strict=True):
        assert ours.dtype == dtype and np.array_equal(ours, theirs)


def test_a_row_view_is_no_copy():
    cpu = get_numpy_backend()
    a = cpu.empty_batch((2, 3, 4, 5), "float32")
    cpu.row_view(a)[...] = 1
    assert (a == 1).all()
    with pytest.raises(ValueError, match="are a copy"):
        cpu.row_view(np.zeros((2, 3, 4, 5)))
