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

from lorahub.kernels.batched import products

MAX_STEPS = 300

# From this many points on, modules are clustered one by one, and no step is made for starts that
# are at rest.
_ALONE_FROM = 192


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

    Assignments are found in float32, the inertia at the end in float64.

    Args:
        gram: (m, R, R) float64.
        weights: (m, R) float64.
        start: Of s starts, labels (m, R, s) int64, signs (m, R, s) and squared distances to the
            centres they came from (m, R, s).
        k: Number of clusters.
        align: Whether a point and its negative count as the same.
    """
    m = len(gram)
    if m > 1 and _large(gram):
        parts = zip(gram.split(1), weights.split(1), *(x.split(1) for x in start), strict=True)
        found = [lloyd(g, w, (a, b, c), k, align=align) for g, w, a, b, c in parts]
        return Clusters(
            torch.cat([one.labels for one in found]),
            torch.cat([one.signs for one in found]),
            torch.cat([one.inertia for one in found]),
        )
    labels, signs = _at_rest(gram.float(), weights.float(), start, k, align)
    signs = signs.double()
    half, cross = _to_means(gram, weights, labels, signs, k)
    index = labels[..., None]
    half = half.expand_as(cross).gather(-1, index)[..., 0]
    cross = signs * cross.gather(-1, index)[..., 0]
    own = gram.diagonal(dim1=-2, dim2=-1)[:, :, None]
    total = (weights[:, :, None] * (own + 2 * (half - cross)).clamp_min(0)).sum(1)
    best = total.argmin(-1)
    row = torch.arange(m, device=best.device)
    return Clusters(labels[row, :, best], signs[row, :, best], total[row, best])


def _at_rest(
    gram: Tensor, weights: Tensor, start: tuple[Tensor, Tensor, Tensor], k: int, align: bool
) -> tuple[Tensor, Tensor]:
    """Labels and signs (m, R, s) that Lloyd's steps change no more."""
    labels, signs, distances = start
    labels, signs = _fill_empty(labels, signs.float(), weights, distances, k)
    own = gram.diagonal(dim1=-2, dim2=-1)[:, :, None]
    counts = (weights > 0)[:, :, None]
    alone = _large(gram)
    inertia = torch.full_like(labels[:, :1], math.inf, dtype=gram.dtype)
    rest = labels.clone(), signs.clone()
    busy = torch.arange(labels.shape[-1], device=gram.device)
    for _ in range(MAX_STEPS):
        half, cross = _to_means(gram, weights, labels, signs, k)
        nearest, new = (half - cross.abs() if align else half - cross).min(-1)
        distances = nearest.mul_(2).add_(own).clamp_min_(0)
        lowered = (weights[:, :, None] * distances).sum(1, keepdim=True)
        sign = sign_of(cross.gather(-1, new[..., None])[..., 0]) if align else signs
        changed = (new != labels) | (sign != signs)
        moved = (changed & counts).any(1, keepdim=True) & (lowered < inertia)
        if not bool(moved.any()):
            break
        # A start that has come to rest stays as it is, whatever the others still do.
        inertia = torch.where(moved, lowered, inertia)
        labels = torch.where(moved, new, labels)
        signs = torch.where(moved, sign, signs)
        if alone:
            on = moved.flatten()
            busy, distances = busy[on], distances[:, :, on]
            inertia, labels, signs = inertia[:, :, on], labels[:, :, on], signs[:, :, on]
        labels, signs = _fill_empty(labels, signs, weights, distances, k)
        rest[0][:, :, busy], rest[1][:, :, busy] = labels, signs
    return rest


def _large(gram: Tensor) -> bool:
    """Whether every module's starts are worth being dropped as they come to rest."""
    return gram.shape[-1] >= _ALONE_FROM and gram.device.type == "cpu"


def sign_of(x: Tensor) -> Tensor:
    """1 or -1 in the dtype of ``x``; zero counts as positive."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def _to_means(
    gram: Tensor, weights: Tensor, labels: Tensor, signs: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Half the squared norms of the means, inf where empty, and points' products with means.

    The first are (m, 1, s, k), the second (m, R, s, k).
    """
    m, R, s = labels.shape
    members = torch.zeros(m, R, s, k, dtype=gram.dtype, device=gram.device)
    members.scatter_(-1, labels[..., None], (weights[:, :, None] * signs)[..., None])
    mass = members.abs().sum(1, keepdim=True)
    means = members.div_(torch.where(mass > 0, mass, 1.0))
    cross = products(gram, means.view(m, R, s * k)).view(m, R, s, k)
    half = (means * cross).sum(1, keepdim=True).div_(2)
    return torch.where(mass > 0, half, math.inf), cross


def _fill_empty(
    labels: Tensor, signs: Tensor, weights: Tensor, distances: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Give every empty cluster the point that lies farthest from its mean, and so on."""
    m, R, s = labels.shape
    present = torch.zeros(m, R, s, k, dtype=torch.bool, device=labels.device)
    present.scatter_(-1, labels[..., None], (weights[:, :, None, None] > 0).expand(m, R, s, 1))
    empty = ~present.any(1)
    if not bool(empty.any()):
        return labels, signs
    labels = labels.clone()
    for i, j in empty.any(-1).nonzero().tolist():
        far = torch.where(weights[i] > 0, distances[i, :, j], -1.0)
        order = far.argsort(descending=True, stable=True).tolist()
        for point, mean in zip(order, empty[i, j].nonzero()[:, 0].tolist(), strict=False):
            labels[i, point, j] = mean
    return labels, signs


def _nearest_point(gram: Tensor, centres: Tensor, align: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, signs and squared distances for centres that are themselves points (m, s, k)."""
    rows = torch.arange(gram.shape[0], device=gram.device)[:, None, None]
    cross = gram[rows, centres].permute(0, 3, 1, 2)
    own = gram.diagonal(dim1=-2, dim2=-1)
    squares = own[rows, centres][:, None]
    nearest, labels = (squares - 2 * (cross.abs() if align else cross)).min(-1)
    picked = cross.gather(-1, labels[..., None])[..., 0]
    signs = sign_of(picked) if align else torch.ones_like(picked)
    return labels, signs, nearest + own[:, :, None]


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
