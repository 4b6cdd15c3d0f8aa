"""`dare`: the sum of deltas of which a random part is dropped and the rest rescaled."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import elementwise, merged_rank, method
from lorahub.methods.task_arithmetic import shrinking_scale
from lorahub.methods.ties import MergedRank

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged

RandomDensity = Annotated[
    float, Field(gt=0, le=1, description="Probability of an element to be kept, to within 2^-16")
]


def merge_elements(deltas: Deltas, density: float) -> Merged:
    """The weighted sum of randomly thinned deltas."""
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import drop, weighted_sum

    prune, rescaled = drop(deltas, density)
    return Merged(deltas, prune, weighted_sum(rescaled))


@method(
    title="DARE",
    paper="Yu et al., ICML 2024, arXiv 2311.03099",
    rank_bound=merged_rank,
    space="delta",
    definition=elementwise(merge_elements),
    default_scale=shrinking_scale,
    exceptions=frozenset({"cancel", "identity", "order", "sum"}),
)
def dare(stack: Stack, *, rank: MergedRank = None, density: RandomDensity = 0.5) -> Factors:
    """Drop elements of each delta at random, rescale the rest, and add the weighted deltas.

    Every element is kept with probability ``density`` and divided by it, so that the weighted
    sum is met in expectation; it is the sum itself, and the identity for one adapter, at
    density 1 only. Which elements are dropped depends on the seed, the module, the adapter's
    place in the order and the element's place: another order of the adapters gives another
    draw, and an adapter minus itself leaves noise behind. The result is full rank by nature:
    it is truncated to ``rank``, the error of which is reported. Truncation removes most of the
    noise again, so that at the ranks of adapters the result is near that of ``svd``. The
    default scale is that of task arithmetic. Use it to follow the paper or
    to repeat a merge made elsewhere; ``magnitude_prune`` leaves nothing to chance.
    """
    from lorahub.kernels.delta import approximated

    return approximated(stack, rank, partial(merge_elements, density=density))
