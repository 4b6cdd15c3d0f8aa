"""`linear_factors`: PEFT's `linear`, which adds factors instead of deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import largest_rank, method


def _definition(
    stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> Mix:
    return _factor_sum(stack)


def _factor_sum(stack: Stack) -> Mix:
    """(sum of sqrt|c| B)(sum of sign(c) sqrt|c| A), over adapters of one rank."""
    import torch

    root = stack.coefficients.abs().sqrt()
    one = torch.eye(stack.ranks[0], dtype=root.dtype, device=root.device)
    sums = one.repeat(len(stack.ranks), 1)
    return Mix(sums * root[:, :, None], (sums * (root * stack.coefficients.sign())[:, :, None]).mT)


@method(
    title="Linear combination of the factors",
    paper="PEFT add_weighted_adapter, combination_type='linear'",
    rank_bound=largest_rank,
    space="factors",
    definition=_definition,
    equal_ranks=True,
    exceptions=frozenset({"gauge", "sum", "cancel"}),
)
def linear_factors(stack: Stack) -> Mix:
    """Add the A factors and the B factors separately, as PEFT's ``linear`` does.

    The product of two sums has cross terms between adapters that were never trained together:
    it is about as far from the sum of the deltas as that sum is from zero, it depends on the
    gauge of the inputs (their rank order and signs), and an adapter minus itself is not zero.
    It is here for parity only; ``svd`` at the same rank is the merge that was meant. All
    adapters must have the same rank.
    """
    return _factor_sum(stack)
