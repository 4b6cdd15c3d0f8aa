"""Frequency tables of the entropy coder: discretised Gaussians in integer arithmetic.

A table is chosen by a class (the standard deviation of a row in quantisation steps, in quarters
of an octave) and by which of the two quantisers of `lorahub.packing.trellis` is active. All of
it is computed with Python integers, so that every machine gets the same tables; floating-point
``exp`` and ``erf`` differ between C libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

PRECISION = 14
"""Frequencies of one table sum to 2**PRECISION."""

CLASSES = 56
"""Class c means a standard deviation of 2**((c - CLASS_OF_ONE) / 4) steps."""

CLASS_OF_ONE = 16

_BITS = 62  # of the fixed-point fractions
_ONE = 1 << _BITS
_FINE, _COARSE = 8, 2  # integration points per step, for deviations under 8 steps and above
_REACH = 6  # standard deviations that have a symbol of their own


@dataclass(frozen=True, slots=True)
class Table:
    """Frequencies of the symbols of one (class, quantiser).

    Attributes:
        largest: Symbols are the integers -largest..largest, then the escape.
        frequencies: int64, 2 * largest + 2 values that sum to 2**PRECISION.
        bits: float64, cost of each symbol; the escape's includes its 32 raw bits.
    """

    largest: int
    frequencies: NDArray[np.int64]
    bits: NDArray[np.float64]


@lru_cache(maxsize=2 * CLASSES)
def table(scale_class: int, quantiser: int) -> Table:
    """The table of a class (0 <= class < CLASSES) and quantiser (0 or 1).

    The mass of a symbol is the integral of the Gaussian over the interval nearest to the
    symbol's value among all values of the quantiser (midpoint rule).
    """
    grid, density = _density(scale_class)
    mass = [0] * (len(density) // (2 * grid) + 2)
    for j, value in enumerate(density):
        mass[_symbol(j, grid, quantiser)] += value
    while len(mass) > 2 and mass[-1] == 0:
        mass.pop()
    mass[0] *= 2  # the grid covers one half of the line
    symbols = mass[:0:-1] + mass
    total = sum(symbols)
    free = (1 << PRECISION) - len(symbols) - 1
    counts, below = [], 0
    for value in symbols:  # rounded cumulatively, so that nothing is left over
        above = below + value
        counts.append(1 + above * free // total - below * free // total)
        below = above
    frequencies = np.array([*counts, 1], dtype=np.int64)
    bits = PRECISION - np.log2(frequencies)
    bits[-1] += 32
    return Table(len(mass) - 1, frequencies, bits)


def _symbol(j: int, grid: int, quantiser: int) -> int:
    """Magnitude of the symbol whose value is nearest to the point (j + 1/2) / grid."""
    if quantiser == 0:  # values 0, 2, 4 ...: borders at 1, 3, 5 ...
        return (j + grid) // (2 * grid)
    if 2 * j < grid:  # values 0, 1, 3, 5 ...: borders at 1/2, 2, 4 ...
        return 0
    return j // (2 * grid) + 1


@lru_cache(maxsize=CLASSES)
def _density(scale_class: int) -> tuple[int, list[int]]:
    """Points per step, and exp(-t**2 / (2 s**2)) at t = (j + 1/2) / points up to _REACH s.

    With q = exp(-1 / (8 s**2 points**2)) the value at j is q**(2j+1)**2, built by recurrence.
    """
    quarter = scale_class - CLASS_OF_ONE
    grid = _FINE if quarter < 12 else _COARSE
    # 1 / s**2 = 2**(-quarter / 2), with sqrt(1/2) where that is odd.
    whole, odd = divmod(quarter, 2)
    inverse = isqrt(_ONE * _ONE // 2) if odd else _ONE
    inverse = inverse >> whole if whole >= 0 else inverse << -whole
    q = _exp_minus(inverse // (8 * grid * grid))
    q2 = q * q >> _BITS
    q4 = q2 * q2 >> _BITS
    q8 = q4 * q4 >> _BITS
    value, ratio = q, q8
    found = []
    for _ in range(_REACH * grid * (isqrt(_ONE // inverse) + 1)):
        found.append(value)
        value = value * ratio >> _BITS
        ratio = ratio * q8 >> _BITS
    return grid, found


def _exp_minus(x: int) -> int:
    """exp(-x) in fixed point, by halving the argument and Taylor's series."""
    halvings = 0
    while x > _ONE >> 4:
        x >>= 1
        halvings += 1
    term = result = _ONE
    for n in range(1, 20):
        term = -(term * x >> _BITS) // n
        result += term
    for _ in range(halvings):
        result = result * result >> _BITS
    return result
