"""The leading singular vectors of a matrix that is known by its products alone.

A block Krylov method (Musco & Musco, NeurIPS 2015, arXiv 1504.05477) on MᵀM: a basis of rows grows
by one block for every product with M and one with Mᵀ, and what M does to the basis gives the best
approximations of M within it. Vectors are rows here: products with wide blocks of rows are
faster than those with tall blocks of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Inner = Callable[[Tensor, Tensor], Tensor]

# Rows this much shorter than before a projection, and directions of unit rows below this squared
# length, are its rounding.
_DEPENDENT = 1e-10
_ROUNDING = 1e-13


EXCESS = 1e-6
"""Largest excess of a residual over the least possible one, relative to it, that `converged`
leaves to further blocks."""


def euclidean(X: Tensor, Y: Tensor) -> Tensor:
    """(b, c) inner products of rows (b, n) with rows (c, n)."""
    return X @ Y.mT


class Krylov:
    """A growing basis of rows, and the singular values and vectors of M within it. All float64.

    Rows may be vectors as they are, or whatever stands for them linearly, with their ``inner``.

    Attributes:
        block: (b, n) orthonormal directions whose images are to be added next; none when the
            basis holds all that M can reach from its start.
    """

    def __init__(self, start: Tensor, inner: Inner = euclidean) -> None:
        """Begin with orthonormal rows (b, n); ``inner`` is that of rows and of their images."""
        self.block = start
        self._inner = inner
        self._basis = start[:0]
        self._images = start[:0]
        self._gram = start[:0, :0]
        self._values = self._vectors = self._gram
        self._rest = start[:0]

    def add(self, image: Tensor) -> None:
        """Take the block into the basis; ``image`` (b, m) is what M makes of its rows."""
        image = image.double()
        images = torch.cat([self._images.view(-1, image.shape[1]), image])
        size, more = len(self._gram), (0, len(image), 0, len(image))
        self._gram = torch.nn.functional.pad(self._gram, more)
        self._gram[size:] = self._inner(image, images)  # eigh reads the lower triangle alone
        self._basis, self._images = torch.cat([self._basis, self.block]), images
        self._values, self._vectors = torch.linalg.eigh(self._gram)

    def extend(self, back: Tensor) -> None:
        """Make the next block of what ``back`` (b, n), Mᵀ applied to the last image, has new."""
        back = back.double()
        self._rest = back - self._inner(back, self._basis) @ self._basis
        sizes = _norms(back, self._inner)
        self.block = orthonormal(self._rest, self._basis, self._inner, sizes=sizes)

    @property
    def size(self) -> int:
        """Dimensions of the basis."""
        return len(self._basis)

    def captured(self, k: int) -> float:
        """The sum of the ``k`` largest squared singular values within the basis."""
        return float(self._values[-k:].clamp_min(0).sum())

    def sigma(self, k: int) -> Tensor:
        """(k,) the largest singular values within the basis, descending."""
        return self._values[-k:].flip(0).clamp_min(0).sqrt()

    def residuals(self, k: int) -> Tensor:
        """(k,) norms of MᵀM v - sigma² v for the right vectors v that belong to `sigma`."""
        last = self._vectors[len(self._vectors) - len(self._rest) :, -k:].flip(1)
        return _norms(last.mT @ self._rest, self._inner)

    def vectors(self, k: int) -> tuple[Tensor, Tensor]:
        """Rows sigma u (k, m) and v (k, n) of the largest singular values, descending."""
        W = self._vectors[:, -k:].flip(1).mT
        return W @ self._images, W @ self._basis


def orthonormal(
    X: Tensor,
    basis: Tensor | None = None,
    inner: Inner = euclidean,
    *,
    sizes: Tensor | None = None,
) -> Tensor:
    """Orthonormal rows that span what of X's rows is new to an orthonormal basis.

    Through the eigenvectors of their Gram matrix (SVQB; Stathopoulos & Wu 2002), twice: unlike
    a QR factorisation it leaves out dependent rows and nothing else.

    Args:
        X: (b, n) float64.
        basis: (p, n) orthonormal rows; None for none.
        inner: Inner products of rows.
        sizes: (b,) norms of what the rows were before a projection; None for their own.
    """
    sizes = _norms(X, inner) if sizes is None else sizes
    for _ in range(2):
        X = X if basis is None else X - inner(X, basis) @ basis
        norms = _norms(X, inner)
        new = norms > _DEPENDENT * sizes
        X = X[new] / norms[new, None]
        values, vectors = torch.linalg.eigh(inner(X, X))
        kept = values > _ROUNDING
        X = (vectors[:, kept] / values[kept].sqrt()).mT @ X
        sizes = torch.ones(len(X), dtype=X.dtype, device=X.device)
    return X


def converged(captured: Sequence[float], energy: float, rounding: float) -> bool:
    """Whether what further blocks would capture is below the tolerance.

    Args:
        captured: What each block so far brought the sum of the wanted squared singular values to.
        energy: The squared Frobenius norm of M.
        rounding: Share of ``energy`` that is rounding.
    """
    gains = [b - a for a, b in pairwise(captured)]
    left = max(0.0, energy - captured[-1])
    if left <= rounding * energy or not gains:
        return left <= rounding * energy
    # Gains shrink at least geometrically, as a rule ever faster.
    ratio = gains[-1] / gains[-2] if len(gains) > 1 and gains[-2] > 0 else 0.5
    predicted = gains[-1] * ratio / (1 - min(ratio, 0.95))
    return predicted <= max(2 * EXCESS * left, rounding * energy)


def _norms(X: Tensor, inner: Inner) -> Tensor:
    """(b,) norms of rows."""
    return inner(X, X).diagonal().clamp_min(0).sqrt()
