"""`mos`: the sum of the deltas, written as a pack of shards beside its expansion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method


@method(
    title="Mixture of shards",
    paper="Wang et al., ICLR 2025, arXiv 2410.00938, as a code for merged deltas",
    rank_bound=capped_rank,
    packed=4.0,
)
def mos(
    stack: Stack,
    *,
    rank: Annotated[
        int | None, Field(ge=1, description="Rank before packing; as many as there are if none")
    ] = None,
) -> Mix:
    """Approximate the weighted sum within a number of bytes rather than a rank.

    The sum is packed to ``pack`` (4 times smaller than in bfloat16 when nothing is said):
    shards that repeat are stored once, and singular vectors get as many bits as they are
    worth, those of weak ranks none. The compact file lies beside the ordinary LoRA that it
    decodes to. Every other method's result is packed the same way with ``pack``. Linear merges
    bear packed sources well; methods that flatten spectra amplify what packing cut off. Use it
    where the result has to be small on disk or on the way, whatever its rank.
    """
    from lorahub.kernels.lowrank import best_approximation

    return best_approximation(stack, rank=rank)
