"""`tsv`: task singular vectors, made orthogonal to each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank
from lorahub.methods.task_arithmetic import shrinking_scale


@method(
    title="TSV-Merge",
    paper="Gargiulo et al., CVPR 2025, arXiv 2412.00081",
    rank_bound=capped_rank,
    definition=None,
    default_scale=shrinking_scale,
    exceptions=frozenset({"sum"}),
)
def tsv(
    stack: Stack,
    *,
    keep: Annotated[
        int | None,
        Field(ge=1, description="Singular triplets kept of each adapter; all if none"),
    ] = None,
    rank: Rank = None,
) -> Mix:
    """Put the adapters' singular vectors side by side and make them orthogonal.

    With U_t S_t V_t' the leading triplets of every weighted delta, the result is
    polar([U_1 ... U_T]) diag(S_1 ... S_T) polar([V_1 ... V_T])', where polar(X) is the nearest
    matrix with orthonormal columns: adapters that use the same directions are moved apart, so
    it is not the sum. The paper keeps min(d_in, d_out) / T triplets of each, which is all that
    a low-rank delta has; ``keep`` keeps fewer. Directions that adapters have exactly in common
    are merged into one. Use it where adapters interfere and every task must keep its own.
    """
    from lorahub.kernels.core import merged, task_singular_vectors

    return merged(stack, lambda space: task_singular_vectors(space, keep), rank)
