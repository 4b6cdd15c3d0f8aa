"""Products, Gram matrices and factorisations of batches: right, and the same bits alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorahub.kernels.batched import factorised, gram, products
from lorahub.kernels.lowrank import best_approximation
from lorahub.kernels.stack import Stack

SIDES = st.integers(1, 70) | st.sampled_from([8, 16, 32, 48, 64, 96, 128])
LONG = st.integers(1, 300) | st.sampled_from([256, 1000, 1024])
DTYPES = st.sampled_from([torch.float32, torch.float64])


def batch(seed: int, m: int, rows: int, columns: int, dtype: torch.dtype, tall: bool) -> Tensor:
    """(m, rows, columns) of values in [-1, 1), ``tall`` as it lies in memory or not."""
    generator = torch.Generator().manual_seed(seed)
    shape = (m, columns, rows) if tall else (m, rows, columns)
    X = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    return X.mT if tall else X


def alone(X: Tensor, i: int) -> Tensor:
    """Matrix i in a batch and memory of its own, laid out as in ``X``."""
    return X[i : i + 1].clone()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), SIDES, LONG, SIDES, DTYPES, DTYPES, st.booleans())
@example(0, 3, 4096, 64, 1, torch.float32, torch.float32, False)  # where MKL takes another path
@example(0, 3, 1, 64, 4096, torch.float32, torch.float32, True)
def test_products_are_right_and_the_same_alone(
    seed: int,
    m: int,
    rows: int,
    inner: int,
    columns: int,
    left: torch.dtype,
    right: torch.dtype,
    tall: bool,
) -> None:
    X = batch(seed, m, rows, inner, left, tall)
    Y = batch(seed + 1, m, inner, columns, right, not tall)
    found, wanted = products(X, Y), X.double() @ Y.double()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * inner)
    for i in range(m):
        assert torch.equal(products(alone(X, i), alone(Y, i))[0], found[i])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), SIDES, LONG, DTYPES, st.booleans(), st.booleans())
def test_gram_matrices_are_right_and_the_same_alone(
    seed: int, m: int, rows: int, inner: int, dtype: torch.dtype, tall: bool, precise: bool
) -> None:
    X = batch(seed, m, rows, inner, dtype, tall)
    found, wanted = gram(X, precise=precise), X.double() @ X.double().mT
    exact = precise or dtype == torch.float64
    tolerance = (1e-14 if exact else 1e-6) * inner
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    assert torch.equal(found, found.mT)
    for i in range(m):
        assert torch.equal(gram(alone(X, i), precise=precise)[0], found[i])


@pytest.mark.parametrize(
    "function", [torch.linalg.eigh, torch.linalg.svd, torch.linalg.cholesky_ex]
)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), m=st.integers(1, 5), size=SIDES)
def test_factorisations_are_the_same_alone(
    function: Callable[[Tensor], tuple[Tensor, ...]], seed: int, m: int, size: int
) -> None:
    X = gram(batch(seed, m, size, 2 * size, torch.float64, tall=False))
    found = factorised(function, X)
    assert all(part.is_contiguous() for part in found)
    for i in range(m):
        one = factorised(function, alone(X, i))
        assert all(torch.equal(x[0], y[i]) for x, y in zip(one, found, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    ranks=st.lists(st.integers(1, 24), min_size=2, max_size=4),
    dependent=st.lists(st.booleans(), min_size=2, max_size=4),
    energy=st.none() | st.just(0.7),
)
def test_an_approximation_is_the_same_beside_modules_that_take_another_path(
    seed: int, ranks: list[int], dependent: list[bool], energy: float | None
) -> None:
    m, total = len(dependent), sum(ranks)
    B = batch(seed, m, 136, total, torch.float32, tall=False)
    A = batch(seed + 1, m, total, 120, torch.float32, tall=False)
    for i, equal in enumerate(dependent):
        if equal:  # the last column is the first, but for the last bits
            B[i, :, -1] = B[i, :, 0] * (1 + 1e-6)
    coefficients = torch.full((m, total), 0.5, dtype=torch.float64)

    def stack(part: slice) -> Stack:
        return Stack(
            B[part].clone(),
            A[part].clone(),
            coefficients[part].clone(),
            tuple(ranks),
            (1.0,) * len(ranks),
            tuple(range(m))[part],
        )

    rank = min(8, total)
    whole = stack(slice(None))
    mix = best_approximation(whole, rank=rank, energy=energy)
    together = mix.apply(whole)
    for i in range(m):
        one = stack(slice(i, i + 1))
        own = best_approximation(one, rank=rank, energy=energy)
        assert own.precise == mix.precise[i : i + 1]
        assert own.ranks is None or own.ranks == (mix.ranks or ())[i : i + 1]
        factors = own.apply(one)
        assert torch.equal(factors.B[0], together.B[i])
        assert torch.equal(factors.A[0], together.A[i])
        U, sigma, Vh = torch.linalg.svd(0.5 * B[i].double() @ A[i].double())
        best = U[:, :rank] * sigma[:rank] @ Vh[:rank]
        error = torch.linalg.norm(factors.B[0].double() @ factors.A[0].double() - best)
        assert error <= 1e-5 * torch.linalg.norm(best)
