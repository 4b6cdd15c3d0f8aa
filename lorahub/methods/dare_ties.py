"""`dare_ties`: DARE's random drop before the election of TIES."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.dare import RandomDensity
from lorahub.methods.registry import elementwise, merged_rank, method
from lorahub.methods.task_arithmetic import shrinking_scale
from lorahub.methods.ties import MajoritySign, MergedRank

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged


def merge_elements(deltas: Deltas, density: float, majority_sign: MajoritySign) -> Merged:
    """Randomly thinned deltas, of which those with the elected sign are averaged."""
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import disjoint_mean, drop

    prune, rescaled = drop(deltas, density)
    return Merged(deltas, prune, disjoint_mean(rescaled, majority_sign))


@method(
    title="DARE with TIES",
    paper="Yu et al., ICML 2024, arXiv 2311.03099; Yadav et al., NeurIPS 2023, arXiv 2306.01708",
    rank_bound=merged_rank,
    space="delta",
    definition=elementwise(merge_elements),
    default_scale=shrinking_scale,
    exceptions=frozenset({"cancel", "identity", "order", "sum"}),
)
def dare_ties(
    stack: Stack,
    *,
    rank: MergedRank = None,
    density: RandomDensity = 0.5,
    majority_sign: MajoritySign = "total",
) -> Factors:
    """Drop elements of each delta at random, rescale the rest, and average those that agree.

    As ``dare``, but what is left is merged like ``ties``: a sign is elected for every element
    and the deltas that have it are averaged. It is no weighted sum, and the identity for one
    adapter at density 1 only. Another order of the adapters gives another random draw, and an
    adapter minus itself leaves noise behind. The result is full rank by nature: it is
    truncated to ``rank``, the error of which is reported. At low density few elements of two
    adapters meet and the mean is nearly the rescaled sum, so that the default scale is that of
    task arithmetic. Use it to follow the paper or to repeat a merge made elsewhere; ``ties``
    leaves nothing to chance.
    """
    from lorahub.kernels.delta import approximated

    merge = partial(merge_elements, density=density, majority_sign=majority_sign)
    return approximated(stack, rank, merge)
