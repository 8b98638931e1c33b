"""Products in pieces are products, whatever the kernels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite.backend import products, single_threaded_blas

MEASURED = products.LARGEST
shapes = st.tuples(*(st.integers(1, 40).map(lambda n: 8 * n) for _ in range(3)))


@pytest.fixture(params=[True, False], autouse=True)
def _kernels(request, monkeypatch):
    monkeypatch.setattr(single_threaded_blas, "_small_kernels", request.param)
    monkeypatch.setattr(products, "LARGEST", 4000)
    products.piece.cache_clear()
    yield
    products.piece.cache_clear()


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@given(shapes, st.sampled_from([(), (1,), (3,)]), st.booleans(), st.booleans())
def test_products_of_matrices_and_stacks(shape, stack, transposed, to_out):
    (m, k, n), flip = shape, lambda x: np.ascontiguousarray(x.swapaxes(-2, -1)).swapaxes(-2, -1)
    a, b = draw(*stack, m, k), draw(*stack, k, n)
    a, b = (flip(x) if transposed else x for x in (a, b))
    out = np.empty((*stack, m, 2 * n))[..., ::2] if to_out else None
    result = products.multiply(a, b, out)
    assert out is None or result is out
    np.testing.assert_allclose(result, a @ b, rtol=1e-10, atol=1e-10)


@given(st.integers(1, 3000), st.integers(1, 30), st.integers(1, 30), st.sampled_from([(), (2,)]))
def test_sums_over_many_rows(rows, m, n, stack):
    a, b = draw(*stack, rows, m), draw(*stack, rows, n)
    np.testing.assert_allclose(products.multiply_rows(a, b), a.swapaxes(-2, -1) @ b, rtol=1e-10, atol=1e-9)


def test_pieces(monkeypatch):
    monkeypatch.setattr(products, "LARGEST", MEASURED)
    assert products.piece(192, 128, 128) == (48, 128)  # all columns
    assert products.piece(64, 512, 512) == (32, 32)  # the squarest of the largest
    assert products.piece(7, 500, 1009) is None  # two primes: no piece is large enough
    assert products.piece(40, 10, 48_000)[1] % products.ALIGNED == 0
    assert products.largest_divisor(90, 44) == 30 and products.largest_divisor(7, 0) == 0


def test_deep_sums_stay_whole(monkeypatch):
    """The kernels for small matrices would lose digits."""
    monkeypatch.setattr(products, "LARGEST", MEASURED)
    a, b = draw(64, products.DEEPEST + 1).astype("float32"), draw(products.DEEPEST + 1, 64).astype("float32")
    assert np.array_equal(products.multiply(a, b), a @ b)


def test_only_large_products_are_cut(monkeypatch):
    monkeypatch.setattr(single_threaded_blas, "_small_kernels", True)
    for shape, asked in (((20, 10, 20), 0), ((40, 10, 10), 0), ((40, 10, 11), 1), ((2001, 1, 2), 2), ((2, 1, 2000), 2)):
        products.multiply(draw(*shape[:2]), draw(*shape[1:]))
        assert products.piece.cache_info().misses == asked


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 5, 1), (1, 500, 30)], ids=str)
def test_products_with_a_vector_say_nothing_of_invalid_numbers(shape):
    # The flag means nothing: a kernel of OpenBLAS raises it for finite numbers.
    m, k, n = shape
    a, b = np.full((m, k), np.inf, np.float32), draw(k, n).astype(np.float32)
    b[0], b[1] = 1, -1
    assert np.isnan(products.multiply(a, b)).all()
    assert np.isnan(products.multiply_rows(np.ascontiguousarray(a.T), b)).all()
