"""Finding the quantisation step that meets a budget in few encodings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_CLOSE = 0.002
_NARROW = 5e-4
_LIMIT = 14
_LARGEST_MOVE = 1.5


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """Where a search ended.

    Attributes:
        best: The outcome that used most of the budget without exceeding it, or None.
        slack: Natural logarithm of the budget over what ``best`` spent.
        inside: Factor of ``best``.
        outside: Nearest factor that exceeded the budget, or None.
    """

    best: T | None
    slack: float
    inside: float | None
    outside: float | None


def search(measure: Callable[[float], tuple[float, T]], *, slope: float, floor: float) -> Found[T]:
    """Find the factor on the steps that uses most of a budget without exceeding it.

    Args:
        measure: For a factor, the natural logarithm of what was spent over the budget (at most 0
            is within it), and the outcome.
        slope: About how the former changes with the logarithm of the factor, which starts at 1.
        floor: Smallest factor to try.
    """
    inside: tuple[float, float] | None = None
    outside: tuple[float, float] | None = None
    before: tuple[float, float] | None = None
    best: T | None = None
    lowest = math.log(floor)
    at = max(0.0, lowest)
    for _ in range(_LIMIT):
        over, outcome = measure(math.exp(at))
        if before is not None and (over - before[1]) * (at - before[0]) * slope > 0:
            slope = (over - before[1]) / (at - before[0])
        before = (at, over)
        if over <= 0:
            if inside is None or over >= inside[1]:
                inside, best = before, outcome
        elif outside is None or over < outside[1]:
            outside = before
        if -_CLOSE < over <= 0 or (at == lowest and (over > 0) == (slope > 0)):
            break
        if inside and outside and abs(inside[0] - outside[0]) < _NARROW:
            break
        at = max(lowest, _next(inside, outside, before, slope))
    return Found(
        best,
        -inside[1] if inside else math.inf,
        math.exp(inside[0]) if inside else None,
        math.exp(outside[0]) if outside else None,
    )


def _next(
    inside: tuple[float, float] | None,
    outside: tuple[float, float] | None,
    latest: tuple[float, float],
    slope: float,
) -> float:
    """Logarithm of the factor to try next: between the nearest two, or along the slope."""
    if inside and outside:
        share = (inside[1] + _CLOSE / 2) / (inside[1] - outside[1])
        # Kept off the ends, so that a curve that is far from straight cannot stall it.
        return inside[0] + min(max(share, 0.05), 0.95) * (outside[0] - inside[0])
    move = -(latest[1] + _CLOSE / 2) / slope
    return latest[0] + max(-_LARGEST_MOVE, min(_LARGEST_MOVE, move))
