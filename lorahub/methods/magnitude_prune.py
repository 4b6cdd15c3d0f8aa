"""`magnitude_prune`: the sum of the deltas' largest elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import elementwise, merged_rank, method
from lorahub.methods.task_arithmetic import shrinking_scale
from lorahub.methods.ties import MergedRank

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged


def _merged(deltas: Deltas, density: float) -> Merged:
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import trim, weighted_sum

    return Merged(deltas, trim(deltas, density), weighted_sum(deltas))


@method(
    title="Magnitude pruning",
    paper="PEFT add_weighted_adapter, combination_type='magnitude_prune_svd'",
    rank_bound=merged_rank,
    definition=elementwise(_merged),
    default_scale=shrinking_scale,
    exceptions=frozenset({"identity", "sum"}),
)
def magnitude_prune(
    stack: Stack,
    *,
    rank: MergedRank = None,
    density: Annotated[
        float, Field(gt=0, le=1, description="Share of each delta's elements to keep")
    ] = 0.2,
) -> Factors:
    """Keep the largest elements of each delta, and add the weighted deltas.

    The ``density`` share of largest magnitudes is kept of each delta and nothing is rescaled,
    so that it is the weighted sum, and the identity for one adapter, at density 1 only. The
    result is full rank by nature: it is truncated to ``rank``, the error of which is reported.
    Use it to see what the small elements contribute; ``svd`` at the same rank is nearer to the
    sum. The default scale is that of task arithmetic.
    """
    from lorahub.kernels.delta import approximated

    return approximated(stack, rank, lambda deltas: _merged(deltas, density))
