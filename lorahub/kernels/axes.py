"""Rules of the core space that depend on its axes: singular directions, and entries along them.

All of it is float64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lorahub.kernels.batched import products
from lorahub.kernels.core import NEGLIGIBLE, ROUNDING, CoreSpace, both_sides, non_zero, svd
from lorahub.kernels.selection import kth_smallest
from lorahub.kernels.stack import Stack

Axes = tuple[Tensor, Tensor]
"""Left and right directions as columns, (m, R, R) each; those of no length are zero."""


def axes_of_deltas(space: CoreSpace) -> Axes:
    """Singular vectors of the deltas side by side (left) and on top of each other (right).

    They depend on the deltas alone, not on how those are split into factors. Axes of no length
    are zero.
    """
    (U, left, _), (V, right, _) = map(svd, both_sides(space))
    return U * non_zero(left, space)[:, None, :], V * non_zero(right, space)[:, None, :]


def axes_of_factors(stack: Stack, space: CoreSpace) -> Axes:
    """Singular vectors of the stacked B and of the stacked A, coefficients split evenly.

    They depend on how each delta is split into factors, beyond permutations and signs of ranks.
    Axes of no length are zero.
    """
    (U, left), (V, right) = _factors_svd(stack, space)
    return (
        U * (left > left[:, :1] * NEGLIGIBLE)[:, None, :],
        V * (right > right[:, :1] * NEGLIGIBLE)[:, None, :],
    )


def _factors_svd(stack: Stack, space: CoreSpace) -> list[tuple[Tensor, Tensor]]:
    """Singular vectors and values of the stacked B and of the stacked A, in the bases."""
    half = stack.coefficients.abs().sqrt()
    both = zip((space.left, space.right.mT), stack.precise_grams, strict=True)
    # The transposed basis times the Gram matrix: the stacked factors' coordinates.
    found = (svd(products(W.mT, gram) * half[:, None, :]) for W, gram in both)
    return [(U, sigma) for U, sigma, _ in found]


def calibrated(stack: Stack, space: CoreSpace) -> CoreSpace:
    """The cores with the directions that the stacked B has most of scaled down, as in Pico.

    A left direction that holds the share c of the squared norm of the stacked B is multiplied
    by 1 / (1 + (T - 1) c).
    """
    U, sigma = _factors_svd(stack, space)[0]
    energy = sigma.square()
    share = energy / energy.sum(-1, keepdim=True).clamp_min(1e-300)
    alpha = 1 / (1 + (len(space.columns) - 1) * share)
    damping = products(U * alpha[:, None, :], U.mT)
    return replace(space, columns=tuple(products(damping, column) for column in space.columns))


def projected_sum(space: CoreSpace, axes: Axes) -> Tensor:
    """The sum of the cores, projected onto ``axes``."""
    return _restored(axes, products(products(axes[0].mT, space.total), axes[1]))


def ties(space: CoreSpace, axes: Axes, density: float) -> Tensor:
    """TIES on the entries of the cores along ``axes``: trim, elect a sign, average what agrees.

    Per adapter the share ``density`` of the entries is kept, by magnitude (at least one; of the
    entries between axes that are not zero). The sign with the larger mass is elected; where the
    masses balance there is none. Every entry is the mean of the kept ones of the elected sign.
    """
    pairs = zip(space.columns, space.rows, strict=True)
    seen = ((products(axes[0].mT, column), products(axes[1].mT, row)) for column, row in pairs)
    cores = torch.stack([products(column, row.mT) for column, row in seen])
    # Rounding has a sign too, and would be counted in the means.
    cores = torch.where(cores.abs() > space.rounding[:, None, None], cores, 0.0)
    count = (density * _length(axes[0]) * _length(axes[1])).long().clamp_min(1)
    size = cores.shape[-2] * cores.shape[-1]
    bounds = [
        kth_smallest(magnitudes, size - n + 1)
        for magnitudes, n in zip(cores.abs().flatten(-2).unbind(1), count.tolist(), strict=True)
    ]
    bound = torch.stack(bounds, 1)[..., None, None]
    kept = torch.where(cores.abs() >= bound, cores, 0.0)
    mass, whole = kept.sum(0), kept.abs().sum(0)
    elected = torch.where(mass.abs() > whole * ROUNDING, mass.sign(), 0.0)
    agree = kept * elected > 0
    return _restored(axes, (kept * agree).sum(0) / agree.sum(0).clamp_min(1))


def _restored(axes: Axes, core: Tensor) -> Tensor:
    """What is a core along ``axes``, in the bases of the core space."""
    return products(products(axes[0], core), axes[1].mT)


def _length(axes: Tensor) -> Tensor:
    """(m,): how many axes are not zero."""
    return (axes.square().sum(-2) > 0).sum(-1)
