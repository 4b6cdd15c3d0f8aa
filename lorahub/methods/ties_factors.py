"""`ties_factors`: PEFT's `ties`, which trims and elects in the factors."""

from __future__ import annotations

from functools import partial

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import factorwise, largest_rank, method
from lorahub.methods.ties import Density, MajoritySign, merge_elements


@method(
    title="TIES on the factors",
    paper="PEFT add_weighted_adapter, combination_type='ties'",
    rank_bound=largest_rank,
    space="factors",
    definition=factorwise(merge_elements),
    equal_ranks=True,
    exceptions=frozenset({"gauge", "identity", "sum"}),
)
def ties_factors(
    stack: Stack, *, density: Density = 0.2, majority_sign: MajoritySign = "total"
) -> Factors:
    """Trim, elect and average the A factors and the B factors separately, as PEFT's ``ties`` does.

    It acts on A and B apart: what comes out is not TIES of the deltas nor near their weighted
    sum, has cross terms between adapters that were never trained together, and depends on the
    gauge of the inputs (their rank order and signs). One adapter alone is trimmed: the identity
    needs density 1. It is here for parity only; ``ties`` is the merge that was meant. All
    adapters must have the same rank.
    """
    from lorahub.kernels.delta import factorwise

    return factorwise(stack, partial(merge_elements, density=density, majority_sign=majority_sign))
