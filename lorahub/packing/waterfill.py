"""One adapter by reverse water-filling: the same quantisation step for every singular row.

With ``x = sigma_i v_i`` and ``y = sigma_i u_i`` rounded to one step, each value adds the same
squared error to the delta, whichever rank, side or module it is in. That is reverse water-filling
(Cover and Thomas, Elements of Information Theory, 10.3): strong ranks get many bits, weak ones
few, those under the water none. Values are quantised along a trellis and coded by rANS; one scale
per rank, from joint least squares, makes up for what quantisation takes.

Rows may be predicted from an orthonormal basis (of another adapter's decoded rows): then their
coordinates in it are coded first, and of the row only what the quantised coordinates leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorahub.packing import rans, trellis
from lorahub.packing.gauge import Delta
from lorahub.packing.tables import CLASS_OF_ONE, CLASSES

WATER = 0.24
"""Squared error per value that the trellis leaves, in steps**2, at all but the lowest rates."""

RATE_WEIGHT = 2 * math.log(2) * WATER
"""Steps**2 that a bit buys there: the slope of the rate-distortion curve."""

SIDE_BITS = 32
"""Per rank: two classes and a scale."""

BLOCK = 1 << 21
"""Values coded together, so that memory is bounded."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Orthonormal rows that a module's rows (k, d_in) and columns (l, d_out) are predicted from.

    None on a side that is not predicted.
    """

    rows: NDArray[np.float64] | None
    columns: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Stream:
    """Coded values of many rows: a class per row, and blocks of at most BLOCK values."""

    classes: NDArray[np.uint8]
    blocks: tuple[rans.Coded, ...]


@dataclass(frozen=True, slots=True)
class Coded:
    """An adapter as it is stored.

    Attributes:
        ranks: Ranks kept, per module.
        scales: float16, one per kept rank, to be multiplied by ``unit``.
        unit: A power of two.
        coordinates: Coordinates of predicted rows, None where nothing is predicted.
        rows: For each module and kept rank its row, then its column.
    """

    ranks: tuple[int, ...]
    scales: NDArray[np.float16]
    unit: float
    coordinates: Stream | None
    rows: Stream


@dataclass(frozen=True, slots=True)
class Factors:
    """A decoded module: delta = columns.T @ diag(scales) @ rows.

    Attributes:
        rows: float64 (k, d_in).
        columns: float64 (k, d_out).
        scales: float64 (k,).
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    scales: NDArray[np.float64]


