"""Finding the quantisation step that meets a budget in few encodings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_CLOSE = 0.002
_LIMIT = 14
_LARGEST_MOVE = 1.5


def search(measure: Callable[[float], tuple[float, T]], *, slope: float, floor: float) -> T | None:
    """The outcome that uses most of the budget without exceeding it.

    Args:
        measure: For a factor on the steps, the natural logarithm of what was spent over the
            budget (at most 0 is within it), and the outcome.
        slope: About how the former changes with the logarithm of the factor, which starts at 1.
        floor: Smallest factor to try.

    Returns:
        None where no factor within reach keeps the budget.
    """
    inside: tuple[float, float] | None = None
    outside: tuple[float, float] | None = None
    best: T | None = None
    lowest = math.log(floor)
    at = max(0.0, lowest)
    before: tuple[float, float] | None = None
    for _ in range(_LIMIT):
        over, outcome = measure(math.exp(at))
        if before is not None and (over - before[1]) * (at - before[0]) * slope > 0:
            slope = (over - before[1]) / (at - before[0])
        before = (at, over)
        if over <= 0:
            if inside is None or over >= inside[1]:
                inside, best = (at, over), outcome
            if over > -_CLOSE or at == lowest:
                break
        else:
            if outside is None or over < outside[1]:
                outside = (at, over)
            if slope > 0 and at == lowest:
                break
        if inside and outside:
            share = (inside[1] + _CLOSE / 2) / (inside[1] - outside[1])
            # Kept off the ends, so that a curve that is far from straight cannot stall it.
            share = min(max(share, 0.05), 0.95)
            at = inside[0] + share * (outside[0] - inside[0])
        else:
            move = -(over + _CLOSE / 2) / slope
            at = max(lowest, at + max(-_LARGEST_MOVE, min(_LARGEST_MOVE, move)))
    return best
