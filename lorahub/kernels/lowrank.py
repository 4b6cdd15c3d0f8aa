"""Exact sums and best low-rank approximations, from the factors' Gram matrices alone.

With ``B = Q_B R_B`` and ``Aᵀ = Q_A R_A``, the sum ``B C A`` has the singular values of the
R x R core ``R_B C R_Aᵀ``. The fast path takes the core from the two Gram matrices, which are
thin products, and one symmetric eigenproblem; where B's columns are nearly dependent (equal
adapters, R > d_out) Gram matrices in float64 and their eigenvectors replace it. A few singular
vectors of many ranks come from products with the Gram matrices, without the core, whose
factorisations are cubic in R. None of them ever forms a d_out x d_in matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lorahub.kernels.batched import factorised, gram, products
from lorahub.kernels.blas import one_thread
from lorahub.kernels.krylov import Krylov, orthonormal
from lorahub.kernels.stack import Factors, Mix, Stack

# The Gram matrices are rounded to about 1e-7 of their norm, which the Cholesky factor of nearly
# dependent columns amplifies. Down to this pivot the truncated sum stays within about 1e-6 of
# the true one (measured on spectra with gaps of a percent); below it the float64 path takes over.
_SMALLEST_PIVOT = 0.05

# From this size on, finding a few eigenvectors costs less than finding all (measured: 2.2 times
# at 256, 3.9 times at 1024, for 16 of them), and leaving out zeros pays.
_FEW_FROM = 192

# Rounding of a float32 Gram matrix, as a share of the largest singular value.
_FLOOR = 1e-4

# From this many times the rank, with what is spare, on, a few singular vectors are cheaper found
# by products with the Gram matrices than through the core (measured at 768 for 16 of them).
_MANY_TIMES = 24
_SPARE = 8
_MOST_STEPS = 14

# They are as good as the Gram matrices when they are those of a matrix so near the sum, relative
# to its norm, and when their coefficients of unit columns, squared and added up, amplify the
# rounding of the Gram matrices no more than this (measured: to within 2e-7 times that).
_BACKWARD = 1e-7
_LARGEST_COEFFICIENTS = 4.0

# Directions of unit columns below this squared length are the rounding of a float64 Gram matrix.
_NEGLIGIBLE = 1e-14


def balanced_split(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Split coefficients ``c`` as ``left * right``, balanced, with ``right`` a power of two.

    One side then scales without rounding in any binary dtype, and both do where ``c`` is itself
    a power of two, so that bf16 factors with alpha = 2r come through a sum bit-exactly.
    The sign goes left. Zero gives (0, 1).
    """
    # Exact, where the last bit of a logarithm would depend on the place in memory.
    exponent = torch.frexp(torch.where(coefficients == 0, 1.0, coefficients)).exponent
    right = exponent.div(2, rounding_mode="floor").double().exp2()
    return coefficients / right, right


def exact_sum(stack: Stack) -> Mix:
    """All ranks of all adapters side by side: the sum itself, at rank R."""
    return Mix(*balanced_split(stack.coefficients))


def best_approximation(
    stack: Stack, *, rank: int | None = None, energy: float | None = None
) -> Mix:
    """The nearest matrix of bounded rank to the sum, in Frobenius norm (Eckart-Young).

    Factors leave balanced, ``sqrt(sigma)`` on both sides, in order of descending singular
    values, so that any prefix of ranks is the best approximation of that lower rank.

    Args:
        stack: m modules.
        rank: Largest rank to keep; None keeps what the shapes allow.
        energy: Share (0..1] of the sum of squared singular values to keep, per module; the
            smallest rank that keeps it is chosen, within ``rank``. None keeps ``rank``.

    Returns:
        A mix with k = min(rank, R, d_in, d_out); ``ranks`` is set when ``energy`` is given.
    """
    m, d_out, total = stack.B.shape
    d_in = stack.A.shape[2]
    k = min(total, d_out, d_in, rank or total)
    few = k if energy is None else total
    cpu, tall = stack.B.device.type == "cpu", total <= min(d_out, d_in)
    many = cpu and few + _SPARE <= total / _MANY_TIMES
    fast = _by_krylov(stack, k) if many and m == 1 else None
    if fast is None and tall and not (many and m > 1):
        fast = _by_cholesky(stack, k, few)
    if fast is None and m > 1 and (cpu or tall):
        # Which path a module takes, and how its numbers round, must not depend on the others.
        ones = (stack.module(i) for i in range(m))
        return _joined([best_approximation(one, rank=rank, energy=energy) for one in ones])
    left, right, sigma = fast or _by_whitening(stack, torch.diag_embed(stack.coefficients), k)
    ranks = None if energy is None else _ranks_for(sigma, energy, k)
    # Contiguous as joined ones are: products of transposed matrices round otherwise.
    left, right = left.contiguous(), right.contiguous()
    return Mix(left, right, ranks, sigma[:, :k], precise=(fast is None,) * m)


