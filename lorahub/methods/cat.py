"""`cat`: the exact weighted sum at full rank."""

from __future__ import annotations

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import method, sum_of_ranks


@method(
    title="Concatenation",
    paper="PEFT add_weighted_adapter, combination_type='cat'",
    rank_bound=sum_of_ranks,
    space="factors",
)
def cat(stack: Stack) -> Mix:
    """Add the weighted deltas exactly, at the sum of their ranks.

    The factors of all adapters are stacked side by side, so nothing is lost and nothing is
    computed but the weights. It is the exact reference for every other linear merge; use it
    when the rank of the result does not matter.
    """
    from lorahub.kernels.lowrank import exact_sum

    return exact_sum(stack)
