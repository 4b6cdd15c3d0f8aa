"""LoRA-LEGO's minimal semantic units and their clusters, from Gram matrices alone.

A unit is one row of A with the column of B that belongs to it, one vector [a ; b] (Zhao et al.,
ICLR 2025, arXiv 2409.16167). Here a unit is folded: scaling and the sign of the weight are part
of it, and both halves have the same norm, the root of the norm of its term b aᵀ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from lorahub.kernels.batched import products
from lorahub.kernels.kmeans import Clusters, cluster, sign_of
from lorahub.kernels.lowrank import factored
from lorahub.kernels.stack import Mix, Stack

Features = Literal["unit_halves", "raw"]
Gauge = Literal["native", "svd"]
Norm = Literal["l2", "linf"]

DOMINANT = 0.5
"""Share of the pool that one cluster may hold before the clustering is called bad."""


@dataclass(frozen=True, slots=True)
class Units:
    """The pool of units of m modules.

    Attributes:
        left: (m, R, R) float64; column i makes the b half of unit i from the stacked columns.
        right: (m, R, R) float64; row i makes its a half from the stacked rows.
        gram_b: (m, R, R) inner products of the b halves.
        gram_a: (m, R, R) inner products of the a halves.
        weights: (m, R) size of the weight of the unit's adapter; 0 for units that are zero.
        signs: (m, R) 1 or -1; with it, the entries of the b half have a positive sum.
        rank: Mean rank of the adapters with a weight.
    """

    left: Tensor
    right: Tensor
    gram_b: Tensor
    gram_a: Tensor
    weights: Tensor
    signs: Tensor
    rank: float

    def module(self, i: int) -> Units:
        """The pool of module i alone."""
        one = slice(i, i + 1)
        return Units(
            self.left[one],
            self.right[one],
            self.gram_b[one],
            self.gram_a[one],
            self.weights[one],
            self.signs[one],
            self.rank,
        )


def units_of(stack: Stack, gauge: Gauge) -> Units:
    """The folded units of a stack, as they are or in each adapter's own singular vectors."""
    if gauge == "svd":
        gram_b, gram_a = stack.precise_grams
        left, right = _singular(stack, gram_b, gram_a)
        gram_b = products(products(left.mT, gram_b), left)
        gram_a = products(products(right, gram_a), right.mT)
    else:
        gram_b, gram_a = stack.gram_b, stack.gram_a
        left = right = torch.eye(gram_b.shape[-1], dtype=gram_b.dtype, device=gram_b.device)
    weights = stack.unit_weights.abs()
    fold = stack.coefficients / torch.where(weights > 0, weights, 1.0)
    norm_b = gram_b.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    norm_a = gram_a.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    size = fold.abs() * norm_a * norm_b
    alive = size > 0
    half = size.sqrt()
    to_b = torch.where(alive, fold.sign() * half / torch.where(alive, norm_b, 1.0), 0.0)
    to_a = torch.where(alive, half / torch.where(alive, norm_a, 1.0), 0.0)
    present = [r for r, w in zip(stack.ranks, stack.weights, strict=True) if w != 0]
    left = left * to_b[:, None, :]
    sums = stack.B.sum(1)[:, None].to(left.device, left.dtype)
    return Units(
        left,
        right * to_a[:, :, None],
        (gram_b * to_b[:, :, None]).mul_(to_b[:, None, :]),
        (gram_a * to_a[:, :, None]).mul_(to_a[:, None, :]),
        torch.where(alive, weights, 0.0),
        sign_of(products(sums, left))[:, 0],
        sum(present) / len(present) if present else 1.0,
    )


def _singular(stack: Stack, gram_b: Tensor, gram_a: Tensor) -> tuple[Tensor, Tensor]:
    """Per adapter, the mixtures that turn its factors into its own singular vectors.

    The signs of singular vectors are arbitrary; here the entries of every b half have a positive
    sum, which no rotation of the inputs changes.
    """
    sums = stack.B.sum(1, dtype=torch.float64).to(gram_b.device)[:, None]
    left, right = torch.zeros_like(gram_b), torch.zeros_like(gram_a)
    start = 0
    for rank in stack.ranks:
        part = slice(start, start + rank)
        one = torch.eye(rank, dtype=gram_b.dtype, device=gram_b.device)
        L, V, _ = factored(gram_b[:, part, part], gram_a[:, part, part], one)
        sign = sign_of(products(sums[:, :, part], L))
        left[:, part, part], right[:, part, part] = L * sign, V * sign.mT
        start = part.stop
    return left, right


