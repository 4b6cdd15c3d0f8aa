"""The best low-rank approximation of one dense matrix.

By Krylov spaces where the rank is small beside the matrix: where a spectrum decays slowly, plain
power iterations would need many more passes over it, and a dense SVD costs its full cube.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.kernels.dense import balanced_factors, singular_values
from lorahub.kernels.krylov import Krylov, converged, orthonormal

_OVERSAMPLING = 8

# Ranks looked for at a time where their number is not known before.
_STEP = 40

# Up to this smaller side all eigenvectors of the Gram matrix cost no more than a few passes.
_SMALL = 512

# A basis wider than this share of the smaller side costs more than the dense way.
_WIDEST = 0.375

# Share of all energy that is rounding.
_ROUNDING = 1e-12

# Squared singular values this much below the first are the rounding of a float64 Gram matrix.
_ZERO = 1e-15


@dataclass(frozen=True, slots=True)
class Truncation:
    """A matrix M (m x n) cut to rank k.

    Attributes:
        left: U sqrt(S), (m, k) float64, ranks in order of descending singular values.
        right: sqrt(S) V^T, (k, n) float64.
        energy: Squared Frobenius norm of M.
        captured: Sum of the k squared singular values found.
    """

    left: Tensor
    right: Tensor
    energy: float
    captured: float

    @property
    def rank(self) -> int:
        """Number of ranks."""
        return self.left.shape[1]


def truncated(
    M: Tensor, *, rank: int | None = None, energy: float | None = None, seed: int
) -> Truncation:
    """The nearest matrix of bounded rank to a dense one, in Frobenius norm.

    The distance exceeds the least possible one by at most about 1e-6 of it, as predicted from
    the convergence of the method (measured: less). Zero singular values are left out.

    Args:
        M: (m, n) finite float32 or float64.
        rank: Largest rank; None is min(m, n).
        energy: Share (0..1] of the squared norm to keep: the smallest rank that keeps it is
            chosen, within ``rank``. None keeps ``rank``.
        seed: Seed of the starting directions.
    """
    total = float(torch.linalg.vector_norm(M, dim=1).double().square().sum())
    side = min(M.shape)
    most = min(rank or side, side)
    if total == 0:
        left, right = (M.new_empty(s, dtype=torch.float64) for s in ((len(M), 0), (0, len(M.mT))))
        return Truncation(left, right, 0.0, 0.0)
    found = None
    if side > _SMALL and (energy is not None or most + _OVERSAMPLING < _WIDEST * side):
        found = _leading(M, most, energy, total, seed)
    return found or _dense(M, most, energy, total)


def _dense(M: Tensor, most: int, energy: float | None, total: float) -> Truncation:
    """By all eigenvectors of the smaller Gram matrix."""
    squares = torch.from_numpy(singular_values(M)).square()
    k = min(most, int((squares > _ZERO * squares.amax()).sum()))
    k = min(k, _rank_for(squares, energy, total) or k)
    left, right = balanced_factors(M, k)
    return Truncation(left, right, total, float(squares[:k].sum()))


def _leading(
    M: Tensor, most: int, energy: float | None, total: float, seed: int
) -> Truncation | None:
    """By Krylov spaces; None where they would be too wide or do not converge."""
    generator = torch.Generator().manual_seed(seed)
    width = _OVERSAMPLING + (most if energy is None else min(most, _STEP))
    probes = torch.randn(width, M.shape[0], generator=generator, dtype=torch.float64)
    space = Krylov(orthonormal((probes.to(M.dtype) @ M).double()))
    spectra: list[Tensor] = []
    k = 0
    while len(space.block):
        image = space.block.to(M.dtype) @ M.mT
        space.add(image)
        spectra.append(space.sigma(space.size).square())
        k = min(_rank_for(spectra[-1], energy, total) or most, most)
        captured = [float(values[:k].sum()) for values in spectra]
        if k < space.size and converged(captured, total, _ROUNDING):
            break
        if space.size + width > _WIDEST * min(M.shape):
            return None
        space.extend(image @ M)
    sigma = space.sigma(k)
    k = int((sigma.square() > _ZERO * sigma[0].square()).sum())
    U, V = space.vectors(k)
    root = sigma[:k].sqrt()[:, None]
    return Truncation((U / root).mT, V * root, total, float(sigma[:k].square().sum()))


def _rank_for(squares: Tensor, energy: float | None, total: float) -> int | None:
    """The first rank whose squared singular values hold that share of ``total``, if one does."""
    if energy is None:
        return None
    # The slack keeps energy = 1 from asking for ranks that only hold rounding.
    enough = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    return int(enough.to(torch.uint8).argmax()) + 1 if bool(enough.any()) else None
