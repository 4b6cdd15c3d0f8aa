"""Exact sums and best low-rank approximations, from factors alone.

With ``B = Q_B R_B`` and ``Aᵀ = Q_A R_A``, the sum ``B C A`` has the singular values of the
R x R core ``R_B C R_Aᵀ``. The fast path takes the core from the two Gram matrices, which are
thin products, and one symmetric eigenproblem; where B's columns are nearly dependent (equal
adapters, R > d_out) a QR in float64 replaces it. Neither ever forms a d_out x d_in matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorahub.kernels.stack import Factors, Stack

# The Gram matrices are rounded to about 1e-7 of their norm, which the Cholesky factor of nearly
# dependent columns amplifies. Down to this pivot the truncated sum stays within about 1e-6 of
# the true one (measured on spectra with gaps of a percent); below it the QR path takes over.
_SMALLEST_PIVOT = 0.05


def balanced_split(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Split coefficients ``c`` as ``left * right``, balanced, with ``right`` a power of two.

    One side then scales without rounding in any binary dtype, and both do where ``c`` is itself
    a power of two, so that bf16 factors with alpha = 2r come through a sum bit-exactly.
    The sign goes left. Zero gives (0, 1).
    """
    magnitude = coefficients.abs()
    exponent = torch.where(magnitude > 0, magnitude, 1.0).log2().div(2).round()
    right = exponent.exp2()
    return coefficients / right, right


def exact_sum(stack: Stack) -> Factors:
    """All ranks of all adapters side by side: the sum itself, at rank R."""
    left, right = balanced_split(stack.coefficients)
    return Factors(
        stack.B * left.to(stack.B.dtype)[:, None, :], stack.A * right.to(stack.A.dtype)[:, :, None]
    )


def best_approximation(
    stack: Stack, *, rank: int | None = None, energy: float | None = None
) -> Factors:
    """The nearest matrix of bounded rank to the sum, in Frobenius norm (Eckart-Young).

    Factors leave balanced, ``sqrt(sigma)`` on both sides, in order of descending singular
    values, so that any prefix of ranks is the best approximation of that lower rank.

    Args:
        stack: m modules.
        rank: Largest rank to keep; None keeps what the shapes allow.
        energy: Share (0..1] of the sum of squared singular values to keep, per module; the
            smallest rank that keeps it is chosen, within ``rank``. None keeps ``rank``.

    Returns:
        Factors with k = min(rank, R, d_in, d_out); ``ranks`` is set when ``energy`` is given.
    """
    total, d_out, d_in = stack.B.shape[2], stack.B.shape[1], stack.A.shape[2]
    k = min(total, d_out, d_in, rank or total)
    fast = _by_gram(stack, k) if total <= min(d_out, d_in) else None
    B, A, sigma = fast if fast is not None else _by_qr(stack, k)
    return Factors(B, A, None if energy is None else _ranks_for(sigma, energy, k))


def _ranks_for(sigma: Tensor, energy: float, k: int) -> tuple[int, ...]:
    kept = sigma.square().cumsum(-1)
    # A relative slack of 1e-12 keeps energy = 1 from asking for ranks that only hold rounding.
    enough = kept >= (energy * (1 - 1e-12)) * kept[:, -1:]
    first = enough.to(torch.uint8).argmax(-1) + 1
    return tuple(min(int(r), k) for r in first)


def _gram(X: Tensor) -> Tensor:
    return (X @ X.mT).double()


def _by_gram(stack: Stack, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(B', A', all singular values), or None where B's Gram matrix is too near singular."""
    gram_b = _gram(stack.B.mT)
    norms = gram_b.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = torch.where(norms > 0, norms, 1.0)
    correlation = gram_b / (unit[:, :, None] * unit[:, None, :])
    # A zero column adds nothing, whatever stands on its diagonal.
    correlation.diagonal(dim1=-2, dim2=-1).copy_(torch.ones_like(norms))
    L, failed = torch.linalg.cholesky_ex(correlation)
    pivots = L.diagonal(dim1=-2, dim2=-1)
    # Written so that NaN pivots, from NaN in the factors, also leave this path.
    if bool(failed.any()) or not bool((pivots >= _SMALLEST_PIVOT).all()):
        return None
    weights = stack.coefficients * norms
    # LᵀC: the core's left part; C A Aᵀ C in the middle.
    left = L.mT * weights[:, None, :]
    core = left @ _gram(stack.A) @ left.mT
    if not bool(torch.isfinite(core).all()):
        return None
    values, vectors = torch.linalg.eigh(core)
    sigma = values.flip(-1).clamp_min(0).sqrt()
    V = vectors.flip(-1)[:, :, :k]
    root = sigma[:, :k].sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    to_b = torch.linalg.solve_triangular(L.mT, V * root[:, None, :], upper=True)
    to_a = (V * inverse[:, None, :]).mT @ left
    to_b = to_b / unit[:, :, None]
    dtype = stack.B.dtype
    return stack.B @ to_b.to(dtype), to_a.to(dtype) @ stack.A, sigma


def _by_qr(stack: Stack, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B', A', all singular values) by Householder QR and an SVD of the core, in float64."""
    Q_B, R_B = torch.linalg.qr(stack.B.double())
    Q_A, R_A = torch.linalg.qr(stack.A.double().mT)
    U, sigma, Vh = torch.linalg.svd((R_B * stack.coefficients[:, None, :]) @ R_A.mT)
    n = sigma.shape[-1]
    root = sigma[:, :k].sqrt()
    B = Q_B @ (U[:, :, :n][:, :, :k] * root[:, None, :])
    A = (root[:, :, None] * Vh[:, :n][:, :k]) @ Q_A.mT
    return B.to(stack.B.dtype), A.to(stack.A.dtype), sigma
