"""Public rows: one basis for a module in all adapters of a collection, and who uses it.

The rows of all adapters, each in its own steps, are stacked; the leading principal rows are coded
once and every adapter is predicted from them. Its coordinates are its core, what is left over its
private part. Any member then decodes without the others, and linear merges are sums of cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.gauge import Delta
from lorahub.packing.pools import COLUMNS, PUBLIC, ROWS, Key, Pool, orthonormal
from lorahub.packing.rans import StreamError
from lorahub.packing.waterfill import (
    RATE_WEIGHT,
    WATER,
    Basis,
    Encoding,
    Stream,
    code_rows,
    encode,
    read_rows,
)

_CLASS_BITS = 8
_LEAST = 2 * WATER
"""Squared steps per value that a principal row must have to be public."""


@dataclass(frozen=True, slots=True)
class Member:
    """An adapter at its quantisation steps."""

    keys: Sequence[Key]
    deltas: Sequence[Delta]
    steps: Sequence[float]


@dataclass(frozen=True, slots=True)
class Public:
    """Public rows as they are stored.

    Attributes:
        modules: The modules that have some.
        counts: For each the number of public rows and of public columns.
        stream: For each module its rows, then its columns.
    """

    modules: tuple[Key, ...]
    counts: tuple[tuple[int, int], ...]
    stream: Stream


def encode_public(
    members: Sequence[Member], keys: Sequence[Key]
) -> tuple[Public, dict[Key, float]]:
    """Code the public rows of the given modules; also the bits that each module takes."""
    rows: list[NDArray[np.float64]] = []
    counts = []
    for key in keys:
        uses = [
            (delta, step)
            for m in members
            for k, delta, step in zip(m.keys, m.deltas, m.steps, strict=True)
            if k == key
        ]
        sides = (
            _principal([d.rows / np.float64(step) for d, step in uses]),
            _principal([d.columns / np.float64(step) for d, step in uses]),
        )
        counts.append((len(sides[0]), len(sides[1])))
        rows += [*sides[0], *sides[1]]
    stream, _, bits = code_rows(rows)
    ends = np.cumsum([0, *(sum(c) for c in counts)])
    spent = np.add.accumulate([0.0, *(bits + _CLASS_BITS)])[ends]
    return Public(tuple(keys), tuple(counts), stream), dict(zip(keys, np.diff(spent), strict=True))


def decode_public(public: Public) -> dict[Key, Basis]:
    """The bases that modules with the flag PUBLIC are predicted from.

    Raises:
        StreamError: The stored values do not fit the counts.
    """
    sizes = [
        d
        for (_, d_in, d_out), (k, n) in zip(public.modules, public.counts, strict=True)
        for d in [d_in] * k + [d_out] * n
    ]
    if len(sizes) != len(public.stream.classes):
        raise StreamError(f"{len(public.stream.classes)} classes for {len(sizes)} public rows")
    rows = iter(read_rows(public.stream, sizes))
    found = {}
    for key, (k, n) in zip(public.modules, public.counts, strict=True):
        sides = [np.array([next(rows) for _ in range(c)], np.float64) for c in (k, n)]
        found[key] = Basis(*(orthonormal(side) if len(side) else None for side in sides))
    return found


def _principal(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Leading right singular vectors of the stack, times their singular values."""
    _, sigma, rows = np.linalg.svd(np.concatenate(parts), full_matrices=False)
    kept = int((sigma**2 > _LEAST * rows.shape[1]).sum())
    found: NDArray[np.float64] = sigma[:kept, None] * rows[:kept]
    return found


def choose(members: Sequence[Member]) -> list[list[int]]:
    """The flags of every member's modules, by measured cost.

    A module is coded alone, predicted from the adapters before it, or, in all adapters at once,
    predicted from public rows. The cost is the squared error in steps plus the bits, at the slope
    of the rate-distortion curve. Prediction is only tried where an earlier adapter explains
    enough, so that unrelated adapters cost nothing more.
    """
    if len(members) == 1:
        return [[0] * len(members[0].keys)]
    pool = Pool()
    chosen, costs = [], []
    for m in members:
        alone = encode(m.deltas, m.steps, [None] * len(m.keys))
        cost = _cost(alone, m.steps)
        flags = [pool.promising(key, d) for key, d in zip(m.keys, m.deltas, strict=True)]
        encoding = alone
        if any(flags):
            shared = encode_next(pool, m, flags)
            flags = [f if c < a else 0 for f, a, c in zip(
                flags, cost, _cost(shared, m.steps), strict=True
            )]  # fmt: skip
            encoding = encode_next(pool, m, flags)
            cost = _cost(encoding, m.steps)
        pool.add(m.keys, encoding.factors)
        chosen.append(flags)
        costs.append(cost)
    related = sorted({k for m, f in zip(members, chosen, strict=True)
                      for k, flag in zip(m.keys, f, strict=True) if flag})  # fmt: skip
    if related:
        _take_public(members, related, chosen, costs)
    return chosen


def _take_public(
    members: Sequence[Member],
    related: Sequence[Key],
    chosen: list[list[int]],
    costs: Sequence[NDArray[np.float64]],
) -> None:
    """Flag those related modules as PUBLIC that cost less so, over all members."""
    public, bits = encode_public(members, related)
    pool = Pool(decode_public(public))
    gain = {key: -RATE_WEIGHT * bits[key] for key in related}
    for m, cost in zip(members, costs, strict=True):
        mine = [i for i, key in enumerate(m.keys) if key in gain]
        part = Member(
            [m.keys[i] for i in mine], [m.deltas[i] for i in mine], [m.steps[i] for i in mine]
        )
        joint = _cost(encode_next(pool, part, [ROWS | COLUMNS | PUBLIC] * len(mine)), part.steps)
        for i, c in zip(mine, joint, strict=True):
            gain[m.keys[i]] += float(cost[i] - c)
    for m, flags in zip(members, chosen, strict=True):
        for i, key in enumerate(m.keys):
            if gain.get(key, 0) > 0:
                flags[i] = ROWS | COLUMNS | PUBLIC


def encode_next(pool: Pool, member: Member, flags: Sequence[int], share: float = 1.0) -> Encoding:
    """Encode an adapter with what the pool has, predicted as the flags say."""
    bases = [pool.basis(key, f) for key, f in zip(member.keys, flags, strict=True)]
    return encode(member.deltas, member.steps, bases, share)


def used(pool: Pool, keys: Sequence[Key], flags: Sequence[int]) -> tuple[int, ...]:
    """The flags without the sides for which the pool has nothing."""
    found = []
    for key, flag in zip(keys, flags, strict=True):
        basis = pool.basis(key, flag)
        rows = basis is not None and basis.rows is not None and len(basis.rows) > 0
        columns = basis is not None and basis.columns is not None and len(basis.columns) > 0
        found.append((ROWS * rows + COLUMNS * columns + (flag & PUBLIC)) * (rows or columns))
    return tuple(found)


def _cost(encoding: Encoding, steps: Sequence[float]) -> NDArray[np.float64]:
    cost: NDArray[np.float64] = encoding.errors / np.square(steps) + RATE_WEIGHT * encoding.bits
    return cost
