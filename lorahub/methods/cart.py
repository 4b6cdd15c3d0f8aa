"""`cart`: task arithmetic around the mean, with centred deltas of low rank."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank
from lorahub.methods.task_arithmetic import shrinking_scale


@method(
    title="CART",
    paper="Choi et al., 2024, arXiv 2412.12153",
    rank_bound=capped_rank,
    definition=None,
    default_scale=shrinking_scale,
    exceptions=frozenset({"sum"}),
)
def cart(
    stack: Stack,
    *,
    keep: Annotated[
        int | None,
        Field(ge=1, description="Rank of each adapter's centred part; the mean input rank if none"),
    ] = None,
    rank: Rank = None,
) -> Mix:
    """Add to the mean of the deltas what each of them differs from it, at a low rank.

    With M the mean of the weighted deltas, the result is M + sum of SVD_keep(dW_t - M), where
    SVD_keep is the best approximation of that rank. It is not the sum: with every rank kept
    the differences add up to zero and the mean remains. The scale multiplies the whole; its
    default is that of task arithmetic. Use it where adapters have a large part in common.
    """
    from lorahub.kernels.core import centred, mean_rank, merged

    return merged(stack, lambda space: centred(space, keep or mean_rank(stack)), rank)
