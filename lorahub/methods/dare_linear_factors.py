"""`dare_linear_factors`: PEFT's `dare_linear`, which drops elements of the factors at random."""

from __future__ import annotations

from functools import partial

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.dare import RandomDensity, merge_elements
from lorahub.methods.registry import factorwise, largest_rank, method


@method(
    title="DARE on the factors",
    paper="PEFT add_weighted_adapter, combination_type='dare_linear'",
    rank_bound=largest_rank,
    space="factors",
    definition=factorwise(merge_elements),
    equal_ranks=True,
    exceptions=frozenset({"cancel", "gauge", "identity", "order", "sum"}),
)
def dare_linear_factors(stack: Stack, *, density: RandomDensity = 0.5) -> Factors:
    """Drop elements of the A factors and of the B factors, and add each, as PEFT's ``dare_linear``.

    It acts on A and B apart: what comes out is not near the weighted sum of the deltas, not
    even in expectation, has cross terms between adapters that were never trained together, and
    depends on the gauge of the inputs (their rank order and signs). The draw depends on the
    order of the adapters; the identity needs density 1, and an adapter minus itself is not
    zero. It is here for parity only; ``dare`` is the merge that was meant. All adapters must
    have the same rank.
    """
    from lorahub.kernels.delta import factorwise

    return factorwise(stack, partial(merge_elements, density=density))
