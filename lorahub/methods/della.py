"""`della`: a random drop that spares large elements, before the election of TIES."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.dare import RandomDensity
from lorahub.methods.registry import elementwise, merged_rank, method
from lorahub.methods.task_arithmetic import shrinking_scale
from lorahub.methods.ties import MajoritySign, MergedRank

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged


def merge_elements(
    deltas: Deltas, density: float, window: float, majority_sign: MajoritySign
) -> Merged:
    """Deltas thinned by rank, of which those with the elected sign are averaged."""
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import disjoint_mean, drop_by_rank

    prune = drop_by_rank(deltas, density, window)
    return Merged(deltas, prune, disjoint_mean(deltas, majority_sign))


@method(
    title="DELLA",
    paper="Deep et al. 2024, arXiv 2406.11617",
    rank_bound=merged_rank,
    space="delta",
    definition=elementwise(merge_elements),
    default_scale=shrinking_scale,
    exceptions=frozenset({"cancel", "identity", "order", "sum"}),
)
def della(
    stack: Stack,
    *,
    rank: MergedRank = None,
    density: RandomDensity = 0.5,
    window: Annotated[
        float,
        Field(ge=0, lt=1, description="How far apart the largest and smallest probability are"),
    ] = 0.2,
    majority_sign: MajoritySign = "total",
) -> Factors:
    """Drop small elements of each delta more often than large ones, then merge like TIES.

    Within each row of a delta (each output), elements are ranked by magnitude, and the
    probability to be kept rises with the rank over a ``window`` around ``density``, which is
    narrowed where it would leave 0..1. What is kept is divided by its probability; then a sign
    is elected and the deltas that have it are averaged. With window 0 it is ``dare_ties``. It
    is no weighted sum, and the identity for one adapter at density 1 only. Another order of
    the adapters gives another random draw, and an adapter minus itself leaves noise behind.
    The result is full rank by nature: it is truncated to ``rank``, the error of which is
    reported. Sorting every row makes it the slowest of its family. The default scale is that
    of task arithmetic. Use it where ``dare_ties`` loses too much of what is large.
    """
    from lorahub.kernels.delta import approximated

    merge = partial(merge_elements, density=density, window=window, majority_sign=majority_sign)
    return approximated(stack, rank, merge)
