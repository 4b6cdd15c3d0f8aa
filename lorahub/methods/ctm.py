"""`ctm`: compress, then merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lorahub.kernels.stack import Factors, Mix, Stack
from lorahub.methods.knots import Density, Rule, aligned_scale
from lorahub.methods.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from lorahub.kernels.core import CoreSpace


def _bound(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    return min(sum(ranks), limit, parameters["rank"] or max(ranks))


def _definition(
    stack: Stack, reports: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> Mix | Factors:
    return ctm(stack, **parameters)


@method(
    title="Compress then merge",
    paper="He et al., ICML 2026, arXiv 2606.03723",
    rank_bound=_bound,
    definition=_definition,
    default_scale=aligned_scale,
    exceptions=frozenset({"sum"}),
)
def ctm(
    stack: Stack,
    *,
    rule: Rule = "ties",
    density: Density = 0.5,
    rank: Annotated[
        int | None,
        Field(ge=1, description="Dimension of the shared subspaces; the mean input rank if none"),
    ] = None,
) -> Mix:
    """Project all adapters onto shared subspaces of the result's rank, and merge them there.

    The subspaces are spanned by the leading left singular vectors of the deltas side by side,
    and the leading right ones of the deltas on top of each other; each weighted delta becomes a
    ``rank`` x ``rank`` matrix between them, and ``rule`` merges those entry by entry along
    these axes. The result has that rank by construction, where other methods merge first and
    truncate after, and is not the sum. The paper states shared subspaces and rules; which
    subspaces is lorahub's reading of its abstract. Use it to compare with `svd` and `flat` at
    the same rank.
    """
    from lorahub.kernels.axes import axes_of_deltas, projected_sum, ties
    from lorahub.kernels.core import mean_rank, merged

    k = rank or mean_rank(stack)

    def combine(space: CoreSpace) -> Tensor:
        U, V = axes_of_deltas(space)
        axes = U[:, :, :k], V[:, :, :k]
        return projected_sum(space, axes) if rule == "sum" else ties(space, axes, density)

    return merged(stack, combine, k)
