"""Collections: what the decoded rows of earlier adapters tell about the next one.

Checkpoints and stages of one run share most of their singular subspaces, adapters of one
initialisation at least the rows. A module may therefore be predicted from an orthonormal basis of
the decoded rows of up to six earlier adapters. Whether it is, is decided per module by measured
cost, so that unrelated adapters lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.gauge import Delta
from lorahub.packing.waterfill import RATE_WEIGHT, Basis, Encoding, Factors, encode

SOURCES = 6
"""Earlier adapters that a module may be predicted from: the last ones that have it."""

LEAST_SHARED = 0.15
"""Share of a side's energy that one earlier adapter must explain for a prediction to be tried."""

ROWS, COLUMNS = 1, 2
"""Flags of the sides of a module that are predicted."""

_DEPENDENT = 1e-6

Key = tuple[str, int, int]
"""Modules predict each other when they agree in name, d_in and d_out."""


class Pool:
    """The decoded modules of the adapters so far."""

    def __init__(self) -> None:
        self._modules: dict[Key, list[Factors]] = {}

    def add(self, keys: Sequence[Key], factors: Sequence[Factors]) -> None:
        """Take in a decoded adapter."""
        for key, module in zip(keys, factors, strict=True):
            if len(module.scales):
                self._modules.setdefault(key, []).append(module)

    def basis(self, key: Key, sides: int) -> Basis | None:
        """What the module is predicted from on the given sides; None where nothing is there."""
        sources = self._modules.get(key, [])[-SOURCES:]
        if not sides or not sources:
            return None
        return Basis(
            orthonormal(np.concatenate([s.rows for s in sources])) if sides & ROWS else None,
            orthonormal(np.concatenate([s.columns for s in sources])) if sides & COLUMNS else None,
        )

    def promising(self, key: Key, delta: Delta) -> int:
        """The sides on which one earlier adapter alone explains enough of the energy."""
        sides = 0
        for source in self._modules.get(key, [])[-SOURCES:]:
            for flag, known, rows in (
                (ROWS, source.rows, delta.rows),
                (COLUMNS, source.columns, delta.columns),
            ):
                span = np.linalg.qr(known.T)[0]
                if np.square(rows @ span).sum() >= LEAST_SHARED * delta.energy > 0:
                    sides |= flag
        return sides


def orthonormal(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis (k, d) of the span of rows (n, d), by modified Gram-Schmidt.

    In fixed order and with sums from first to last: the same bits on every machine, which LAPACK
    does not give. Dependent rows are left out.
    """
    left = np.ascontiguousarray(rows.T)
    lengths = np.sqrt(_sum(left * left))
    found: list[NDArray[np.float64]] = []
    for i in range(left.shape[1]):
        column = left[:, i : i + 1]
        length = np.sqrt(_sum(column * column))[0]
        if length <= _DEPENDENT * lengths[i]:
            continue
        unit = column / length
        found.append(unit[:, 0].copy())
        left[:, i + 1 :] -= unit * _sum(left[:, i + 1 :] * unit)
    return np.array(found).reshape(len(found), left.shape[0])


def _sum(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the columns of (d, k), added up from top to bottom, which np.sum does not promise."""
    total: NDArray[np.float64] = np.cumsum(columns, axis=0)[-1]
    return total


@dataclass(frozen=True, slots=True)
class Predicted:
    """An encoded adapter and, per module, the sides that are predicted."""

    encoding: Encoding
    sides: tuple[int, ...]


def encode_next(
    pool: Pool,
    keys: Sequence[Key],
    deltas: Sequence[Delta],
    steps: Sequence[float],
    share: float,
    sides: Sequence[int] | None = None,
) -> Predicted:
    """Encode an adapter after those in the pool, predicted where that costs less.

    Args:
        pool: The adapters before it.
        keys: Its modules' keys.
        deltas: Its modules.
        steps: Quantisation step per module.
        share: As `encode`.
        sides: What to predict, if that was decided before; None decides by measured cost.
    """
    if sides is None:
        sides = [pool.promising(key, d) for key, d in zip(keys, deltas, strict=True)]
        if any(sides):
            alone = _cost(encode(deltas, steps, [None] * len(deltas), share), steps)
            bases = [pool.basis(key, s) for key, s in zip(keys, sides, strict=True)]
            shared = _cost(encode(deltas, steps, bases, share), steps)
            sides = [s if b < a else 0 for s, a, b in zip(sides, alone, shared, strict=True)]
    bases = [pool.basis(key, s) for key, s in zip(keys, sides, strict=True)]
    return Predicted(encode(deltas, steps, bases, share), tuple(map(_sides_of, bases)))


def _sides_of(basis: Basis | None) -> int:
    if basis is None:
        return 0
    rows = basis.rows is not None and len(basis.rows) > 0
    columns = basis.columns is not None and len(basis.columns) > 0
    return ROWS * rows + COLUMNS * columns


def _cost(encoding: Encoding, steps: Sequence[float]) -> NDArray[np.float64]:
    """Error in steps**2 plus bits at the slope of the rate-distortion curve, per module."""
    cost: NDArray[np.float64] = encoding.errors / np.square(steps) + RATE_WEIGHT * encoding.bits
    return cost