def lanes_for(count: int) -> int:
    """How many lanes a block of ``count`` values is coded in."""
    return 16 if count < 1 << 14 else 64 if count < 1 << 20 else 128


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoded adapter with what it decodes to and what it costs.

    Attributes:
        coded: What is stored.
        factors: What it decodes to, per module.
        bits: Stored bits, per module.
        errors: Squared Frobenius distance of the decoded delta, per module.
    """

    coded: Coded
    factors: tuple[Factors, ...]
    bits: NDArray[np.float64]
    errors: NDArray[np.float64]


def encode(
    deltas: Sequence[Delta],
    steps: Sequence[float],
    bases: Sequence[Basis | None],
    share: float = 1.0,
) -> Encoding:
    """Quantise and code an adapter.

    Args:
        deltas: The modules.
        steps: Quantisation step per module.
        bases: What each module is predicted from, None where it stands alone.
        share: Of the ranks that are worth their bits, the share to keep, best first.
    """
    ranks = _ranks([_worth(d, s, b) for d, s, b in zip(deltas, steps, bases, strict=True)], share)
    wanted = [
        side[i] / np.float64(step)
        for delta, step, rank in zip(deltas, steps, ranks, strict=True)
        for i in range(rank)
        for side in (delta.rows, delta.columns)
    ]
    predicted = _planes(ranks, bases)
    coordinates, bits = None, np.zeros(len(wanted))
    base: list[NDArray[np.float64] | float] = [0.0] * len(wanted)
    if predicted:
        coordinates, known, cost = code_rows([plane @ wanted[i] for i, plane in predicted])
        bits[[i for i, _ in predicted]] += cost
        for (i, plane), values in zip(predicted, known, strict=True):
            base[i] = _combine(plane, values)
    rows, rest, cost = code_rows([w - b for w, b in zip(wanted, base, strict=True)])
    bits += cost + SIDE_BITS / 2
    decoded = [np.float64(b) + r for b, r in zip(base, rest, strict=True)]
    scales, unit, factors = _fit_all(deltas, ranks, decoded)
    ends = np.cumsum([0, *ranks]) * 2
    return Encoding(
        Coded(tuple(ranks), scales, unit, coordinates, rows),
        factors,
        np.array([bits[a:b].sum() for a, b in pairwise(ends)]),
        np.array([squared_error(d, f) for d, f in zip(deltas, factors, strict=True)]),
    )


def decode(
    coded: Coded, shapes: Sequence[tuple[int, int]], bases: Sequence[Basis | None]
) -> tuple[Factors, ...]:
    """What `encode` returned as factors, bit for bit.

    Args:
        coded: The stored adapter.
        shapes: (d_in, d_out) of each module.
        bases: As they were when it was encoded.

    Raises:
        StreamError: The stored values do not fit the shapes.
    """
    sizes = [d for shape, rank in zip(shapes, coded.ranks, strict=True) for d in shape * rank]
    rest = read_rows(coded.rows, sizes)
    decoded: list[NDArray[np.float64]] = [r.astype(np.float64) for r in rest]
    predicted = _planes(coded.ranks, bases)
    if predicted:
        if coded.coordinates is None:
            raise rans.StreamError("the coordinates of predicted rows are missing")
        known = read_rows(coded.coordinates, [len(plane) for _, plane in predicted])
        for (i, plane), values in zip(predicted, known, strict=True):
            decoded[i] += _combine(plane, values)
    scales = coded.scales.astype(np.float64) * coded.unit
    return _group(coded.ranks, decoded, scales, shapes)


def squared_error(delta: Delta, factors: Factors) -> float:
    """Squared Frobenius distance between a delta and a decoded module."""
    gram, match = _normal_equations(delta, factors.rows, factors.columns)
    c = factors.scales
    return max(0.0, delta.energy - 2 * float(c @ match) + float(c @ gram @ c))


def _ranks(worth: Sequence[Sequence[float]], share: float) -> list[int]:
    """Ranks to keep per module: the best ``share`` of those given."""
    modules = np.array([m for m, each in enumerate(worth) for _ in each], np.int64)
    order = np.argsort([-w for each in worth for w in each], kind="stable")
    kept = modules[order[: math.ceil(share * len(order))]]
    return [int(n) for n in np.bincount(kept, minlength=len(worth))]


def _worth(delta: Delta, step: float, basis: Basis | None) -> list[float]:
    """By how much the leading ranks are worth their bits, until one is not.

    The model is a Gaussian source under reverse water-filling: a row of variance ``v`` (steps**2
    per value) costs half log2(v / WATER) bits a value and keeps min(v, WATER) as error. What a
    rank explains, in steps**2, is held against its bits; no rank counts for more than the one
    before it, so that the best of all modules are leading ranks.
    """
    found: list[float] = []
    for i, sigma in enumerate(delta.sigma):
        explained, bits = float(sigma / step) ** 2, float(SIDE_BITS)
        if explained == 0:
            break
        for side, plane in (
            (delta.rows[i], basis and basis.rows),
            (delta.columns[i], basis and basis.columns),
        ):
            unknown = whole = float(sigma / step) ** 2 / len(side)
            if plane is not None:
                inside = np.square(plane @ (side / np.float64(step)))
                unknown = max(0.0, whole - float(inside.sum()) / len(side))
                bits += float(np.log2(1 + inside / WATER).sum()) / 2
            bits += len(side) * max(0.0, math.log2(max(unknown, 1e-300) / WATER)) / 2
            explained *= 1 - min(unknown, WATER) / whole
        worth = explained / (RATE_WEIGHT * bits)
        if worth < 1:
            break
        found.append(min(worth, found[-1] if found else worth))
    return found


def _planes(
    ranks: Sequence[int], bases: Sequence[Basis | None]
) -> list[tuple[int, NDArray[np.float64]]]:
    """Which rows of a stream are predicted, and from what."""
    sides = [
        plane
        for basis, rank in zip(bases, ranks, strict=True)
        for plane in ([basis.rows, basis.columns] if basis else [None, None]) * rank
    ]
    return [(i, plane) for i, plane in enumerate(sides) if plane is not None and len(plane)]


def _combine(plane: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float64]:
    """``values @ plane``, added up in order: a BLAS product would differ between machines."""
    total = np.zeros(plane.shape[1])
    for value, row in zip(values, plane, strict=True):
        total += value * row
    return total


def code_rows(
    rows: Sequence[NDArray[np.float64]],
) -> tuple[Stream, list[NDArray[np.int32]], NDArray[np.float64]]:
    """Code rows (in steps); also what they decode to, and the bits of each."""
    sizes = np.array([len(row) for row in rows], np.int64)
    deviations = np.array([math.sqrt(np.square(row).mean()) for row in rows])
    classes = _classes(deviations)
    values = np.concatenate([*rows, np.zeros(0)]).astype(np.float32)
    each = np.repeat(classes, sizes)
    symbols = np.empty(len(values), np.int32)
    quantisers = np.empty(len(values), np.uint8)
    for part in _parts(len(values)):
        lanes = lanes_for(part.stop - part.start)
        symbols[part], quantisers[part] = trellis.quantise(
            values[part], each[part], lanes, RATE_WEIGHT
        )
    classes, bits = _best_classes(symbols, quantisers, sizes, classes)
    each = np.repeat(classes, sizes)
    blocks = tuple(
        rans.encode(symbols[p], each[p], quantisers[p], lanes_for(p.stop - p.start))
        for p in _parts(len(values))
    )
    decoded = trellis.reconstruct(symbols, quantisers.astype(np.int32))
    return Stream(classes, blocks), _split(decoded, sizes.tolist()), bits


def read_rows(stream: Stream, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """The rows of a stream, in steps.

    Raises:
        StreamError: The stored values do not fit the sizes.
    """
    each = np.repeat(stream.classes, sizes)
    parts = list(_parts(len(each)))
    if len(parts) != len(stream.blocks):
        raise rans.StreamError(f"{len(stream.blocks)} blocks are stored, {len(parts)} are needed")
    values = [rans.decode(b, each[p]) for b, p in zip(stream.blocks, parts, strict=True)]
    return _split(np.concatenate([*values, np.zeros(0, np.int64)]), sizes)


def _split(values: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    ends = np.cumsum(sizes)
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _parts(count: int) -> list[slice]:
    return [slice(at, min(at + BLOCK, count)) for at in range(0, count, BLOCK)]


def _classes(deviations: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Table classes of standard deviations in steps."""
    quarters = np.rint(4 * np.log2(np.maximum(deviations, 1e-9))) + CLASS_OF_ONE
    classes: NDArray[np.uint8] = np.clip(quarters, 0, CLASSES - 1).astype(np.uint8)
    return classes


