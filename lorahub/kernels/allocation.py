"""Distributing ranks over modules under one budget of parameters; numpy alone.

Every rule but ``uniform`` gives each rank of each module a priority and admits ranks in order of
descending priority until the next one no longer fits. Costs along that order only grow, so the
place to stop is found by bisection, and a larger budget never takes a rank away. For ``welore``
(Jaiswal et al., ICML 2025, arXiv 2407.11239) the priority is the singular value over its module's
largest, which is the paper's global threshold: the result is that of the finest scan over it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorahub.errors import InvalidRecipeError

Rule = Literal["welore", "energy", "relative", "prune", "uniform"]
Spectra = Sequence[NDArray[np.float64]]


def allocate(
    spectra: Spectra,
    widths: Sequence[int],
    budget: int,
    rule: Rule,
    *,
    floor: int = 1,
    areas: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The rank of each module, such that all of them cost at most ``budget`` parameters.

    - ``welore``: singular values over their module's largest, against one threshold.
    - ``energy``: by sigma^2 / width. No ranks that cost as much have a lower total Frobenius error.
    - ``relative``: the same after dividing by each module's own energy, which protects modules of
      small norm.
    - ``prune``: as ``energy`` with a floor of 0: modules of little energy keep no rank.
    - ``uniform``: one rank everywhere, less where a module has fewer; what then remains of the
      budget stays unspent.

    All but ``uniform`` leave less unspent than the next rank in order costs. Among equal priorities
    lower ranks come first, then larger singular values, then earlier modules. A singular value
    of zero is never worth a rank.

    Args:
        spectra: Singular values of each module, descending, finite and non-negative.
        widths: d_in + d_out of each module: parameters per rank.
        budget: Largest sum of rank times width.
        rule: How to choose.
        floor: 1 keeps a rank of every module that is not all zero; 0 may drop modules.
        areas: d_out * d_in of each module; only ``welore`` reads them. A module whose share
            would be r * width >= area is not of low rank (N-LRC): it keeps all its non-zero
            ranks. They count in full, so one such module is admitted whole or ends the search,
            which may leave more than a rank unspent. None truncates every module.

    Returns:
        One rank per module, at most the number of its non-zero singular values.

    Raises:
        InvalidRecipeError: Not even the floor fits the budget.
    """
    if rule == "prune":
        rule, floor = "energy", 0
    spectra = [s[s > 0] for s in spectra]
    costs = [w * np.arange(1, len(s) + 1) for w, s in zip(widths, spectra, strict=True)]
    if rule == "welore" and areas is not None:
        for cost, area in zip(costs, areas, strict=True):
            cost[cost >= area] = cost.max(initial=0)
    _check_floor(costs, budget, floor)
    if rule == "uniform":
        return _uniform([len(s) for s in spectra], widths, budget)
    return _admit(_priorities(spectra, widths, rule), spectra, costs, budget, floor)


def allocate_dense(
    spectra: Spectra, shapes: Sequence[tuple[int, int]], budget: int
) -> tuple[int, ...]:
    """WeLore on whole weights: modules that a factorisation would not shrink stay dense.

    As ``allocate`` with the rule ``welore``, but a module that is not of low rank costs
    d_out * d_in, and returns with all its non-zero ranks.

    Args:
        spectra: Singular values of each weight, descending, finite and non-negative.
        shapes: (d_out, d_in) of each weight.
        budget: Largest number of parameters of all factors and dense weights together.

    Raises:
        InvalidRecipeError: Rank 1 everywhere does not fit the budget.
    """
    spectra = [s[s > 0] for s in spectra]
    costs = [
        np.minimum((d_out + d_in) * np.arange(1, len(s) + 1), d_out * d_in)
        for (d_out, d_in), s in zip(shapes, spectra, strict=True)
    ]
    _check_floor(costs, budget, 1)
    return _admit(_priorities(spectra, (), "welore"), spectra, costs, budget, 1)


def _priorities(spectra: Spectra, widths: Sequence[int], rule: Rule) -> list[NDArray[np.float64]]:
    if rule == "energy":
        # Over the largest of all, so that squares neither overflow nor vanish together.
        largest = max((s[0] for s in spectra if len(s)), default=1.0)
        return [(s / largest) ** 2 / w for s, w in zip(spectra, widths, strict=True)]
    normalised = [s / s[0] if len(s) else s for s in spectra]
    if rule == "welore":
        return normalised
    return [s**2 / ((s**2).sum() * w) for s, w in zip(normalised, widths, strict=True)]


def _admit(
    priorities: Sequence[NDArray[np.float64]],
    spectra: Spectra,
    costs: Sequence[NDArray[np.int64]],
    budget: int,
    floor: int,
) -> tuple[int, ...]:
    """Admit ranks by priority; ``costs[i][r - 1]`` is what module i costs at rank r."""
    sizes = [len(c) for c in costs]
    if not sum(sizes):
        return (0,) * len(sizes)
    module = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.concatenate([np.arange(n) for n in sizes])
    priority = np.concatenate(priorities)
    priority[rank < floor] = np.inf
    order = np.lexsort((module, -np.concatenate(spectra), rank, -priority))
    steps = np.concatenate([np.diff(c, prepend=0) for c in costs])[order].cumsum()
    admitted = order[: np.searchsorted(steps, budget, side="right")]
    counts = np.bincount(module[admitted], minlength=len(sizes))
    # Where further ranks cost nothing (N-LRC), all are kept.
    return tuple(
        int(np.searchsorted(c, c[n - 1], side="right")) if n else 0
        for c, n in zip(costs, counts, strict=True)
    )


