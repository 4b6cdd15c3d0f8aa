"""`robust`: RobustMerge, pruned factors with complementary scaling."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from lorahub.kernels.stack import Factors, Stack
from lorahub.methods.registry import largest_rank, method


def _scale(adapters: int) -> float:
    """4 (2 / n)^(1/2) for n adapters; one alone stays itself.

    Fitted on merges of two, three and five encoder adapters; the authors take 4 for eight tasks.
    """
    return 4.0 * math.sqrt(2 / adapters) if adapters > 1 else 1.0


@method(
    title="RobustMerge",
    paper="Zeng et al., NeurIPS 2025, arXiv 2502.17159",
    rank_bound=largest_rank,
    space="factors",
    definition=None,
    default_scale=_scale,
    equal_ranks=True,
    exceptions=frozenset({"gauge", "identity", "sum"}),
)
def robust(
    stack: Stack,
    *,
    density: Annotated[
        float, Field(gt=0, le=1, description="Share of each factor's elements to keep")
    ] = 0.2,
) -> Factors:
    """Prune the factors, scale up the units that lost most, and add each side over the adapters.

    Of every A and every B the ``density`` share of largest magnitudes is kept. A row of A that
    loses much of its absolute sum raises the column of B that belongs to it, in proportion to
    the same unit of the other adapters: the result is (sum of pruned B_t S_t) (sum of pruned
    A_t) with the S_t of all adapters adding up to 1, as in the authors' code. The product of
    two sums has cross terms between adapters, so it is not the sum of the deltas, and it pairs
    units by their place: it depends on the gauge of the inputs (their rank order and signs).
    One adapter alone is pruned: the identity needs density 1. Proportions make a mean of B,
    and pruning takes much of the norm: the default scale is 4 (2/n)^(1/2) for n adapters,
    where the authors take 4 for eight. All adapters must have the same rank. Use it for
    adapters that were trained from one initialisation of A, where units belong together; on
    five encoder adapters of separate ones it kept five points less of their accuracy than
    ``task_arithmetic``.
    """
    from lorahub.kernels.complementary import scaled_factors

    return scaled_factors(stack, density)
