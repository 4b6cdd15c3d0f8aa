"""`ties`: trim, elect a sign, average what agrees."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import elementwise, merged_rank, method

if TYPE_CHECKING:
    from lorahub.kernels.delta import Deltas, Merged

MergedRank = Annotated[
    int | None, Field(ge=1, description="Rank to keep; the sum of the input ranks if none")
]
Density = Annotated[float, Field(gt=0, le=1, description="Share of each delta's elements to keep")]
MajoritySign = Annotated[
    Literal["total", "frequency"],
    Field(description="What elects: the sum of the elements, or of their signs"),
]


def merge_elements(deltas: Deltas, density: float, majority_sign: MajoritySign) -> Merged:
    """Trimmed deltas, of which those with the elected sign are averaged."""
    from lorahub.kernels.delta import Merged
    from lorahub.kernels.elementwise import disjoint_mean, trim

    return Merged(deltas, trim(deltas, density), disjoint_mean(deltas, majority_sign))


@method(
    title="TIES",
    paper="Yadav et al., NeurIPS 2023, arXiv 2306.01708",
    rank_bound=merged_rank,
    space="delta",
    definition=elementwise(merge_elements),
    exceptions=frozenset({"identity", "sum"}),
)
def ties(
    stack: Stack,
    *,
    rank: MergedRank = None,
    density: Density = 0.2,
    majority_sign: MajoritySign = "total",
) -> Factors:
    """Trim each delta, elect a sign for every element, and average the deltas that agree.

    Trimming keeps the ``density`` share of largest magnitudes of each delta, so even one
    adapter alone comes back trimmed: the identity needs density 1. The sign of an element is
    that of the sum of the trimmed deltas (or of most of them), before weights; weights scale
    what is averaged, and the mean divides by how many agree. It is PEFT's ``ties_svd``, except
    that an adapter of weight 0 has no vote. The result is no weighted sum and is full rank by
    nature: it is truncated to ``rank``, the error of which is reported. Use it when adapters
    pull the same weights in opposite directions, which a sum would cancel. As in the paper the
    default scale is 1.
    """
    from lorahub.kernels.delta import approximated

    merge = partial(merge_elements, density=density, majority_sign=majority_sign)
    return approximated(stack, rank, merge)