def _uniform(sizes: Sequence[int], widths: Sequence[int], budget: int) -> tuple[int, ...]:
    ranks = np.arange(max(sizes, default=0) + 1)
    kept = np.minimum.outer(ranks, np.asarray(sizes, dtype=np.int64))
    costs = kept @ np.asarray(widths, dtype=np.int64)
    return tuple(int(r) for r in kept[np.searchsorted(costs, budget, side="right") - 1])


def _check_floor(costs: Sequence[NDArray[np.int64]], budget: int, floor: int) -> None:
    smallest = sum(int(c[0]) for c in costs if len(c)) if floor else 0
    if budget < smallest:
        raise InvalidRecipeError(
            f"a budget of {budget} parameters is too small: rank 1 in every module takes "
            f"{smallest}",
            hint=f"give a budget of at least {smallest} parameters",
            key=("budget",),
        )


@dataclass(frozen=True, slots=True)
class ModuleRank:
    """What an allocation means for one module.

    Attributes:
        name: Name of the module.
        rank: Rank it was given.
        full_rank: Number of singular values it has.
        error: Frobenius norm of what is cut off over the norm of the module (0..1).
        lrc: Whether it is a low-rank component: rank * (d_out + d_in) < d_out * d_in, so that
            its factors are smaller than the dense matrix.
    """

    name: str
    rank: int
    full_rank: int
    error: float
    lrc: bool


def lrc_report(
    names: Sequence[str],
    spectra: Spectra,
    shapes: Sequence[tuple[int, int]],
    ranks: Sequence[int],
) -> tuple[ModuleRank, ...]:
    """Per module: rank, error and whether it is a low-rank component, in the order given.

    Args:
        names: Name of each module.
        spectra: Singular values of each module, descending.
        shapes: (d_out, d_in) of each module.
        ranks: Rank of each module, as `allocate` returns them.
    """
    rows = zip(names, spectra, shapes, ranks, strict=True)
    return tuple(
        ModuleRank(name, rank, len(s), _cut_off(s, rank), rank * (d_out + d_in) < d_out * d_in)
        for name, s, (d_out, d_in), rank in rows
    )


def _cut_off(spectrum: NDArray[np.float64], rank: int) -> float:
    if rank >= np.count_nonzero(spectrum):
        return 0.0
    normalised = spectrum / spectrum[0]
    return float(np.linalg.norm(normalised[rank:]) / np.linalg.norm(normalised))


_BUDGET = re.compile(
    r"(?P<rank>rank\s*)?"
    r"(?P<number>\d[\d_]{0,29}(\.\d{1,30})?(e\+?\d{1,2})?)"
    r"\s*(?P<unit>%|bytes|[kmg]i?b|[kmgb]?\s*param(eter)?s?)?",
    re.IGNORECASE,
)
_BYTES = {
    "bytes": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_COUNTS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def parse_budget(
    text: str | float, *, parameters_full: int, bytes_per_value: int, width_total: int
) -> int:
    """A budget as a user writes it, as a number of parameters (rounded down).

    ==================  =========================================================
    ``2000000``         parameters; also ``2M params`` (k, M, G or B for 10^9)
    ``40MB``            bytes of the result; kB, MB, GB, KiB, MiB, GiB, bytes
    ``rank 8``          average rank: as many parameters as rank 8 everywhere
    ``30%``             reduction: 30 % fewer parameters than in full
    ==================  =========================================================

    Args:
        text: The budget; a number means parameters.
        parameters_full: Parameters at full rank.
        bytes_per_value: Bytes of one value of the result.
        width_total: Sum of d_in + d_out over all modules.

    Raises:
        InvalidRecipeError: It cannot be read, or leaves no parameter.
    """
    match = _BUDGET.fullmatch(str(text).strip())
    if match is None:
        raise _unreadable(text)
    number, unit = Decimal(match["number"]), (match["unit"] or "").lower()
    if match["rank"]:
        if unit:
            raise _unreadable(text)
        parameters = number * width_total
    elif unit == "%":
        parameters = (100 - number) * parameters_full / 100
    elif unit in _BYTES:
        parameters = number * _BYTES[unit] / bytes_per_value
    else:
        parameters = number * _COUNTS.get(unit[:1], 1)
        if parameters != parameters.to_integral_value():
            raise _unreadable(text)
    if parameters < 1:
        raise InvalidRecipeError(
            f"budget '{text}' leaves no parameter", hint="give a larger budget", key=("budget",)
        )
    return int(parameters)


def parse_bytes(text: str) -> int:
    """A number of bytes as a user writes it: ``40MB``, ``512KiB``, ``9000 bytes``.

    Raises:
        InvalidRecipeError: It cannot be read.
    """
    match = _BUDGET.fullmatch(text.strip())
    unit = (match["unit"] or "").lower() if match else ""
    if match is None or match["rank"] or unit not in _BYTES:
        raise InvalidRecipeError(
            f"size '{text}' cannot be read", hint="write it with a unit: 40MB, 512KiB, 9000 bytes"
        )
    return int(Decimal(match["number"]) * _BYTES[unit])


def _unreadable(text: object) -> InvalidRecipeError:
    return InvalidRecipeError(
        f"budget '{text}' cannot be read",
        hint="write parameters (2000000, '2M params'), bytes (40MB, 512KiB), an average rank "
        "('rank 8') or a reduction (30%)",
        key=("budget",),
    )
