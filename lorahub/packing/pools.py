"""Collections: what decoded rows tell about the adapter that is coded next.

Checkpoints and stages of one run share most of their singular subspaces, adapters of one
initialisation at least the rows. A module may therefore be predicted from an orthonormal basis of
the decoded rows of up to six earlier adapters, or of public rows that all adapters share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.gauge import Delta
from lorahub.packing.waterfill import Basis, Factors

SOURCES = 6
"""Earlier adapters that a module may be predicted from: the last ones that have it."""

LEAST_SHARED = 0.15
"""Share of a side's energy that one earlier adapter must explain for a prediction to be tried."""

ROWS, COLUMNS, PUBLIC = 1, 2, 4
"""Flags: which sides of a module are predicted, and whether from the public rows."""

_DEPENDENT = 1e-6

Key = tuple[str, int, int]
"""Modules predict each other when they agree in name, d_in and d_out."""


class Pool:
    """The public rows, and the decoded modules of the adapters so far."""

    def __init__(self, public: Mapping[Key, Basis] | None = None) -> None:
        self._public = public or {}
        self._modules: dict[Key, list[Factors]] = {}

    def add(self, keys: Sequence[Key], factors: Sequence[Factors]) -> None:
        """Take in a decoded adapter."""
        for key, module in zip(keys, factors, strict=True):
            if len(module.scales):
                self._modules.setdefault(key, []).append(module)

    def basis(self, key: Key, sides: int) -> Basis | None:
        """What the module is predicted from on the given sides; None where nothing is there."""
        if sides & PUBLIC:
            return self._public.get(key)
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
