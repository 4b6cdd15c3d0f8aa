"""Weighted k-means on Gram matrices, batched over modules and restarts, with a sign gauge.

Distances between points and means of points are sums of inner products, so that Lloyd's
algorithm runs on the R x R Gram matrix and never touches the points again, however long they
are. Seeding is greedy k-means++ (Arthur & Vassilvitskii, SODA 2007) with 2 + log k trials a
step and empty clusters take the points that lie worst, both as scikit-learn's KMeans does it;
from the same initial centres the labels and the inertia are scikit-learn's.

With ``align`` a point and its negative are the same: every point joins the nearest of the
centres and their negatives, and is added to its mean with that sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.kernels.stack import products

MAX_STEPS = 300


@dataclass(frozen=True, slots=True)
class Clusters:
    """A clustering of R points in each of m modules.

    Attributes:
        labels: (m, R) int64, the cluster of every point.
        signs: (m, R) float64, 1 or -1: with which sign the point is added to its mean.
        inertia: (m,) float64, weighted sum of squared distances to the means.
    """

    labels: Tensor
    signs: Tensor
    inertia: Tensor


def cluster(
    gram: Tensor,
    weights: Tensor,
    k: int,
    *,
    seeds: Sequence[int],
    restarts: int = 10,
    align: bool = True,
) -> Clusters:
    """The best of ``restarts`` runs of Lloyd's algorithm in each module.

    Args:
        gram: (m, R, R) float64, inner products of the points.
        weights: (m, R) float64, non-negative; points of weight 0 move no mean.
        k: Number of clusters, at most the number of points with positive weight.
        seeds: One per module; a module's result depends on its own seed alone.
        restarts: Number of seeded starts.
        align: Whether a point and its negative count as the same.
    """
    centres = _seeding(gram, weights, k, seeds, restarts, align)
    return lloyd(gram, weights, _nearest_point(gram, centres, align), k, align=align)


def lloyd(
    gram: Tensor, weights: Tensor, start: tuple[Tensor, Tensor, Tensor], k: int, *, align: bool
) -> Clusters:
    """Lloyd's algorithm from given assignments; the restart of lowest inertia per module.

    Args:
        gram: (m, R, R) float64.
        weights: (m, R) float64.
        start: Of s starts, labels (m, s, R) int64, signs (m, s, R) and squared distances to the
            centres they came from (m, s, R).
        k: Number of clusters.
        align: Whether a point and its negative count as the same.
    """
    labels, signs, distances = start
    labels, signs = _fill_empty(labels, signs, weights, distances, k)
    counts = (weights > 0)[:, None]
    inertia = torch.full(labels.shape[:2], math.inf, dtype=gram.dtype, device=gram.device)
    for _ in range(MAX_STEPS):
        squares, cross = _distances(gram, weights, labels, signs, k)
        closeness = 2 * cross.abs() if align else 2 * cross
        nearest, new = (squares - closeness).min(-1)
        own = gram.diagonal(dim1=-2, dim2=-1)[:, None]
        lowered = (weights[:, None] * (nearest + own).clamp_min(0)).sum(-1)
        sign = torch.ones_like(signs)
        if align:
            sign = sign_of(cross.gather(-1, new[..., None])[..., 0])
        changed = (new != labels) | (sign != signs)
        moved = (changed & counts).any(-1) & (lowered < inertia)
        if not bool(moved.any()):
            break
        # A start that has come to rest stays as it is, whatever the others still do.
        inertia = torch.where(moved, lowered, inertia)
        labels = torch.where(moved[..., None], new, labels)
        signs = torch.where(moved[..., None], sign, signs)
        labels, signs = _fill_empty(labels, signs, weights, nearest + own, k)
    squares, cross = _distances(gram, weights, labels, signs, k)
    index = labels[..., None]
    to_mean = squares.expand_as(cross).gather(-1, index) - 2 * signs[..., None] * cross.gather(
        -1, index
    )
    own = gram.diagonal(dim1=-2, dim2=-1)[:, None]
    total = (weights[:, None] * (to_mean[..., 0] + own).clamp_min(0)).sum(-1)
    best = total.argmin(-1)
    row = torch.arange(len(best), device=best.device)
    return Clusters(labels[row, best], signs[row, best], total[row, best])


def sign_of(x: Tensor) -> Tensor:
    """1 or -1 in the dtype of ``x``; zero counts as positive."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def _distances(
    gram: Tensor, weights: Tensor, labels: Tensor, signs: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Squared norms of the means, inf where empty, and inner products of points and means.

    The first are (m, s, 1, k), the second (m, s, R, k).
    """
    m, s, R = labels.shape
    members = torch.zeros(m, s, R, k, dtype=gram.dtype, device=gram.device)
    members.scatter_(-1, labels[..., None], (weights[:, None] * signs)[..., None])
    mass = members.abs().sum(-2, keepdim=True)
    means = members / torch.where(mass > 0, mass, 1.0)
    flat = means.permute(0, 2, 1, 3).reshape(m, R, s * k)
    cross = products(gram, flat).view(m, R, s, k).permute(0, 2, 1, 3)
    squares = (means * cross).sum(-2, keepdim=True)
    return torch.where(mass > 0, squares, math.inf), cross


def _fill_empty(
    labels: Tensor, signs: Tensor, weights: Tensor, distances: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Give every empty cluster the point that lies farthest from its mean, and so on."""
    present = torch.zeros(*labels.shape[:2], k, dtype=labels.dtype, device=labels.device)
    present.scatter_add_(-1, labels, (weights[:, None] > 0).to(labels.dtype).expand_as(labels))
    empty = present == 0
    if not bool(empty.any()):
        return labels, signs
    labels = labels.clone()
    for m, s in empty.any(-1).nonzero().tolist():
        far = torch.where(weights[m] > 0, distances[m, s], -1.0).argsort(
            descending=True, stable=True
        )
        for cluster_, point in zip(
            empty[m, s].nonzero()[:, 0].tolist(), far.tolist(), strict=False
        ):
            labels[m, s, point] = cluster_
    return labels, signs


