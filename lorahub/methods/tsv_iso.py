"""`tsv_iso`: the mean of TSV-Merge and Iso-C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.iso_c import isotropic_scale
from lorahub.methods.registry import capped_rank, method
from lorahub.methods.svd import Rank
from lorahub.methods.task_arithmetic import shrinking_scale

if TYPE_CHECKING:
    from torch import Tensor

    from lorahub.kernels.core import CoreSpace


@method(
    title="Mean of TSV-Merge and Iso-C",
    paper="lorahub; Gargiulo et al., CVPR 2025, arXiv 2412.00081, and Marczak et al., ICML 2025, "
    "arXiv 2502.04959",
    rank_bound=capped_rank,
    definition=None,
    exceptions=frozenset({"sum"}),
)
def tsv_iso(stack: Stack, *, rank: Rank = None) -> Mix:
    """Take the mean of what `tsv` and `iso_c` make of the adapters, each at its default scale.

    The one keeps every adapter's own spectrum, the other gives all directions of the sum one
    level; where each errs the other seldom does, and the mean of both is better than either for
    two adapters. Both are made without equal norms first. It is not the sum, and one adapter
    alone stays as it is. Use it for two adapters of different tasks.
    """
    from lorahub.kernels.core import flat_spectrum, merged, recomposed, svd, task_singular_vectors

    def combine(space: CoreSpace) -> Tensor:
        adapters = len(space.columns)
        own = recomposed(task_singular_vectors(space, None))
        U, sigma, Vh = svd(space.total)
        flat = recomposed((U, flat_spectrum(sigma, space), Vh))
        return (shrinking_scale(adapters) * own + isotropic_scale(adapters) * flat) / 2

    return merged(stack, combine, rank)
