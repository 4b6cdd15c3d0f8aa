"""`welore`: the sum of the deltas with a rank of its own for every module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorahub.kernels.stack import Mix, Stack
from lorahub.methods.registry import method


def _bound(ranks: Sequence[int], limit: int, parameters: Mapping[str, Any]) -> int:
    return min(sum(ranks), limit)


@method(
    title="WeLore",
    paper="Jaiswal et al., ICML 2025, arXiv 2407.11239, on merged deltas",
    rank_bound=_bound,
    allocation="relative",
)
def welore(stack: Stack) -> Mix:
    """Approximate the weighted sum with ranks that follow each module's own spectrum.

    One ``budget`` for the whole adapter is distributed over its modules: by WeLore's global
    threshold on normalised singular values (``allocate: welore``), by what lowers the total
    error most (``energy``), or by the same after giving every module the same energy
    (``relative``, the default). Modules with fast spectra give ranks to those with slow ones.
    Every other method takes a budget too, and distributes its own result the same way. Use it
    for the weighted sum where some modules need more ranks than others.
    """
    from lorahub.kernels.lowrank import best_approximation

    return best_approximation(stack)
