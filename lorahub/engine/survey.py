"""The pass before merges that measures whole adapters, for plans that normalise them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from lorahub.engine.batches import Batches, name_the_bad_factor
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.events import Listener
from lorahub.kernels.stack import Stack

UNEVEN = 2.0
"""Ratio of norms or of mean ranks from which on ``normalize`` left open means yes."""


def normalized(plans: Sequence[Plan], batches: Batches, listener: Listener) -> list[Plan]:
    """The plans with the factors that give every adapter the same norm, where they ask for that.

    An adapter's factor is the median norm of all adapters over its own, one scalar for all its
    modules; the norm is the Frobenius norm of all its deltas together. The median (the lower one
    of two) is the norm that one loud adapter cannot move: a mean would make all the others loud.
    An adapter whose deltas are all zero keeps 1, and a note names it. Where a plan leaves
    normalising open, it happens when norms or mean ranks differ by more than a factor of two.

    Args:
        plans: Plans of one `Plan.layout`, whose sources are measured once.
        batches: Their batches.
        listener: Receives the phase ``survey`` where there is one.
    """
    first = plans[0]
    if len(first.adapters) == 1 or all(plan.normalize is False for plan in plans):
        return [replace(plan, normalize=False) for plan in plans]
    energies = [0.0] * len(first.adapters)
    ranks: list[list[int]] = [[] for _ in first.adapters]

    def work(modules: Sequence[PlannedModule], stack: Stack) -> list[list[float]]:
        found = _energies(modules, stack)
        if not all(math.isfinite(e) for row in found for e in row):
            name_the_bad_factor(first, modules, stack)
        return found

    for module, found in batches.run(first, "survey", work, listener, keep_grams=True):
        for member, energy in zip(module.members, found, strict=True):
            energies[member.adapter] += energy
            ranks[member.adapter].append(member.module.rank)
    means = [sum(r) / len(r) for r in ranks]
    return [normalized_by(plan, energies, means) for plan in plans]


def normalized_by(plan: Plan, energies: Sequence[float], mean_ranks: Sequence[float]) -> Plan:
    """As `normalized`, from the adapters' squared norms and mean ranks."""
    alive = [e for e in energies if e > 0]
    uneven = bool(alive) and (
        max(alive) > UNEVEN**2 * min(alive) or max(mean_ranks) > UNEVEN * min(mean_ranks)
    )
    if plan.normalize is False or not alive or not (plan.normalize or uneven):
        return replace(plan, normalize=False)
    usual = median_low(alive)
    factors = [(usual / e) ** 0.5 if e > 0 else 1.0 for e in energies]
    silent = tuple(
        f"'{a.name}' is zero in every module and adds nothing"
        for a, e in zip(plan.adapters, energies, strict=True)
        if e == 0
    )
    return replace(plan.with_factors(factors), notes=plan.notes + silent)


def _energies(modules: Sequence[PlannedModule], stack: Stack) -> list[list[float]]:
    """Squared norm of every member's delta, unweighted, per module."""
    found = stack.energies.tolist()
    return [
        [e * member.module.scaling**2 for e, member in zip(row, module.members, strict=True)]
        for row, module in zip(found, modules, strict=True)
    ]
