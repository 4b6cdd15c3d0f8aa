"""A first guess of the quantisation step: Gaussian rows under reverse water-filling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.gauge import Delta
from lorahub.packing.tables import CLASS_OF_ONE, CLASSES
from lorahub.packing.waterfill import WATER


def smallest_step(deltas: Sequence[Delta]) -> float:
    """The step below which values would outgrow the tables."""
    peaks = [
        float(d.sigma[0]) / math.sqrt(min(d.rows.shape[1], d.columns.shape[1]))
        for d in deltas
        if len(d.sigma)
    ]
    return max(peaks, default=0.0) / 2 ** ((CLASSES - 1 - CLASS_OF_ONE) / 4)


def step_for_bits(deltas: Sequence[Delta], bits: float) -> float:
    """The step at which the Gaussian model spends ``bits`` on a whole adapter."""
    sigma, lengths = _model(deltas)

    def spent(step: float) -> float:
        rates = np.log2(np.maximum(1, sigma**2 / (lengths * WATER * step**2))) / 2
        return float((lengths * rates).sum())

    return _solve(lambda step: spent(step) > bits, sigma)


def step_for_error(deltas: Sequence[Delta], error: float) -> float:
    """The step at which the Gaussian model has this relative error over a whole adapter."""
    sigma, lengths = _model(deltas)
    energy = sum(d.energy for d in deltas)

    def left(step: float) -> float:
        return float(np.minimum(sigma**2, lengths * WATER * step**2).sum()) / energy

    return _solve(lambda step: left(step) < error**2, sigma)


def _model(deltas: Sequence[Delta]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Singular value and length of every row and column."""
    sigma = [np.repeat(d.sigma, 2) for d in deltas]
    lengths = [np.tile([d.rows.shape[1], d.columns.shape[1]], len(d.sigma)) for d in deltas]
    return np.concatenate(sigma), np.concatenate(lengths).astype(np.float64)


def _solve(grows: Callable[[float], bool], sigma: NDArray[np.float64]) -> float:
    """The step where a test that holds for small steps stops to hold, by bisection."""
    high = math.log(float(sigma.max()))
    low = high - 30
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if grows(math.exp(middle)) else (low, middle)
    return math.exp(high)
