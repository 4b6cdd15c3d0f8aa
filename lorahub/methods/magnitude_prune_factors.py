"""`magnitude_prune_factors`: PEFT's `magnitude_prune`, which prunes the factors."""

from __future__ import annotations

from functools import partial

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.magnitude_prune import merge_elements
from lorahub.methods.registry import factorwise, largest_rank, method
from lorahub.methods.ties import Density


@method(
    title="Magnitude pruning of the factors",
    paper="PEFT add_weighted_adapter, combination_type='magnitude_prune'",
    rank_bound=largest_rank,
    space="factors",
    definition=factorwise(merge_elements),
    equal_ranks=True,
    exceptions=frozenset({"gauge", "identity", "sum"}),
)
def magnitude_prune_factors(stack: Stack, *, density: Density = 0.2) -> Factors:
    """Prune and add the A factors and the B factors separately, as PEFT's ``magnitude_prune`` does.

    It acts on A and B apart: what comes out is not near the weighted sum of pruned deltas, has
    cross terms between adapters that were never trained together, and depends on the gauge of
    the inputs (their rank order and signs). One adapter alone is pruned: the identity needs
    density 1. It is here for parity only; ``magnitude_prune`` is the merge that was meant. All
    adapters must have the same rank.
    """
    from lorahub.kernels.delta import factorwise

    return factorwise(stack, partial(merge_elements, density=density))
