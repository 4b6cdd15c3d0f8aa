"""`slerp`: spherical interpolation between two adapters."""

from __future__ import annotations

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank


@method(
    title="Slerp",
    paper="Shoemake, SIGGRAPH 1985; mergekit, merge method 'slerp'",
    rank_bound=capped_rank,
    definition=None,
    most_adapters=2,
    exceptions=frozenset({"sum"}),
)
def slerp(stack: Stack, *, rank: Rank = None) -> Mix:
    """Go from one adapter towards another along a great circle, module by module.

    With theta the angle between the two deltas of a module and t = |w_2| / (|w_1| + |w_2|), the
    result is (sin((1 - t) theta) dW_1 + sin(t theta) dW_2) / sin(theta), and a straight mean
    where they are nearly parallel or opposite (|cos| over 0.9995). Unlike the sum or the mean
    it keeps the norm where both have the same. Weights matter by their ratio and sign only; a
    module that one adapter alone has, or where the other is zero, stays as it is. Use it for
    two adapters of one kind, to find a point between them.
    """
    from lorahub.kernels.sphere import combined
    from lorahub.kernels.sphere import slerp as coefficients

    return combined(stack, coefficients, rank)
