"""Scoring merges without making them, from Gram matrices of their sources that are kept.

A method that works in factor space returns coefficients of the stacked factors. What a merge keeps
of its sources and how far it is from their sum follow from these and the R x R Gram matrices: no
factor is read again, and none is written. Only the rounding to the result's dtype is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from lorahub.engine.batches import Batches, name_the_bad_factor, reweighted
from lorahub.engine.nearness import Cross, nearness
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.survey import normalized_by
from lorahub.events import Listener, ignore
from lorahub.kernels.stack import Mix, Stack
from lorahub.record import Verification

KEPT_BYTES = 512 << 20
"""Most bytes of Gram matrices that are kept."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of a merge that was not written.

    Attributes:
        plan: The plan, normalising factors included.
        truncation: As `lorahub.record.Verification`.
        retained: As `lorahub.record.Verification`.
        norm: Frobenius norm of the merged delta.
        norms: Per source, that of its own.
        alignment: Per source, the cosine between both.
        cosines: (T, T) between the sources.
    """

    plan: Plan
    truncation: float
    retained: tuple[float, ...]
    norm: float
    norms: tuple[float, ...]
    alignment: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]

    @property
    def check(self) -> Verification:
        """A verification that has nothing written to find fault with."""
        worst = self.plan.modules[0].name
        return Verification(0.0, 0.0, worst, self.truncation, self.retained, 0.0)


class FactorSpace:
    """The Gram matrices of the sources of plans of one `Plan.layout`."""

    def __init__(self, plan: Plan, stacks: Sequence[Stack]) -> None:
        """Use `read`."""
        self._layout = plan.layout
        self._stacks = stacks
        # <delta_s, delta_t> over all modules, and mean ranks.
        T = len(plan.adapters)
        self._dots = torch.zeros(T, T, dtype=torch.float64)
        self._energies = torch.zeros(T, dtype=torch.float64)
        ranks: list[list[int]] = [[] for _ in plan.adapters]
        for modules, stack in zip(_batches(plan), stacks, strict=True):
            members = [member.adapter for member in modules[0].members]
            scaling = _scalings(modules)
            gram_b, gram_a = stack.precise_grams
            dots = _blocks(stack, gram_b * gram_a) * scaling[:, :, None] * scaling[:, None, :]
            place = torch.tensor(members)
            self._dots[place[:, None], place[None, :]] += dots.sum(0)
            self._energies[place] += (stack.energies * scaling.square()).sum(0)
            for module in modules:
                for member in module.members:
                    ranks[member.adapter].append(member.module.rank)
        self._mean_ranks = [sum(r) / len(r) for r in ranks]

    @classmethod
    def read(
        cls, plan: Plan, *, workers: int | None = None, listener: Listener = ignore
    ) -> FactorSpace | None:
        """Read the sources of ``plan`` once; None where their Gram matrices are too large.

        Raises:
            InvalidAdapterError: A source is damaged, or holds NaN or Inf.
        """
        if sum(4 * 8 * m.total_rank**2 for m in plan.modules) > KEPT_BYTES:
            return None

        def work(modules: Sequence[PlannedModule], stack: Stack) -> list[tuple[Tensor, ...]]:
            grams = (stack.gram_b, stack.gram_a, *stack.precise_grams)
            if not all(bool(gram.sum().isfinite()) for gram in grams):
                name_the_bad_factor(plan, modules, stack)
            return [tuple(g[i].clone() for g in grams) for i in range(len(modules))]

        cpu = torch.device("cpu")
        with Batches(plan, device=cpu, workers=workers) as batches:
            found = {m.name: one for m, one in batches.run(plan, "factors", work, listener)}
        stacks = []
        for modules in _batches(plan):
            grams = zip(*(found[m.name] for m in modules), strict=True)
            stacks.append(_without_factors(modules, [torch.stack(g) for g in grams]))
        return cls(plan, stacks)

    @torch.inference_mode()
    def figures(self, plan: Plan) -> Figures | None:
        """What a merge would be; None where its method needs the factors themselves.

        Budgets and packs, which take a result as a whole, are such, too.
        """
        if plan.layout != self._layout or plan.method.space == "delta":
            return None
        if plan.budget or plan.pack:
            return None
        plan = normalized_by(plan, self._energies.tolist(), self._mean_ranks)
        T = len(plan.adapters)
        residual = total = norm = 0.0
        kept, whole, dots = (torch.zeros(T, dtype=torch.float64) for _ in range(3))
        for modules, stack in zip(_batches(plan), self._stacks, strict=True):
            own = reweighted(plan, modules, stack)
            try:
                mix = plan.method.rule(own, **plan.parameters)
            except RuntimeError:  # what torch raises when it needs values that are not there
                return None
            if not isinstance(mix, Mix) or mix.left.is_meta or mix.right.is_meta:
                return None
            precise = own.with_grams(*own.precise_grams)
            cross = _cross(mix.scaled(plan.scale), precise)
            near = nearness(plan, modules, precise, cross)
            place = torch.tensor([member.adapter for member in modules[0].members])
            residual += float(near.residual.sum())
            total += float(near.total.sum())
            norm += float(cross.norm.sum())
            for sums, part in ((kept, near.kept), (whole, near.whole), (dots, near.dots)):
                sums[place] += part.sum(0)
        own_norms = self._dots.diagonal().clamp_min(0).sqrt()
        lengths = own_norms * max(norm, 0.0) ** 0.5
        return Figures(
            plan,
            truncation=(residual / total) ** 0.5 if total > 0 else float(residual > 0),
            retained=tuple(torch.where(whole > 0, kept / whole, 1.0).tolist()),
            norm=max(norm, 0.0) ** 0.5,
            norms=tuple(own_norms.tolist()),
            alignment=tuple(_cosines(dots, lengths).tolist()),
            cosines=tuple(
                tuple(row) for row in _cosines(self._dots, own_norms[:, None] * own_norms).tolist()
            ),
        )


def _batches(plan: Plan) -> list[list[PlannedModule]]:
    return [list(g) for _, g in groupby(plan.modules, key=lambda m: m.kind_of_batch)]


def _without_factors(modules: Sequence[PlannedModule], grams: Sequence[Tensor]) -> Stack:
    """A stack whose factors have a shape but no values, and whose Gram matrices are known."""
    first, m = modules[0], len(modules)
    R = first.total_rank
    stack = Stack(
        torch.empty(m, first.d_out, R, device="meta"),
        torch.empty(m, R, first.d_in, device="meta"),
        torch.zeros(m, R, dtype=torch.float64),
        ranks=tuple(member.module.rank for member in first.members),
        weights=first.weights,
    )
    known = stack.with_grams(grams[0], grams[1])
    known.remembered("precise", lambda: (grams[2], grams[3]))
    return known


def _cross(mix: Mix, stack: Stack) -> Cross:
    left, right = mix.left, mix.right
    if left.ndim == 2:
        left, right = torch.diag_embed(left), torch.diag_embed(right)
    if mix.ranks is not None:
        kept = torch.arange(left.shape[2]) < torch.tensor(mix.ranks)[:, None]
        left, right = left * kept[:, None, :], right * kept[:, :, None]
    b, a = left.mT @ stack.gram_b, right @ stack.gram_a
    return Cross(b, a, b @ left, a @ right.mT)


def _blocks(stack: Stack, products: Tensor) -> Tensor:
    """(m, T, T): sums of the blocks of (m, R, R) that belong to every two adapters."""
    rows = torch.stack([part.sum(1) for part in stack.split(products, 1)], 1)
    return torch.stack([part.sum(2) for part in stack.split(rows, 2)], 2)


def _scalings(modules: Sequence[PlannedModule]) -> Tensor:
    """(m, T)."""
    rows = [[member.module.scaling for member in m.members] for m in modules]
    return torch.tensor(rows, dtype=torch.float64)


def _cosines(dots: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, dots / lengths, 0.0).clamp(-1, 1)
