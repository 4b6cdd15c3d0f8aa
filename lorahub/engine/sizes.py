"""How small the result of a merge must be: a budget of parameters, a pack of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorahub.adapter import DTYPE_BYTES
from lorahub.errors import InvalidRecipeError
from lorahub.kernels.allocation import Rule, parse_budget, parse_bytes
from lorahub.methods.registry import Method

if TYPE_CHECKING:
    from lorahub.engine.plan import PlannedModule

DEFAULT_RULE: Rule = "relative"
"""How a budget is distributed where nothing is said."""

CPU_BATCH_BYTES = 8 << 20
"""Stacked float32 factors in a batch on a CPU: what a core's cache holds beside the rest."""

# Measured: what a process has before it merges, the batches' room that a worker takes at its
# peak, and what methods that look at elements take beside it.
LIBRARIES_BYTES = 270 << 20
BATCHES_OF_A_WORKER = 5
ELEMENTS_BYTES = 96 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """Most parameters the result may have, and the rule that distributes them over modules."""

    parameters: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class PackTarget:
    """How small a packed result must be; exactly one is given.

    Attributes:
        ratio: Times smaller than its parameters in bfloat16.
        limit: Bytes that it may have.
    """

    ratio: float | None = None
    limit: int | None = None


def budget_for(
    modules: Sequence[PlannedModule],
    method: Method,
    allocate: Rule | None,
    budget: str | float | None,
    dtype: str,
    parameters: Mapping[str, Any],
) -> Budget | None:
    """The budget that is asked for, or that the method makes of its rank; None without one.

    Raises:
        InvalidRecipeError: A rule without a budget, or a budget that is none.
    """
    if budget is None:
        if method.allocation and "rank" in parameters:
            ranks = [parameters["rank"] or m.total_rank / len(m.members) for m in modules]
            size = sum(r * (m.d_in + m.d_out) for r, m in zip(ranks, modules, strict=True))
            return Budget(int(size), allocate or method.allocation)
        if method.allocation or allocate:
            why = f"method '{method.name}'" if method.allocation else f"allocation '{allocate}'"
            raise InvalidRecipeError(
                f"{why} needs a budget",
                hint="give --budget as bytes (40MB), a reduction (30%), an average rank (rank 8) "
                "or parameters (2M params)",
                key=("method",) if method.allocation else ("allocate",),
            )
        return None
    widths = [m.d_in + m.d_out for m in modules]
    most = parse_budget(
        budget,
        parameters_full=sum(m.rank * w for m, w in zip(modules, widths, strict=True)),
        bytes_per_value=DTYPE_BYTES[dtype],
        width_total=sum(widths),
    )
    return Budget(most, allocate or method.allocation or DEFAULT_RULE)


def peak_memory(modules: Sequence[PlannedModule], method: Method, workers: int) -> int:
    """Roughly the memory (bytes) of a process that merges these modules on a CPU.

    It does not grow with their number, only with the largest one.
    """
    stacked = [4 * m.total_rank * (m.d_in + m.d_out) for m in modules]
    batch = min(max(*stacked, CPU_BATCH_BYTES), sum(stacked))
    size = LIBRARIES_BYTES + min(workers, len(modules)) * BATCHES_OF_A_WORKER * batch
    if method.space == "delta":
        size += ELEMENTS_BYTES + 5 * max(m.d_in * m.d_out for m in modules)
    return size


def pack_target(pack: str | float | None, dtype: str | None) -> PackTarget | None:
    """What ``pack`` asks for; None where it is None.

    Raises:
        InvalidRecipeError: It is neither a ratio above 1 nor bytes, or the dtype is not F32.
    """
    if pack is None:
        return None
    if dtype not in {None, "F32"}:
        raise InvalidRecipeError(
            f"a packed result is written in F32, as its pack decodes, not in {dtype}",
            hint="drop the dtype",
        )
    try:
        ratio = float(pack)
    except ValueError:
        return PackTarget(limit=parse_bytes(str(pack)))
    if not 1 < ratio < math.inf:
        raise InvalidRecipeError(
            f"pack '{pack}' is no ratio above 1",
            hint="give how many times smaller than in bfloat16 (8), or bytes (40MB)",
        )
    return PackTarget(ratio=ratio)
