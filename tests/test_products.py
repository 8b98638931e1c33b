"""Products in pieces are products, whatever the kernels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite.backend import single_threaded_blas
from nnlite.backend.cpu import products

pytestmark = pytest.mark.usefixtures("numpy_kernels")

LARGEST, FLAT_WORTH = products.LARGEST, products.FLAT_WORTH
shapes = st.tuples(*(st.integers(1, 40).map(lambda n: 8 * n) for _ in range(3)))


@pytest.fixture(params=[True, False], autouse=True)
def _kernels(request, monkeypatch):
    monkeypatch.setattr(single_threaded_blas, "_small_kernels", request.param)
    monkeypatch.setattr(products, "LARGEST", 4000)
    monkeypatch.setattr(products, "FLAT_WORTH", FLAT_WORTH * 4000 / LARGEST)
    products.piece.cache_clear(), products.flat_piece.cache_clear()
    yield
    products.piece.cache_clear(), products.flat_piece.cache_clear()


def scratch(name, shape, dtype):
    return np.full(shape, np.nan, dtype)


def use_measured_sizes(monkeypatch):
    monkeypatch.setattr(products, "LARGEST", LARGEST)
    monkeypatch.setattr(products, "FLAT_WORTH", FLAT_WORTH)


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def transpose(x):
    """The same values, column by column in memory."""
    return np.ascontiguousarray(x.swapaxes(-2, -1)).swapaxes(-2, -1)


@given(shapes, st.sampled_from([(), (1,), (3,)]), st.booleans(), st.booleans(), st.booleans())
def test_products_of_matrices_and_stacks(shape, stack, a_transposed, b_transposed, to_out):
    m, k, n = shape
    a, b = draw(*stack, m, k), draw(*stack, k, n)
    a, b = (transpose(x) if transposed else x for x, transposed in ((a, a_transposed), (b, b_transposed)))
    out = np.empty((*stack, m, 2 * n))[..., ::2] if to_out else None
    result = products.matmul(a, b, out)
    assert out is None or result is out
    np.testing.assert_allclose(result, a @ b, rtol=1e-10, atol=1e-10)


@given(st.integers(1, 3000), st.integers(1, 30), st.integers(1, 30), st.sampled_from([(), (2,)]))
def test_sums_over_many_rows(rows, m, n, stack):
    a, b = draw(*stack, rows, m), draw(*stack, rows, n)
    np.testing.assert_allclose(products.matmul_rows(a, b, None, scratch), a.swapaxes(-2, -1) @ b, rtol=1e-10, atol=1e-9)


def test_pieces(monkeypatch):
    use_measured_sizes(monkeypatch)
    assert products.piece(192, 128, 128, False) == (48, 128)  # all columns
    assert products.piece(64, 512, 512, False) == (32, 32)  # the squarest of the largest
    assert products.piece(7, 500, 1009, False) is None  # two primes: no piece is large enough
    assert products.piece(40, 10, 48_000, False)[1] % products.ALIGNED == 0
    assert products.piece(192, 128, 128, True) is None and products.piece(192, 64, 128, True) == (96, 128)  # thick ones
    assert products.largest_divisor(90, 44) == 30 and products.largest_divisor(7, 0) == 0


def test_stacks_are_cut_into_columns_too(monkeypatch):
    use_measured_sizes(monkeypatch)
    monkeypatch.setattr(single_threaded_blas, "_small_kernels", True)
    a, b = draw(2, 64, 512), draw(2, 512, 512)  # pieces of (32, 32)
    np.testing.assert_allclose(products.matmul(a, b), a @ b, rtol=1e-10, atol=1e-10)


def test_deep_sums_stay_whole(monkeypatch):
    """The kernels for small matrices would lose digits."""
    use_measured_sizes(monkeypatch)
    a, b = draw(64, products.DEEPEST + 1).astype("float32"), draw(products.DEEPEST + 1, 64).astype("float32")
    assert np.array_equal(products.matmul(a, b), a @ b)


def test_pieces_of_products_with_a_transpose(monkeypatch):
    use_measured_sizes(monkeypatch)
    assert products.flat_piece(32, 784, 512) == (32, 32)  # the squarest of the largest
    assert products.flat_piece(4, 512, 512) == (4, 256)
    assert products.flat_piece(512, 512, 10) == (64, 10)  # all columns
    assert products.flat_piece(997, 512, 512) is None  # a prime: no row alone
    assert products.flat_piece(256, 64, 64) is None  # too little work
    rows, columns = products.flat_piece(32, 4096, 512)
    assert rows * columns * 4096 <= LARGEST


@pytest.mark.parametrize("depth", [784, 4096, 8192])
def test_deep_products_with_a_transpose_lose_no_digits(monkeypatch, depth):
    use_measured_sizes(monkeypatch)
    assert (products.flat_piece(32, depth, 512) is None) == (depth > 4096)
    a, W = draw(32, depth).astype("float32"), draw(512, depth).astype("float32")
    exact = a.astype("float64") @ W.T.astype("float64")
    error, usual = (np.abs(z - exact).max() for z in (products.matmul(a, W.T), a @ W.T))
    assert error <= 1.25 * usual


def test_only_large_products_are_cut(monkeypatch):
    monkeypatch.setattr(single_threaded_blas, "_small_kernels", True)
    for shape, asked in (((20, 10, 20), 0), ((40, 10, 10), 0), ((40, 10, 11), 1), ((2001, 1, 2), 2), ((2, 1, 2000), 2)):
        products.matmul(draw(*shape[:2]), draw(*shape[1:]))
        assert products.piece.cache_info().misses == asked


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 5, 1), (1, 500, 30)], ids=str)
def test_products_with_a_vector_say_nothing_of_invalid_numbers(shape):
    # The flag means nothing: a kernel of OpenBLAS raises it for finite numbers.
    m, k, n = shape
    a, b = np.full((m, k), np.inf, np.float32), draw(k, n).astype(np.float32)
    b[0], b[1] = 1, -1
    assert np.isnan(products.matmul(a, b)).all()
    assert np.isnan(products.matmul_rows(np.ascontiguousarray(a.T), b, None, scratch)).all()


def test_only_wide_products_with_a_transpose_are_cut(monkeypatch):
    monkeypatch.setattr(single_threaded_blas, "_small_kernels", True)
    for shape, asked in (((30, 3, 40), 0), ((30, 3, 41), 1), ((20, 10, 20), 1), ((20, 11, 20), 2)):
        products.matmul(draw(*shape[:2]), transpose(draw(*shape[1:])))
        assert products.flat_piece.cache_info().misses == asked
