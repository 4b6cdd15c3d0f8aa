"""`breadcrumbs`: the sum of deltas without their largest and smallest elements."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import elementwise, merged_rank, method
from lorahub.methods.task_arithmetic import shrinking_scale
from lorahub.methods.ties import Density, MergedRank

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged


def merge_elements(deltas: Deltas, density: float, outliers: float) -> Merged:
    """The weighted sum of the middle bands of the deltas."""
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import band, weighted_sum

    return Merged(deltas, band(deltas, density, outliers), weighted_sum(deltas))


@method(
    title="Model breadcrumbs",
    paper="Davari & Belilovsky, ECCV 2024, arXiv 2312.06795",
    rank_bound=merged_rank,
    space="delta",
    definition=elementwise(merge_elements),
    default_scale=shrinking_scale,
    exceptions=frozenset({"identity", "sum"}),
)
def breadcrumbs(
    stack: Stack,
    *,
    rank: MergedRank = None,
    density: Density = 0.9,
    outliers: Annotated[
        float, Field(ge=0, lt=1, description="Share of largest elements to zero")
    ] = 0.01,
) -> Factors:
    """Zero the largest and the smallest elements of each delta, and add the weighted deltas.

    The ``outliers`` share of largest magnitudes is zeroed in each delta, and below them the
    ``density`` share is kept (all that is left, where the two exceed 1). Nothing is rescaled.
    It is the weighted sum, and the identity for one adapter, at density 1 without outliers
    only. The result is full rank by nature: it is truncated to ``rank``, the error of which is
    reported. Use it when a few extreme elements of one adapter spoil what the others do. The
    default scale is that of task arithmetic.
    """
    from lorahub.kernels.delta import approximated

    return approximated(stack, rank, partial(merge_elements, density=density, outliers=outliers))
