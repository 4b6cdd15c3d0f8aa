"""`knots`: KnOTS, a merge in the common singular basis of all deltas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank

Rule = Annotated[
    Literal["ties", "sum"],
    Field(description="TIES on the entries along the common axes, or their sum"),
]
Density = Annotated[
    float, Field(gt=0, le=1, description="Share of the entries that ties keeps of each adapter")
]


def aligned_scale(adapters: int) -> float:
    """One half for several adapters; one alone stays itself."""
    return 0.5 if adapters > 1 else 1.0


@method(
    title="KnOTS",
    paper="Stoica et al., ICLR 2025, arXiv 2410.19735",
    rank_bound=capped_rank,
    definition=None,
    default_scale=aligned_scale,
    exceptions=frozenset({"sum"}),
)
def knots(stack: Stack, *, rule: Rule = "ties", density: Density = 0.5, rank: Rank = None) -> Mix:
    """Align the deltas by one SVD of all of them, then merge them there.

    [dW_1 ... dW_T] = U S [V_1 ... V_T]' gives all adapters the same left axes; TIES (or the plain
    sum) merges the S V_t'. Here its entries are not along the d_in input coordinates but along
    the right singular vectors of the deltas on top of each other, in which S V_t' is a small
    matrix and the result is made of the adapters' own directions. Those axes depend on the
    deltas alone, whatever their order or factors. TIES is not the sum: of each adapter the
    largest entries remain, and each entry becomes the mean of those that agree with the
    elected sign. Use it where adapters pull in opposite directions.
    """
    from lorahub.kernels.axes import axes_of_deltas, ties
    from lorahub.kernels.core import merged

    if rule == "sum":
        return merged(stack, lambda space: space.total, rank)
    return merged(stack, lambda space: ties(space, axes_of_deltas(space), density), rank)
