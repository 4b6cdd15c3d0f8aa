"""`flat`: a flat spectrum within a budget of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.iso_c import isotropic_scale
from lorahub.methods.registry import method


def _bound(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    return min(sum(ranks), limit)


@method(
    title="Flat",
    paper="lorahub; Iso-C (Marczak et al., ICML 2025, arXiv 2502.04959) under a budget",
    rank_bound=_bound,
    definition=None,
    default_scale=isotropic_scale,
    normalize=True,
    allocation="energy",
    exceptions=frozenset({"sum"}),
)
def flat(
    stack: Stack,
    *,
    rank: Annotated[
        int | None,
        Field(ge=1, description="Average rank over the modules; the mean input rank if none"),
    ] = None,
) -> Mix:
    """Keep the directions of the sum that matter most over all modules, all at one level.

    Adapters get equal norms, and each module's weighted sum its singular vectors. Ranks are
    distributed over the modules under one budget, ``rank`` times all widths, by squared
    singular value per parameter (``allocate: uniform`` for one rank everywhere; a ``budget``
    replaces ``rank``). Within a module every kept direction then gets the mean of all its
    non-zero singular values, kept or not: the result is not the sum. With every rank kept it
    equals `iso_c`; a module that one adapter alone has stays as it is. Use it for a small
    result of several adapters of different tasks. An adapter unlike the others stays nearer
    to its base than with `svd` or `tsv`, and nothing is known of ranks up to the number of
    adapters.
    """
    from lorahub.kernels.core import flattened

    return flattened(stack, lambda space: space.total)
