"""`svd`: the best low-rank approximation of the weighted sum."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method

Rank = Annotated[int | None, Field(ge=1, description="Rank to keep; as many as there are if none")]
Energy = Annotated[
    float | None,
    Field(gt=0, le=1, description="Share of the squared singular values to keep, per module"),
]


@method(
    title="Truncated SVD of the sum",
    paper="Eckart & Young 1936; PEFT add_weighted_adapter, combination_type='svd'",
    rank_bound=capped_rank,
)
def svd(stack: Stack, *, rank: Rank = None, energy: Energy = None) -> Mix:
    """Approximate the weighted sum of the deltas as well as a rank allows.

    The singular values of the sum are those of a small core between the stacked factors, so
    the optimum costs O((d_in + d_out) R^2) and no matrix of the size of the weights is formed.
    Give a ``rank``, or an ``energy`` from which each module chooses its own. Ranks leave in
    order of importance: any prefix is itself the best lower-rank adapter. Use it where the
    weighted sum is what you want, at a rank you choose.
    """
    from lorahub.kernels.lowrank import best_approximation

    return best_approximation(stack, rank=rank, energy=energy)
