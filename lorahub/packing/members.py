"""Members of a pack: how coded adapters lie in its index and sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorahub.packing.baselines import Plain
from lorahub.packing.joint import Public
from lorahub.packing.rans import Coded as Block
from lorahub.packing.tables import CLASSES
from lorahub.packing.waterfill import Coded, Stream


class FieldError(ValueError):
    """A field of a member is not what a pack has there; the text names the field."""


def waterfill_fields(coded: Coded, sides: Sequence[int]) -> tuple[dict[str, Any], bytes]:
    """Index fields and data of a water-filled member."""
    streams = [coded.rows] + ([coded.coordinates] if coded.coordinates else [])
    fields: dict[str, Any] = {
        "codec": "waterfill",
        "ranks": list(coded.ranks),
        "exponent": int(np.log2(coded.unit)),
        "streams": [_layout(s) for s in streams],
    }
    if any(sides):
        fields["predicted"] = list(sides)
    return fields, _bytes(coded.scales, "<f2") + b"".join(_stream_bytes(s) for s in streams)


def public_fields(public: Public) -> tuple[dict[str, Any], bytes]:
    """Index fields and data of public rows."""
    modules = [[*m, *c] for m, c in zip(public.modules, public.counts, strict=True)]
    return {"modules": modules, "stream": _layout(public.stream)}, _stream_bytes(public.stream)


def read_public(fields: object, data: bytes) -> Public:
    """Public rows.

    Raises:
        FieldError: A field is not what it should be.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("modules"), list):
        raise FieldError("modules")
    keys, counts = [], []
    for line in fields["modules"]:
        if not isinstance(line, list) or len(line) != 5 or not isinstance(line[0], str):
            raise FieldError("modules")
        d_in, d_out, rows, columns = naturals({"modules": line[1:]}, "modules", 4)
        keys.append((line[0], d_in, d_out))
        counts.append((rows, columns))
    cursor = _Cursor(data)
    stream = _stream(cursor, fields.get("stream"), sum(map(sum, counts)))
    cursor.end()
    return Public(tuple(keys), tuple(counts), stream)


def read_waterfill(
    fields: Mapping[str, Any], data: bytes, modules: int
) -> tuple[Coded, tuple[int, ...]]:
    """A water-filled member and the sides of its modules that are predicted.

    Raises:
        FieldError: A field is not what it should be.
    """
    ranks = naturals(fields, "ranks", modules)
    sides = naturals(fields, "predicted", modules) if "predicted" in fields else (0,) * modules
    exponent = fields.get("exponent")
    if type(exponent) is not int or abs(exponent) > 1000:
        raise FieldError("exponent")
    kept = sum(ranks)
    counts = [2 * kept]
    if any(sides):
        counts.append(sum(r * (s & 3).bit_count() for r, s in zip(ranks, sides, strict=True)))
    layout = fields.get("streams")
    if not isinstance(layout, list) or len(layout) != len(counts):
        raise FieldError("streams")
    cursor = _Cursor(data)
    scales = cursor.take("<f2", kept)
    streams = [_stream(cursor, b, n) for b, n in zip(layout, counts, strict=True)]
    cursor.end()
    coordinates = streams[1] if len(streams) > 1 else None
    return Coded(ranks, scales, 2.0**exponent, coordinates, streams[0]), sides


def plain_fields(plain: Plain, method: str) -> tuple[dict[str, Any], bytes]:
    """Index fields and data of a member in plain numbers."""
    fields = {"codec": "plain", "method": method, "bits": [list(b) for b in plain.bits]}
    return fields, _bytes(plain.scales, "<f4") + plain.payload


def read_plain(fields: Mapping[str, Any], data: bytes, modules: int) -> Plain:
    """A member in plain numbers.

    Raises:
        FieldError: A field is not what it should be.
    """
    bits = read_bits(fields, modules)
    cursor = _Cursor(data)
    scales = cursor.take("<f4", 2 * sum(b < 16 for row in bits for b in row))
    return Plain(bits, scales, cursor.rest())


def read_bits(fields: Mapping[str, Any], modules: int) -> tuple[tuple[int, ...], ...]:
    """Bits of every rank of a member in plain numbers.

    Raises:
        FieldError: The field is not what it should be.
    """
    rows = fields.get("bits")
    if not isinstance(rows, list) or len(rows) != modules:
        raise FieldError("bits")
    bits = tuple(naturals({"bits": row}, "bits", None) for row in rows)
    if any(not 2 <= b <= 16 for row in bits for b in row):
        raise FieldError("bits")
    return bits


def naturals(fields: Mapping[str, Any], name: str, count: int | None) -> tuple[int, ...]:
    """A field that is a list of whole numbers from 0 to 2**31, ``count`` of them.

    Raises:
        FieldError: It is not.
    """
    values = fields.get(name)
    if not isinstance(values, list) or count not in {None, len(values)}:
        raise FieldError(name)
    if not all(type(v) is int and 0 <= v < 1 << 31 for v in values):
        raise FieldError(name)
    return tuple(values)


def _layout(stream: Stream) -> list[list[int]]:
    return [[len(b.states), len(b.words), len(b.escapes)] for b in stream.blocks]


def _stream_bytes(stream: Stream) -> bytes:
    parts = [stream.classes.tobytes()]
    for block in stream.blocks:
        parts += [_bytes(block.states, "<u4"), _bytes(block.words, "<u2")]
        parts.append(_bytes(block.escapes, "<i4"))
    return b"".join(parts)


def _stream(cursor: _Cursor, blocks: object, count: int) -> Stream:
    classes = cursor.take("u1", count)
    if (classes >= CLASSES).any():
        raise FieldError("data (classes)")
    if not isinstance(blocks, list):
        raise FieldError("streams")
    return Stream(classes, tuple(_block(cursor, block) for block in blocks))


def _block(cursor: _Cursor, layout: object) -> Block:
    lanes, words, escapes = naturals({"streams": layout}, "streams", 3)
    if lanes < 1:
        raise FieldError("streams")
    return Block(cursor.take("<u4", lanes), cursor.take("<u2", words), cursor.take("<i4", escapes))


def _bytes(values: NDArray[Any], dtype: str) -> bytes:
    return values.astype(dtype).tobytes()


class _Cursor:
    """Reads arrays from a member's data, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        stop = self._at + count * np.dtype(dtype).itemsize
        if stop > len(self._data):
            raise FieldError("data (it ends too early)")
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at = stop
        return values

    def rest(self) -> bytes:
        return self._data[self._at :]

    def end(self) -> None:
        if self._at != len(self._data):
            raise FieldError("data (it is too long)")
