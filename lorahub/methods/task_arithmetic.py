"""`task_arithmetic`: the sum of the deltas with one common coefficient."""

from __future__ import annotations

import math

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Energy, Rank


def shrinking_scale(adapters: int) -> float:
    """1.25 n^-0.7, at most 1: near the best common coefficient for n adapters.

    Fitted on merges of encoder adapters; one adapter alone stays itself.
    """
    return min(1.0, 1.25 * math.pow(adapters, -0.7))


@method(
    title="Task arithmetic",
    paper="Ilharco et al., ICLR 2023, arXiv 2212.04089",
    rank_bound=capped_rank,
    default_scale=shrinking_scale,
)
def task_arithmetic(stack: Stack, *, rank: Rank = None, energy: Energy = None) -> Mix:
    """Add the weighted deltas and scale the sum by one coefficient, lambda.

    A full sum of several adapters overshoots; lambda, given by ``scale``, pulls it back. Its
    default is 1.25 n^-0.7 for n adapters (at most 1). Negative weights subtract a skill. With
    neither ``rank`` nor ``energy`` the sum keeps every rank that it has. Use it first, as the
    plain merge to compare others with, and to subtract a skill.
    """
    from lorahub.kernels.lowrank import best_approximation

    return best_approximation(stack, rank=rank, energy=energy)