def _best_classes(
    symbols: NDArray[np.int32],
    quantisers: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    classes: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Per row the class near the given one that codes its symbols in the fewest bits."""
    tried = np.clip(classes + np.arange(-2, 2)[:, None], 0, CLASSES - 1).astype(np.uint8)
    costs = np.zeros(tried.shape)
    ends = np.cumsum(sizes)
    for i, size in enumerate(sizes):
        mine = slice(ends[i] - size, ends[i])
        for j in range(len(tried)):
            costs[j, i] = trellis.bits(symbols[mine], tried[j, i], quantisers[mine]).sum()
    best = costs.argmin(0)
    chosen = np.arange(len(sizes))
    return tried[best, chosen], costs[best, chosen]


def _normal_equations(
    delta: Delta, rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gram matrix of the terms outer(columns[i], rows[i]), and their products with the delta."""
    gram = (columns @ columns.T) * (rows @ rows.T)
    inverse = 1 / np.where(delta.sigma > 0, delta.sigma, np.inf)
    match = ((columns @ delta.columns.T) * inverse * (rows @ delta.rows.T)).sum(1)
    return gram, match


def _fit_all(
    deltas: Sequence[Delta], ranks: Sequence[int], decoded: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.float16], float, tuple[Factors, ...]]:
    """Least-squares scales, rounded to float16 times a power of two common to all."""
    shapes = [(d.rows.shape[1], d.columns.shape[1]) for d in deltas]
    modules = _group(ranks, decoded, np.zeros(sum(ranks)), shapes)
    exact = [
        np.linalg.lstsq(*_normal_equations(d, m.rows, m.columns), rcond=1e-12)[0]
        for d, m in zip(deltas, modules, strict=True)
    ]
    scales = np.concatenate([*exact, np.zeros(0)])
    largest = float(np.abs(scales).max(initial=0))
    unit = 2.0 ** (math.frexp(largest)[1] - 15)
    rounded = (scales / unit).astype(np.float16)
    return rounded, unit, _group(ranks, decoded, rounded.astype(np.float64) * unit, shapes)


def _group(
    ranks: Sequence[int],
    decoded: Sequence[NDArray[np.float64]],
    scales: NDArray[np.float64],
    shapes: Sequence[tuple[int, int]],
) -> tuple[Factors, ...]:
    """Rows and columns, which alternate in ``decoded``, by module."""
    found, at = [], 0
    for rank, (d_in, d_out) in zip(ranks, shapes, strict=True):
        mine = decoded[2 * at : 2 * (at + rank)]
        found.append(
            Factors(
                np.array(mine[::2], np.float64).reshape(rank, d_in),
                np.array(mine[1::2], np.float64).reshape(rank, d_out),
                scales[at : at + rank],
            )
        )
        at += rank
    return tuple(found)
