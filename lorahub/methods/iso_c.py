"""`iso_c`: the sum of the deltas with a flat spectrum."""

from __future__ import annotations

import math

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank


def isotropic_scale(adapters: int) -> float:
    """(4.4 / n)^(1/3), near the best for n adapters with flat spectra; one stays itself.

    Fitted on merges of encoder adapters: 1.30 for two, 1.03 for four, 0.82 for eight.
    """
    return math.cbrt(4.4 / adapters) if adapters > 1 else 1.0


@method(
    title="Iso-C",
    paper="Marczak et al., ICML 2025, arXiv 2502.04959",
    rank_bound=capped_rank,
    definition=None,
    default_scale=isotropic_scale,
    normalize=True,
    exceptions=frozenset({"sum"}),
)
def iso_c(stack: Stack, *, rank: Rank = None) -> Mix:
    """Add the deltas and give all singular values of the sum their mean.

    A sum is dominated by the few directions that its adapters share or shout; a flat spectrum
    gives every direction of every adapter the same room. It keeps the directions of the
    weighted sum but is not the sum itself. The level is the mean of all non-zero singular
    values (those over a millionth of the largest), of the paper's min(d_in, d_out) only those
    that low-rank deltas have; with a ``rank`` it stays that of the full spectrum, so that
    cutting is graceful. Adapters get equal norms first; the published form is without. One
    adapter alone stays as it is. Use it for three and more adapters where the result may have
    the sum of their ranks; use `flat` where it must be smaller, and `svd` or `tsv` where one
    task is unlike all others.
    """
    from lorahub.kernels.core import flattened

    return flattened(stack, lambda space: space.total, rank)
