"""`linear_factors`: PEFT's `linear`, which adds factors instead of deltas."""

from __future__ import annotations

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import largest_rank, method


def factor_sum(stack: Stack) -> Factors:
    """(sum of sqrt|c| B)(sum of sign(c) sqrt|c| A), over adapters of one rank."""
    root = stack.coefficients.abs().sqrt().to(stack.B.dtype)
    signed = (stack.coefficients.sign() * stack.coefficients.abs().sqrt()).to(stack.A.dtype)
    T = len(stack.ranks)
    B = (stack.B * root[:, None, :]).unflatten(2, (T, -1)).sum(2)
    A = (stack.A * signed[:, :, None]).unflatten(1, (T, -1)).sum(1)
    return Factors(B, A)


@method(
    title="Linear combination of the factors",
    paper="PEFT add_weighted_adapter, combination_type='linear'",
    rank_bound=largest_rank,
    definition=factor_sum,
    equal_ranks=True,
    exceptions=frozenset({"gauge", "sum"}),
)
def linear_factors(stack: Stack) -> Factors:
    """Add the A factors and the B factors separately, as PEFT's ``linear`` does.

    The product of two sums has cross terms between adapters that were never trained together:
    it is about as far from the sum of the deltas as that sum is from zero, and it depends on
    the gauge of the inputs (their rank order and signs). It is here for parity only; ``svd``
    at the same rank is the merge that was meant. All adapters must have the same rank.
    """
    return factor_sum(stack)
