"""The best low-rank approximation of a matrix that is only multiplied, by a block Krylov method.

Musco & Musco, NeurIPS 2015, arXiv 1504.05477. Where a spectrum decays slowly, plain power
iterations would need many more passes over the matrix, and a dense SVD costs its full cube.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lorahub.kernels.dense import balanced_factors, singular_values

_OVERSAMPLING = 8

# Ranks looked for at a time where their number is not known before.
_STEP = 40

# Up to this smaller side all eigenvectors of the Gram matrix cost no more than a few passes.
_SMALL = 512

# A basis wider than this share of the smaller side costs more than the dense way.
_WIDEST = 0.375

# Largest excess of the residual over the least possible one, relative to it, that further passes
# may still be predicted to take away; and the share of all energy that is rounding.
_EXCESS = 1e-6
_ROUNDING = 1e-12

# Squared singular values this much below the first are the rounding of a float64 Gram matrix.
_ZERO = 1e-15

# Directions this much below the first ones are the rounding of a float64 projection.
_DEPENDENT = 1e-10


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
    probes = torch.randn(M.shape[0], width, generator=generator, dtype=torch.float64)
    basis = M.new_empty(M.shape[1], 0, dtype=torch.float64)
    images = M.new_empty(M.shape[0], 0, dtype=torch.float64)
    gram = basis[:0]
    V = _orthonormal((M.mT @ probes.to(M.dtype)).double(), basis)
    spectra: list[Tensor] = []
    while V.shape[1]:
        image = M @ V.to(M.dtype)
        back = M.mT @ image
        image = image.double()
        cross = images.mT @ image
        gram = torch.cat([torch.cat([gram, cross], 1), torch.cat([cross.mT, image.mT @ image], 1)])
        basis, images = torch.cat([basis, V], 1), torch.cat([images, image], 1)
        spectra.append(torch.linalg.eigvalsh(gram).flip(0).clamp_min(0))
        k = min(_rank_for(spectra[-1], energy, total) or most, most)
        if k < len(gram) and _converged(spectra, k, total):
            break
        if basis.shape[1] + width > _WIDEST * min(M.shape):
            return None
        V = _orthonormal(back.double(), basis)
    values, vectors = torch.linalg.eigh(gram)
    values = values.flip(0).clamp_min(0)
    k = min(k, int((values > _ZERO * values[0]).sum()))
    W, root = vectors.flip(1)[:, :k], values[:k].pow(0.25)
    return Truncation(images @ (W / root), (basis @ (W * root)).mT, total, float(values[:k].sum()))


def _rank_for(squares: Tensor, energy: float | None, total: float) -> int | None:
    """The first rank whose squared singular values hold that share of ``total``, if one does."""
    if energy is None:
        return None
    # The slack keeps energy = 1 from asking for ranks that only hold rounding.
    enough = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    return int(enough.to(torch.uint8).argmax()) + 1 if bool(enough.any()) else None


def _orthonormal(X: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what of X's columns (float64) is new to an orthonormal one."""
    X = X / torch.where((norms := X.norm(dim=0)) > 0, norms, 1.0)
    Q, R = torch.linalg.qr(X - basis @ (basis.mT @ X))
    new = Q[:, R.diagonal().abs() > _DEPENDENT]
    # What was almost inside the basis is not quite orthogonal to it before this.
    clean: Tensor = torch.linalg.qr(new - basis @ (basis.mT @ new)).Q
    return clean


def _converged(spectra: Sequence[Tensor], k: int, energy: float) -> bool:
    """Whether what further passes would capture at rank k is below the tolerance."""
    captured = [float(values[:k].sum()) for values in spectra]
    gains = [b - a for a, b in pairwise(captured)]
    left = max(0.0, energy - captured[-1])
    if left <= _ROUNDING * energy or not gains:
        return left <= _ROUNDING * energy
    # Gains shrink at least geometrically, as a rule ever faster.
    ratio = gains[-1] / gains[-2] if len(gains) > 1 and gains[-2] > 0 else 0.5
    predicted = gains[-1] * ratio / (1 - min(ratio, 0.95))
    return predicted <= max(2 * _EXCESS * left, _ROUNDING * energy)