def features_of(units: Units, features: Features) -> Tensor:
    """(m, R, R) float64: inner products of the vectors that are clustered.

    They are rounded to a millionth of the largest, more than float32 products know: what is a
    tie but for rounding then is one, and is broken by the order of the units' sizes.
    """
    if features == "raw":
        gram = units.gram_a + units.gram_b
    else:
        gram = _correlation(units.gram_a).add_(_correlation(units.gram_b))
    own = torch.where(units.weights > 0, gram.diagonal(dim1=-2, dim2=-1), 0.0)
    largest = own.amax(-1)[:, None, None]
    step = torch.where(largest > 0, largest, 1.0) * 2.0**-20
    return (gram / step).round_().mul_(step)


def _correlation(gram: Tensor) -> Tensor:
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    return (gram / norm[:, :, None]).div_(norm[:, None, :])


def clustered(
    units: Units,
    gram: Tensor,
    k: int,
    *,
    seeds: Sequence[int],
    restarts: int,
    align: bool,
) -> tuple[Clusters, tuple[int, ...]]:
    """k-means of the units, in an order that does not depend on how they were given.

    Modules with no more than k units that are not zero need no clustering: every unit is its
    own cluster.

    Returns:
        The clusters, and the number of clusters in use per module, at least 1.
    """
    m, R, _ = gram.shape
    size = (units.gram_a.diagonal(dim1=-2, dim2=-1)).masked_fill(units.weights == 0, -1.0)
    order = size.argsort(dim=-1, descending=True, stable=True)
    pool = (units.weights > 0).sum(-1)
    labels = torch.empty_like(order)
    labels.scatter_(1, order, torch.arange(R, device=order.device).expand(m, R).clamp_max(k - 1))
    signs = torch.ones_like(units.weights)
    inertia = torch.zeros(m, dtype=gram.dtype, device=gram.device)
    busy = (pool > k).nonzero()[:, 0]
    if len(busy):
        some = order[busy]
        # Orthogonal units join a cluster with the sign they have, so it must be their own and
        # not that of the inputs.
        own = units.signs[busy] if align else torch.ones_like(units.signs[busy])
        gram = gram[busy] * own[:, :, None] * own[:, None, :]
        found = cluster(
            gram.gather(1, some[:, :, None].expand(-1, -1, R)).gather(
                2, some[:, None, :].expand(-1, R, -1)
            ),
            units.weights[busy].gather(1, some),
            k,
            seeds=[seeds[i] for i in busy.tolist()],
            restarts=restarts,
            align=align,
        )  # fmt: skip
        labels[busy] = torch.empty_like(some).scatter_(1, some, found.labels)
        signs[busy] = own * torch.empty_like(found.signs).scatter_(1, some, found.signs)
        inertia[busy] = found.inertia
    return Clusters(labels, signs, inertia), tuple(min(k, max(1, n)) for n in pool.tolist())


def clustered_by_energy(
    units: Units,
    gram: Tensor,
    energy: float,
    *,
    seeds: Sequence[int],
    restarts: int,
    align: bool,
) -> tuple[Clusters, tuple[int, ...]]:
    """As `clustered`, with the smallest k per module whose clusters explain ``energy``.

    What is explained is 1 - inertia / energy of all units; it grows with k but for the luck of
    the starts, so k is found by bisection.
    """
    found: list[Clusters] = []
    ranks: list[int] = []
    for i, seed in enumerate(seeds):
        one, own = units.module(i), gram[i : i + 1]
        whole = float(_energy(one, own))
        low, high = 1, max(1, int((one.weights > 0).sum()))
        while True:
            k = (low + high) // 2
            clusters, (used,) = clustered(one, own, k, seeds=[seed], restarts=restarts, align=align)
            if low == high:
                break
            enough = float(clusters.inertia) <= (1 - energy) * whole
            low, high = (low, k) if enough else (k + 1, high)
        found.append(clusters)
        ranks.append(used)
    parts = [torch.cat([getattr(c, f.name) for c in found]) for f in fields(Clusters)]
    return Clusters(*parts), tuple(ranks)


