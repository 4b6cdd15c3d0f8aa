"""rANS: entropy coding of symbols by integer frequency tables (Duda, arXiv 1311.2540).

``lanes`` coders with 32-bit states run side by side, one array operation per step; they share
one stream of 16-bit words (Giesen, "Interleaved entropy coders", arXiv 1402.3392). Each lane
also follows the trellis of `lorahub.packing.trellis`, which says which of two tables is next.
Everything is integer arithmetic: encoding and decoding give the same values on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.tables import PRECISION, table
from lorahub.packing.trellis import reconstruct

_LOW = 1 << 16
"""States stay in [2**16, 2**32)."""

_MASK = (1 << PRECISION) - 1


@dataclass(frozen=True, slots=True)
class Coded:
    """One block of symbols.

    Attributes:
        states: uint32 (lanes,), where decoding starts.
        words: uint16, read forwards while decoding.
        escapes: int32, symbols that their table does not have, in order.
    """

    states: NDArray[np.uint32]
    words: NDArray[np.uint16]
    escapes: NDArray[np.int32]


class StreamError(ValueError):
    """The coded bytes are not what an encoder writes."""


def encode(
    symbols: NDArray[Any],
    classes: NDArray[np.uint8],
    quantisers: NDArray[Any],
    lanes: int,
) -> Coded:
    """Code ``symbols`` (n,) with the tables of their classes and quantisers."""
    starts, frequencies, escaped = _lookup(symbols, classes, quantisers)
    n = len(symbols)
    state = np.full(lanes, _LOW, np.uint64)
    chunks: list[NDArray[np.uint16]] = []
    limit = frequencies << np.uint64(32 - PRECISION)
    shift, precision = np.uint64(16), np.uint64(PRECISION)
    for first in range((n - 1) // lanes * lanes, -1, -lanes):
        last = min(first + lanes, n)
        x = state[: last - first]
        full = x >= limit[first:last]
        if full.any():
            chunks.append(x[full].astype(np.uint16))
            x[full] >>= shift
        quotient, rest = np.divmod(x, frequencies[first:last])
        x[:] = (quotient << precision) + rest + starts[first:last]
    words = np.concatenate(chunks[::-1]) if chunks else np.zeros(0, np.uint16)
    return Coded(state.astype(np.uint32), words, symbols[escaped].astype(np.int32))


def decode(coded: Coded, classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Values in steps (n,) of a block whose value i has table class ``classes[i]``.

    Raises:
        StreamError: The words or escapes do not fit.
    """
    n, lanes = len(classes), len(coded.states)
    tables = _Decoding(classes)
    state = coded.states.astype(np.int64)
    words = coded.words.astype(np.int64)
    where = tables.offsets  # becomes the slots met
    # The trellis state, each bit as the offset between the tables of the two quantisers.
    a, b, c = np.zeros((3, lanes), np.int64)
    at = 0
    for first in range(0, n, lanes):
        index = where[first : first + lanes]
        x = state[: len(index)]
        index += a[: len(index)]
        index += x & _MASK
        x >>= PRECISION
        x *= tables.frequencies.take(index)
        x += tables.biases.take(index)
        c[: len(index)] ^= tables.parities.take(index)
        b ^= a
        a, b, c = b, c, a
        empty = (x < _LOW).nonzero()[0]
        if len(empty):
            refill = words[at : at + len(empty)]
            if len(refill) < len(empty):
                raise StreamError("the coded stream ends too early")
            x[empty] = x[empty] << 16 | refill
            at += len(empty)
    if at != len(words) or (state != _LOW).any():
        raise StreamError("the coded stream does not end where its symbols do")
    return tables.values(where, coded.escapes)


def _lookup(
    symbols: NDArray[Any], classes: NDArray[np.uint8], quantisers: NDArray[Any]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
    """Start and frequency of each symbol in its table, and which of them are escapes."""
    starts = np.empty(len(symbols), np.uint64)
    frequencies = np.empty(len(symbols), np.uint64)
    escaped = np.zeros(len(symbols), bool)
    pairs = classes.astype(np.int64) * 2 + quantisers
    for pair in np.flatnonzero(np.bincount(pairs)):
        chosen = table(int(pair) >> 1, int(pair) & 1)
        mine = np.flatnonzero(pairs == pair)
        index = symbols[mine] + chosen.largest
        outside = np.abs(symbols[mine]) > chosen.largest
        index[outside] = 2 * chosen.largest + 1
        escaped[mine] = outside
        ends = np.cumsum(chosen.frequencies)
        starts[mine] = (ends - chosen.frequencies)[index]
        frequencies[mine] = chosen.frequencies[index]
    return starts, frequencies, escaped


class _Decoding:
    """Tables by slot, both quantisers of every class in use one after the other."""

    def __init__(self, classes: NDArray[np.uint8]) -> None:
        used = np.flatnonzero(np.bincount(classes))
        tables = [table(int(c), quantiser) for c in used for quantiser in (0, 1)]
        repeats = [t.frequencies for t in tables]
        place = np.zeros(256, np.int64)
        place[used] = np.arange(len(used)) << (PRECISION + 1)
        self.offsets = place[classes]
        self.frequencies = np.concatenate([np.repeat(f, f) for f in repeats]).astype(np.int64)
        slots = np.tile(np.arange(1 << PRECISION), len(tables))
        starts = np.concatenate([np.repeat(np.cumsum(f) - f, f) for f in repeats])
        self.biases = slots - starts
        symbols = [np.append(np.arange(-t.largest, t.largest + 1), _ESCAPE) for t in tables]
        self._symbols = np.concatenate(
            [np.repeat(s, f) for s, f in zip(symbols, repeats, strict=True)]
        ).astype(np.int32)
        self.parities = (self._symbols & 1).astype(np.int64) << PRECISION

    def values(self, where: NDArray[np.int64], escapes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Values in steps of the slots that were met."""
        symbols = self._symbols.take(where).astype(np.int64)
        escaped = np.flatnonzero(symbols == _ESCAPE)
        if len(escaped) != len(escapes):
            raise StreamError(f"{len(escapes)} escapes are stored, {len(escaped)} are used")
        symbols[escaped] = escapes
        return reconstruct(symbols, where >> PRECISION & 1)


_ESCAPE = -(1 << 20)
"""Stands for an escaped symbol in lookups; even, since the encoder escapes even ones only."""
