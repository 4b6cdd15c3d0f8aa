"""`magnitude_prune`: the sum of the deltas' largest elements."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import elementwise, merged_rank, method
from lorahub.methods.task_arithmetic import shrinking_scale
from lorahub.methods.ties import Density, MergedRank

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged


def merge_elements(deltas: Deltas, density: float) -> Merged:
    """The weighted sum of trimmed deltas."""
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import trim, weighted_sum

    return Merged(deltas, trim(deltas, density), weighted_sum(deltas))


@method(
    title="Magnitude pruning",
    paper="PEFT add_weighted_adapter, combination_type='magnitude_prune_svd'",
    rank_bound=merged_rank,
    space="delta",
    definition=elementwise(merge_elements),
    default_scale=shrinking_scale,
    exceptions=frozenset({"identity", "sum"}),
)
def magnitude_prune(
    stack: Stack,
    *,
    rank: MergedRank = None,
    density: Density = 0.2,
) -> Factors:
    """Keep the largest elements of each delta, and add the weighted deltas.

    The ``density`` share of largest magnitudes is kept of each delta and nothing is rescaled,
    so that it is the weighted sum, and the identity for one adapter, at density 1 only. The
    result is full rank by nature: it is truncated to ``rank``, the error of which is reported.
    Use it to see what the small elements contribute; ``svd`` at the same rank is nearer to the
    sum. The default scale is that of task arithmetic.
    """
    from lorahub.kernels.delta import approximated

    return approximated(stack, rank, partial(merge_elements, density=density))
