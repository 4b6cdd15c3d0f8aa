"""How near merged deltas are to the weighted sum and to each source, from inner products alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.engine.plan import Plan, PlannedModule
from lorahub.kernels.lowrank import whitened
from lorahub.kernels.stack import Stack


@dataclass(frozen=True, slots=True)
class Cross:
    """Inner products of merged factors b and a, of rank k, with the sources' columns B and rows A.

    Attributes:
        b: (m, k, R) float64, ``b.mT @ B``.
        a: (m, k, R), ``a @ A.mT``.
        own_b: (m, k, k), ``b.mT @ b``.
        own_a: (m, k, k), ``a @ a.mT``.
    """

    b: Tensor
    a: Tensor
    own_b: Tensor
    own_a: Tensor

    def distance(self, M: Tensor, stack: Stack) -> Tensor:
        """(m,) squared Frobenius norms of ``b @ a - B @ M @ A``."""
        whole = ((stack.gram_b @ M) * (M @ stack.gram_a)).sum((-2, -1))
        both = ((self.b @ M) * self.a).sum((-2, -1))
        return (whole - 2 * both + self.norm).clamp_min(0)

    @property
    def norm(self) -> Tensor:
        """(m,) squared Frobenius norms of ``b @ a``."""
        return (self.own_b * self.own_a).sum((-2, -1))


@dataclass(frozen=True, slots=True)
class Nearness:
    """Squared norms per module, float64.

    Attributes:
        residual: (m,) of the distance to the exact weighted sum.
        total: (m,) of the exact weighted sum.
        terms: (m,) of the weighted deltas, added up.
        whole: (m, T) of the deltas.
        kept: (m, T) of what of them lies in the column and row spaces of the merged delta.
        dots: (m, T) inner products of the deltas with the merged one.
    """

    residual: Tensor
    total: Tensor
    terms: Tensor
    whole: Tensor
    kept: Tensor
    dots: Tensor


def nearness(plan: Plan, modules: Sequence[PlannedModule], stack: Stack, cross: Cross) -> Nearness:
    """Compare merged deltas with what they were made of.

    Args:
        plan: The merge.
        modules: m modules of it, of one shape.
        stack: Their sources, with Gram matrices in float64.
        cross: The merged factors.
    """
    both = stack.gram_b * stack.gram_a
    c = stack.coefficients * plan.scale
    total = (both * c[:, :, None] * c[:, None, :]).sum((-2, -1)).clamp_min(0)
    products = cross.b * cross.a
    residual = total - 2 * (products * c[:, None, :]).sum((-2, -1)) + cross.norm
    # Coordinates of the sources in orthonormal bases of the result's columns and rows.
    columns = whitened(cross.own_b)[0].mT @ cross.b
    rows = whitened(cross.own_a)[0].mT @ cross.a
    scaling = _table([[member.module.scaling for member in m.members] for m in modules])
    weights = _table([[m.weight * m.factor * plan.scale for m in p.members] for p in modules])
    whole, kept, dots = [], [], []
    start = 0
    for rank in stack.ranks:
        part = slice(start, start + rank)
        whole.append(both[:, part, part].sum((-2, -1)))
        inside = columns[:, :, part] @ rows[:, :, part].mT
        kept.append(inside.square().sum((-2, -1)))
        dots.append(products[:, :, part].sum((-2, -1)))
        start = part.stop
    square = scaling.square()
    norms = torch.stack(whole, -1) * square
    return Nearness(
        residual=residual.clamp_min(0),
        total=total,
        terms=(norms * weights.square()).sum(-1),
        whole=norms,
        kept=torch.minimum(torch.stack(kept, -1) * square, norms),
        dots=torch.stack(dots, -1) * scaling,
    )


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