def _joined(mixes: Sequence[Mix]) -> Mix:
    """Balanced mixtures of one width, module after module."""
    left, right = torch.cat([x.left for x in mixes]), torch.cat([x.right for x in mixes])
    sigma = torch.cat([x.sigma for x in mixes if x.sigma is not None])
    ranks = tuple(r for x in mixes for r in x.ranks or ())
    return Mix(left, right, ranks or None, sigma, precise=sum((x.precise for x in mixes), ()))


def canonical(stack: Stack, mix: Mix | Factors) -> Mix | Factors:
    """The same merged deltas with balanced ranks in order of descending singular values."""
    if mix.sigma is not None:
        return mix
    if isinstance(mix, Factors):
        B, A = mix.B.double(), mix.A.double()
        one = torch.eye(mix.width, dtype=B.dtype, device=B.device)
        left, right, sigma = factored(gram(B.mT), gram(A), one)
        B, A = products(B, left), products(right, A)
        return Factors(B.to(mix.B.dtype), A.to(mix.A.dtype), mix.ranks, sigma)
    k = min(mix.left.shape[-1], stack.B.shape[1], stack.A.shape[2])
    left, right, sigma = _by_whitening(stack, mix.matrix(), k)
    return Mix(
        left, right, mix.ranks, sigma[:, :k], precise=(True,) * len(left), reports=mix.reports
    )


