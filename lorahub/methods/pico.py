"""`pico`: directions that all adapters write to are scaled down before the merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank

if TYPE_CHECKING:
    from torch import Tensor

    from lorahub.kernels.core import CoreSpace


@method(
    title="Pico",
    paper="Tang & Yang, 2026, arXiv 2604.16826",
    rank_bound=capped_rank,
    definition=None,
    exceptions=frozenset({"sum"}),
)
def pico(
    stack: Stack,
    *,
    rule: Annotated[
        Literal["sum", "tsv"], Field(description="How the calibrated deltas are merged")
    ] = "sum",
    rank: Rank = None,
) -> Mix:
    """Scale down the output directions that adapters share, merge, and restore the norm.

    A left singular direction of [B_1 ... B_T], with weight and scaling split evenly over B and A,
    that holds the share c of its squared norm is multiplied by 1 / (1 + (T - 1) c) in every
    delta. ``rule`` merges what remains: by the sum, or as `tsv`. The result gets, per module,
    the mean norm of the weighted deltas, so it is not the sum, and needs no scale; deltas that
    cancel give zero. The directions depend on how a delta is split between B and A, not on the
    order or the signs of ranks. Use it where adapters write to the same few directions.
    """
    from lorahub.kernels.axes import calibrated
    from lorahub.kernels.core import merged, recomposed, task_singular_vectors, with_mean_norm

    def combine(space: CoreSpace) -> Tensor:
        calm = calibrated(stack, space)
        core = calm.total if rule == "sum" else recomposed(task_singular_vectors(calm, None))
        return with_mean_norm(space, core)

    return merged(stack, combine, rank)
