"""`core`: a merge rule in the core space of the stacked factors."""

from __future__ import annotations

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.knots import Density, Rule, aligned_scale
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank


@method(
    title="Core space",
    paper="Panariello et al., NeurIPS 2025, arXiv 2509.17786",
    rank_bound=capped_rank,
    definition=None,
    default_scale=aligned_scale,
    exceptions=frozenset({"sum"}),
)
def core(stack: Stack, *, rule: Rule = "ties", density: Density = 0.5, rank: Rank = None) -> Mix:
    """Merge the adapters as small matrices between common bases of their factors.

    U is the left singular basis of [B_1 ... B_T], V that of the stacked A, with weight and
    scaling split evenly over both; every weighted delta is U M_t V' with a core M_t of R x R,
    and ``rule`` merges the cores entry by entry: by TIES, which is not the sum, or by adding.
    The axes depend on how a delta is split between B and A (not on the order or the signs of
    ranks); those of `knots` do not. Rules that know singular vectors only, `tsv`, `iso_c` and
    `iso_cts`, give the same in core space as outside, and work in it anyway. Use it to follow
    the paper; else prefer `knots`.
    """
    from lorahub.kernels.axes import axes_of_factors, ties
    from lorahub.kernels.core import merged

    if rule == "sum":
        return merged(stack, lambda space: space.total, rank)
    return merged(stack, lambda space: ties(space, axes_of_factors(stack, space), density), rank)
