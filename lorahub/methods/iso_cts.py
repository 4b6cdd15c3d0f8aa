"""`iso_cts`: a flat spectrum over common and task-specific directions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.iso_c import isotropic_scale
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank


@method(
    title="Iso-CTS",
    paper="Marczak et al., ICML 2025, arXiv 2502.04959",
    rank_bound=capped_rank,
    definition=None,
    default_scale=isotropic_scale,
    normalize=True,
    exceptions=frozenset({"sum"}),
)
def iso_cts(
    stack: Stack,
    *,
    common: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the dimensions for the sum's leading directions"),
    ] = 0.8,
    rank: Rank = None,
) -> Mix:
    """Flatten the spectrum over the sum's leading directions and some of each adapter's own.

    Of the q dimensions that the adapters span (min(d_in, d_out) in the paper), every adapter
    gets s = round((1 - common) q / T): the leading singular vectors of what its delta has
    outside the sum's leading q - T s left ones. All vectors side by side are replaced by the
    nearest orthonormal ones, and every singular value by the mean of those that are not zero;
    it is not the sum. Adapters get equal norms first, and one alone stays as it is. Use it
    instead of `iso_c` where many adapters leave a task too little room.
    """
    from lorahub.kernels.core import common_and_specific, flattened

    return flattened(stack, lambda space: common_and_specific(space, common), rank)
