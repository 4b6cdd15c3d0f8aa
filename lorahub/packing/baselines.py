"""What the water-filling codec has to beat: truncation and plain integers, at the same bytes.

All four are one format: for every rank a number of bits, 16 meaning bfloat16 values and fewer
meaning integers with a scale per row. They differ in the bits a rank may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.gauge import Delta
from lorahub.packing.waterfill import Factors

CHOICES: Mapping[str, tuple[int, ...]] = {
    "truncation": (0, 16),
    "int8": (0, 8),
    "truncation+int4": (0, 4),
    "mixed bits": (0, 2, 3, 4, 5, 6, 8, 16),
}
"""Bits per value that a rank may get; 0 drops it."""

FINE = (0, *range(8, 16))
"""Bits for what the water-filling codec cannot spend; its finest table has 860 steps a deviation.

Integers of 15 bits are as near as their scales are worth; more bytes than those buy nothing.
"""

# Squared error of a unit Gaussian under the best uniform quantiser of 2**bits - 1 levels.
_GAUSSIAN = {0: 1.0, 2: 0.19, 3: 0.044, 4: 0.0135, 5: 4.1e-3, 6: 1.2e-3, 8: 1e-4, 16: 3e-6}
_GAUSSIAN |= {bits: 1e-4 * 3.6 ** (8 - bits) for bits in FINE if bits > 8}
_CLIPS = np.linspace(0.3, 1.0, 15)


@dataclass(frozen=True, slots=True)
class Plain:
    """An adapter in plain numbers.

    Attributes:
        bits: For each module the bits of its ranks.
        scales: float32, per row of fewer than 16 bits its quantisation step.
        payload: The rows' values, each row from a byte of its own.
    """

    bits: tuple[tuple[int, ...], ...]
    scales: NDArray[np.float32]
    payload: bytes


def encode(
    deltas: Sequence[Delta], choices: Sequence[int], budget: int
) -> tuple[Plain, tuple[Factors, ...]]:
    """The adapter in at most ``budget`` bytes of scales and payload, and what it decodes to."""
    each = iter(_allocate(deltas, choices, budget))
    bits = tuple(tuple(b for b in (next(each) for _ in d.sigma) if b) for d in deltas)
    scales: list[float] = []
    parts: list[bytes] = []
    for delta, ranks in zip(deltas, bits, strict=True):
        for i, width in enumerate(ranks):
            for side in (delta.rows[i], delta.columns[i]):
                scale, data = _pack(side / np.sqrt(delta.sigma[i]), width)
                parts.append(data)
                if width < 16:
                    scales.append(scale)
    plain = Plain(bits, np.array(scales, np.float32), b"".join(parts))
    shapes = [(d.rows.shape[1], d.columns.shape[1]) for d in deltas]
    return plain, decode(plain, shapes)


def decode(plain: Plain, shapes: Sequence[tuple[int, int]]) -> tuple[Factors, ...]:
    """The factors; shapes are (d_in, d_out) per module.

    Raises:
        ValueError: Scales or payload do not fit the bits and shapes.
    """
    scales, at, found = iter(plain.scales.astype(np.float64)), 0, []
    if len(plain.scales) != 2 * sum(b < 16 for ranks in plain.bits for b in ranks):
        raise ValueError("the number of scales is wrong")
    for ranks, shape in zip(plain.bits, shapes, strict=True):
        sides = tuple(np.empty((len(ranks), d)) for d in shape)
        for i, width in enumerate(ranks):
            for side in sides:
                size = row_bytes(side.shape[1], width)
                data = plain.payload[at : at + size]
                if len(data) < size:
                    raise ValueError("the payload ends too early")
                side[i] = _unpack(data, side.shape[1], width)
                if width < 16:
                    side[i] *= next(scales)
                at += size
        found.append(Factors(sides[0], sides[1], np.ones(len(ranks))))
    if at != len(plain.payload):
        raise ValueError("the payload is longer than its rows")
    return tuple(found)


def row_bytes(length: int, width: int) -> int:
    """Bytes of a row of ``length`` values of ``width`` bits."""
    return (length * width + 7) // 8


def _allocate(deltas: Sequence[Delta], choices: Sequence[int], budget: int) -> list[int]:
    """Bits for all ranks: least expected squared error, by a price per byte, within the budget."""
    options = sorted(choices)
    costs, errors = [], []
    for delta in deltas:
        lengths = delta.rows.shape[1], delta.columns.shape[1]
        sizes = [sum(row_bytes(d, b) + 4 * (0 < b < 16) for d in lengths) for b in options]
        for sigma in delta.sigma:
            costs.append(sizes)
            errors.append([sigma**2 * (1 - (1 - _GAUSSIAN[b]) ** 2) for b in options])
    cost, error = np.array(costs, float), np.array(errors)
    if not len(cost):
        return []
    low, high = -80.0, 80.0
    for _ in range(60):  # the price's logarithm
        middle = (low + high) / 2
        pick = (error + 2.0**middle * cost).argmin(1)
        if cost[np.arange(len(cost)), pick].sum() > budget:
            low = middle
        else:
            high = middle
    pick = (error + 2.0**high * cost).argmin(1)
    rows = np.arange(len(cost))
    left = budget - cost[rows, pick].sum()
    for i in np.argsort(-error[rows, pick], kind="stable"):  # what is left goes to the worst off
        if error[i, pick[i]] == 0:
            break
        affordable = np.flatnonzero(cost[i] <= cost[i, pick[i]] + left)
        better = affordable[-1]
        left -= cost[i, better] - cost[i, pick[i]]
        pick[i] = better
    return _descending(deltas, [options[p] for p in pick])


def _descending(deltas: Sequence[Delta], bits: list[int]) -> list[int]:
    """Bits sorted within each module, so that the ranks kept are the leading ones."""
    at = 0
    found: list[int] = []
    for delta in deltas:
        found += sorted(bits[at : at + len(delta.sigma)], reverse=True)
        at += len(delta.sigma)
    return found


def _pack(row: NDArray[np.float64], width: int) -> tuple[float, bytes]:
    """Scale and bytes of a row; the scale is the best of several clipping points."""
    if width == 16:
        word = np.ascontiguousarray(row, "<f4").view("<u4")
        return 1.0, ((word + 0x7FFF + (word >> 16 & 1)) >> 16).astype("<u2").tobytes()
    most = 2 ** (width - 1) - 1
    peak = float(np.abs(row).max(initial=0))
    if peak == 0:
        return 0.0, _bits(np.zeros(len(row), np.int64) + most, width)
    steps = (peak * _CLIPS / most).astype(np.float32).astype(np.float64)
    rounded = np.clip(np.rint(row / steps[:, None]), -most, most)
    best = int(np.square(rounded * steps[:, None] - row).sum(1).argmin())
    return float(steps[best]), _bits(rounded[best].astype(np.int64) + most, width)


def _bits(values: NDArray[np.int64], width: int) -> bytes:
    shifts = np.arange(width - 1, -1, -1)
    return np.packbits((values[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def _unpack(data: bytes, length: int, width: int) -> NDArray[np.float64]:
    if width == 16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=length * width)
    weights = 1 << np.arange(width - 1, -1, -1)
    values = bits.reshape(length, width).astype(np.float64) @ weights
    centred: NDArray[np.float64] = values - (2 ** (width - 1) - 1)
    return centred