def whitened(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(W, K) for columns X with Gram matrix ``gram``: X W orthonormal, X W K = X.

    Both are (m, R, R) float64. Dependent columns give W columns and K rows of zeros.
    """
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    unit = torch.where(norms > 0, norms, 1.0)
    scaled = gram / (unit[:, :, None] * unit[:, None, :])
    values, vectors = factorised(torch.linalg.eigh, scaled)
    values, vectors = values.flip(-1), vectors.flip(-1)
    kept = values > _NEGLIGIBLE * gram.shape[-1] * values[:, :1].clamp_min(1e-300)
    root = torch.where(kept, values, 0.0).sqrt()
    inverse = torch.where(kept, 1 / torch.where(kept, root, 1.0), 0.0)
    W = vectors * inverse[:, None, :] / unit[:, :, None]
    K = (vectors * root[:, None, :]).mT * norms[:, None, :]
    return W, K


def _by_krylov(stack: Stack, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(left, right, k singular values) of a module without the core, or None if it needs it."""
    found = _leading_of_sum(stack.gram_b[0], stack.gram_a[0], stack.coefficients[0], k)
    return found and (found[0][None], found[1][None], found[2][None])


def _leading_of_sum(
    gram_b: Tensor, gram_a: Tensor, c: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Left (R, k), right (k, R) and sigma (k,) of ``B @ diag(c) @ A``, if they converge.

    A vector is the row of its coefficients of B's columns, or of A's rows, and beside them their
    products with the Gram matrix, from which its inner products follow.
    """
    R = len(c)

    def vectors(coefficients: Tensor, gram: Tensor) -> Tensor:
        return torch.cat([coefficients, coefficients @ gram], 1)

    def inner(X: Tensor, Y: Tensor) -> Tensor:
        return X[:, :R] @ Y[:, R:].mT

    # From any start it is the same but for rounding: the seed need not be the recipe's.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(k + _SPARE, R, generator=generator, dtype=c.dtype)
    # One step from random vectors on the left: nothing is in it that M cannot reach.
    start = vectors(start @ gram_b * c, gram_a)
    space = Krylov(orthonormal(start, inner=inner), inner)
    for _ in range(_MOST_STEPS):
        image = vectors(space.block[:, R:] * c, gram_b)
        if not bool(torch.isfinite(image.sum())):
            return None
        space.add(image)
        space.extend(vectors(image[:, R:] * c, gram_a))
        sigma = space.sigma(k)
        if len(sigma) < k:
            return None
        if bool((space.residuals(k) <= _BACKWARD * sigma[0] * sigma).all()):
            break
    else:
        return None
    U, V = (rows[:, :R] for rows in space.vectors(k))
    root = sigma.sqrt()[:, None]
    left, right = U / root, V * root
    sizes = [
        (x.square() / sigma[:, None] * gram.diagonal()).sum(1).amax()
        for x, gram in ((left, gram_b), (right, gram_a))
    ]
    # Written so that NaN, from a sigma of zero, does not pass.
    return (left.mT, right, sigma) if bool(max(sizes) <= _LARGEST_COEFFICIENTS) else None


def _ranks_for(sigma: Tensor, energy: float, k: int) -> tuple[int, ...]:
    kept = sigma.square().cumsum(-1)
    # A relative slack of 1e-12 keeps energy = 1 from asking for ranks that only hold rounding.
    enough = kept >= (energy * (1 - 1e-12)) * kept[:, -1:]
    first = enough.to(torch.uint8).argmax(-1) + 1
    return tuple(min(int(r), k) for r in first)


def _by_cholesky(stack: Stack, k: int, few: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(left, right, ``few`` singular values), or None where B's columns are nearly dependent."""
    found = stack.remembered("triangle", lambda: _triangle(stack.gram_b))
    if found is None:
        return None
    L, norms = found
    # LᵀC: the core's left part; C A Aᵀ C in the middle.
    outer = L.mT * (stack.coefficients * norms)[:, None, :]
    core = _sandwiched(outer, stack.gram_a)
    if not bool(torch.isfinite(core.sum())):
        return None
    values, V = _leading(core, few)
    sigma, V = values.clamp_min(0).sqrt(), V[:, :, :k]
    # The product is the same whatever ``root`` is, which only balances it. Below this floor a
    # singular value is rounding, and a negative one would lose the direction.
    root = torch.maximum(sigma, _FLOOR * sigma[:, :1])[:, None, :k].sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    (left,) = factorised(_solved, L.mT, V * root)
    return left / _or_one(norms)[:, :, None], products((V * inverse).mT, outer), sigma


def _solved(upper: Tensor, right: Tensor) -> tuple[Tensor]:
    return (torch.linalg.solve_triangular(upper, right, upper=True),)


def _triangle(gram_b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cholesky factor (m, R, R) of the correlations of B's columns, and their norms (m, R).

    None where they are nearly dependent.
    """
    norms = gram_b.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = _or_one(norms)
    correlation = gram_b / (unit[:, :, None] * unit[:, None, :])
    # A zero column adds nothing, whatever stands on its diagonal.
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    L, failed = factorised(torch.linalg.cholesky_ex, correlation)
    pivots = L.diagonal(dim1=-2, dim2=-1)
    # Written so that NaN pivots, from NaN in the factors, also leave this path.
    if bool(failed.any()) or not bool(pivots.amin() >= _SMALLEST_PIVOT):
        return None
    return L, norms


def _or_one(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, norms, 1.0)


def _sandwiched(U: Tensor, gram: Tensor) -> Tensor:
    """``U @ gram @ Uᵀ`` for upper triangular U, without the products by U's zeros."""
    R = U.shape[-1]
    if R < _FEW_FROM or U.device.type != "cpu":
        return products(products(U, gram), U.mT)
    upper = torch.empty_like(gram)
    for u, g, out in zip(U, gram, upper, strict=True):
        half = torch.cat([u[part, part.start :] @ g[part.start :] for part in _strips(R)])
        for part in _strips(R):
            rows = slice(0, part.stop)
            torch.mm(half[rows, part.start :], u[part, part.start :].mT, out=out[rows, part])
    return _mirrored(upper)


def _strips(size: int) -> Iterator[slice]:
    """Cuts of a triangular or symmetric matrix that leave out most of what is not needed."""
    step = max(32, size // 8)
    return (slice(j, min(j + step, size)) for j in range(0, size, step))


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrices whose upper triangles are given; the others are overwritten."""
    return upper.triu_() + upper.triu(1).mT


def _leading(core: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues (m, k) of symmetric matrices, descending, with eigenvectors."""
    R = core.shape[-1]
    if R < _FEW_FROM or 4 * k > R or core.device.type != "cpu":
        values, vectors = factorised(torch.linalg.eigh, core)
        return values.flip(-1)[:, :k], vectors.flip(-1)[:, :, :k]
    from scipy.linalg import eigh

    wanted = [R - k, R - 1]
    with one_thread("scipy.linalg"):
        found = [eigh(c, subset_by_index=wanted, check_finite=False) for c in core.numpy()]
    values = torch.stack([torch.from_numpy(v) for v, _ in found])
    vectors = torch.stack([torch.from_numpy(v) for _, v in found])
    return values.flip(-1), vectors.flip(-1)


def _by_whitening(stack: Stack, M: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(left, right, all singular values) of ``B @ M @ A``, with Gram matrices in float64."""
    left, right, sigma = _factored(*whitened_sides(stack), M)
    return left[:, :, :k], right[:, :k], sigma


def whitened_sides(stack: Stack) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`whitened` of B's columns and of A's rows, with Gram matrices in float64."""
    return stack.remembered(
        "whitened", lambda: (whitened(stack.precise_grams[0]), whitened(stack.precise_grams[1]))
    )


def factored(gram_b: Tensor, gram_a: Tensor, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Balanced singular factors of ``B @ M @ A`` from the Gram matrices of B and A.

    Args:
        gram_b: (m, R, R) float64, BᵀB.
        gram_a: (m, R, R) float64, AAᵀ.
        M: (m, R, R) or (R, R) float64.

    Returns:
        left (m, R, R), right (m, R, R) and sigma (m, R), descending: ``B @ left`` has the left
        singular vectors times sqrt(sigma) as columns, ``right @ A`` the right ones as rows.
    """
    return _factored(whitened(gram_b), whitened(gram_a), M)


def _factored(
    columns: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (W_b, K_b), (W_a, K_a) = columns, rows
    M = M.expand_as(K_b)
    U, sigma, Vh = factorised(torch.linalg.svd, products(products(K_b, M), K_a.mT))
    root = sigma.sqrt()
    left, right = products(W_b, U * root[:, None, :]), products(W_a, Vh.mT * root[:, None, :])
    return left, right.mT, sigma