def _nearest_point(gram: Tensor, centres: Tensor, align: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, signs and squared distances for centres that are themselves points (m, s, k)."""
    rows = torch.arange(gram.shape[0], device=gram.device)[:, None, None]
    cross = gram[rows, centres].mT
    squares = gram.diagonal(dim1=-2, dim2=-1)[rows, centres][:, :, None]
    nearest, labels = (squares - 2 * (cross.abs() if align else cross)).min(-1)
    picked = cross.gather(-1, labels[..., None])[..., 0]
    signs = sign_of(picked) if align else torch.ones_like(picked)
    return labels, signs, nearest + gram.diagonal(dim1=-2, dim2=-1)[:, None]


def _seeding(
    gram: Tensor, weights: Tensor, k: int, seeds: Sequence[int], restarts: int, align: bool
) -> Tensor:
    """Greedy k-means++: points (m, restarts, k) to start from."""
    m, R, _ = gram.shape
    trials = 2 + int(math.log(k))
    # Drawn on the CPU, so that every device starts from the same points.
    draws = torch.stack(
        [
            torch.rand(
                restarts, k, trials, dtype=torch.float64,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in seeds
        ]
    ).to(gram.device)  # fmt: skip
    own = gram.diagonal(dim1=-2, dim2=-1)
    size = gram.abs() if align else gram
    apart = (own[:, :, None] + own[:, None, :] - 2 * size).clamp_min(0)
    row = torch.arange(m, device=gram.device)[:, None]
    chosen = torch.empty(m, restarts, k, dtype=torch.int64, device=gram.device)
    everywhere = weights[:, None].expand(m, restarts, R)
    chosen[:, :, 0] = _draw(everywhere, draws[:, :, 0, :1])[..., 0]
    nearest = apart[row, chosen[:, :, 0]]
    for c in range(1, k):
        candidates = _draw(weights[:, None] * nearest, draws[:, :, c])
        closer = torch.minimum(nearest[:, :, None], apart[row[..., None], candidates])
        best = (closer * weights[:, None, None]).sum(-1).argmin(-1, keepdim=True)
        chosen[:, :, c] = candidates.gather(-1, best)[..., 0]
        nearest = closer.gather(2, best[..., None].expand(-1, -1, -1, R))[:, :, 0]
    return chosen


def _draw(mass: Tensor, uniform: Tensor) -> Tensor:
    """Indices drawn in proportion to ``mass`` (..., R) by uniform numbers (..., n) in [0, 1)."""
    total = mass.cumsum(-1)
    index = torch.searchsorted(total, uniform * total[..., -1:], right=True)
    # Rounding can step past the last point that has any mass.
    last = (mass > 0).to(torch.uint8).cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(index, last)
