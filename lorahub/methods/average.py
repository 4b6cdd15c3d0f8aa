"""`average`: the mean of the deltas."""

from __future__ import annotations

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Energy, Rank


@method(
    title="Average of the deltas",
    paper="Wortsman et al., ICML 2022, arXiv 2203.05482 (uniform soup), on deltas",
    rank_bound=capped_rank,
    equal_weights=True,
)
def average(stack: Stack, *, rank: Rank = None, energy: Energy = None) -> Mix:
    """Average the deltas, each adapter counting the same, to a rank.

    It is ``svd`` with every weight 1/T, where T is the number of adapters that have the
    module. Unlike an average of the factors it has no cross terms. Weights are not taken: use
    ``svd`` for a weighted mean. Use it for runs of one task that should count the same.
    """
    from lorahub.kernels.lowrank import best_approximation

    return best_approximation(stack, rank=rank, energy=energy)
