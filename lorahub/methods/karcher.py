"""`karcher`: the mean of several adapters on the sphere."""

from __future__ import annotations

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank


@method(
    title="Karcher mean",
    paper="Karcher 1977; mergekit, merge method 'karcher'",
    rank_bound=capped_rank,
    definition=None,
    exceptions=frozenset({"sum"}),
)
def karcher(stack: Stack, *, rank: Rank = None) -> Mix:
    """Take the direction nearest in angle to all adapters, with their mean norm.

    Per module the deltas' directions are points of a sphere; their Karcher mean minimises the
    weighted sum of squared angles, and gets the weighted mean of the norms. For two adapters
    of one norm it is `slerp`. Unlike the sum or the mean it does not shrink when adapters
    differ. Shares are the sizes of the weights, and a negative one turns its adapter around;
    modules where an adapter is zero are merged over the others, and directions that cancel
    exactly give zero. Use it for variants of one adapter: other seeds, checkpoints, data.
    """
    from lorahub.kernels.sphere import combined
    from lorahub.kernels.sphere import karcher as coefficients

    return combined(stack, coefficients, rank)