def _energy(units: Units, gram: Tensor) -> Tensor:
    """(m,) weighted squared norms of the clustered vectors."""
    return (units.weights * gram.diagonal(dim1=-2, dim2=-1)).sum(-1)


def merged_units(
    stack: Stack,
    units: Units,
    clusters: Clusters,
    k: int,
    *,
    parameter_reweighting: bool,
    output_reweighting: bool,
    norm: Norm,
) -> Mix:
    """The clusters' weighted means as ranks, with LoRA-LEGO's dual reweighting.

    Parameter reweighting gives every mean the mean norm of its members, which averaging lowers;
    output reweighting multiplies the delta by sqrt(mean rank of the inputs / ranks of the
    result). Both are folded into the factors.
    """
    members = torch.zeros(
        *clusters.labels.shape, k, dtype=torch.float64, device=stack.gram_b.device
    )
    # Units of no weight may have a label beyond k; they count nowhere.
    labels = clusters.labels.clamp_max(k - 1)
    members.scatter_(-1, labels[..., None], (units.weights * clusters.signs)[..., None])
    mass = members.abs().sum(-2)
    means = members / torch.where(mass > 0, mass, 1.0)[:, None, :]
    left, right = products(units.left, means), products(means.mT, units.right)
    used = (mass > 0).sum(-1)
    factor = torch.ones_like(mass)
    if parameter_reweighting:
        belongs = (members != 0).to(members.dtype)
        count = belongs.sum(-2).clamp_min(1)
        own, reached = _norms(stack, units, left, right, means, norm)
        wanted = (belongs * own[..., None]).sum(-2) / count
        factor = torch.where(reached > 1e-12 * wanted, wanted / reached.clamp_min(1e-300), 0.0)
    if output_reweighting:
        ratio = units.rank / used.clamp_min(1).to(factor.dtype)
        factor = factor * ratio.sqrt().sqrt()[:, None]
    return Mix(left * factor[:, None, :], right * factor[:, :, None])


def _norms(
    stack: Stack, units: Units, left: Tensor, right: Tensor, means: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Norms (m, R) of the units and (m, k) of the clusters' means."""
    if norm == "linf":
        parts = []
        for to_b, to_a in ((units.left, units.right), (left, right)):
            factors = Mix(to_b, to_a).apply(stack)
            largest = torch.maximum(factors.B.abs().amax(1), factors.A.abs().amax(2))
            parts.append(largest.to(means.device, torch.float64))
        return parts[0], parts[1]
    gram = units.gram_a + units.gram_b
    reached = (means * products(gram, means)).sum(-2).clamp_min(0).sqrt()
    return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt(), reached


def report_of(clusters: Clusters, units: Units, gram: Tensor) -> list[dict[str, Any]]:
    """Per module: labels, sizes, inertia, and the share of energy that the clusters explain.

    Labels count from 1 and carry the signs; 0 marks units of no weight.
    """
    reports: list[dict[str, Any]] = []
    alive = units.weights > 0
    labels = torch.where(alive, clusters.signs * (clusters.labels + 1), 0.0).long()
    energy = _energy(units, gram)
    share = 1 - clusters.inertia / torch.where(energy > 0, energy, 1.0)
    figures = zip(labels.tolist(), clusters.inertia.tolist(), share.tolist(), strict=True)
    for row, inertia, kept in figures:
        counts = Counter(abs(label) for label in row if label)
        sizes = [counts[label] for label in sorted(counts)]
        report: dict[str, Any] = {
            "labels": row, "sizes": sizes, "inertia": inertia, "explained": round(kept, 6)
        }  # fmt: skip
        if len(sizes) > 1 and max(sizes) > DOMINANT * sum(sizes):
            report["warning"] = "one cluster holds over half of the units"
        reports.append(report)
    return reports


def clusters_from(reports: Sequence[Mapping[str, Any]], device: torch.device) -> Clusters:
    """The clusters that `report_of` described."""
    signed = torch.tensor([r["labels"] for r in reports], device=device)
    return Clusters(
        (signed.abs() - 1).clamp_min(0),
        sign_of(signed.double()),
        torch.zeros(len(reports), dtype=torch.float64, device=device),
    )
