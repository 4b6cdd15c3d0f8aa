"""The lossless pass: shards of Mixture-of-Shards adapters found again (Wang et al., 2410.00938).

MoS trains every vector of A and B as a concatenation of shards from a pool that all layers share,
and is published expanded, as an ordinary LoRA. The shards are still there, bit for bit: per module
type and side the distinct ones make up the pool, and a table says which stand where. Tensors and
shards that adapters of a collection have in common are stored once.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorahub.adapter import DTYPE_BYTES, Module
from lorahub.formats.safetensors import read_header
from lorahub.packing.container import PackFile, Section

LEAST_SHARD = 8
"""Values in the smallest shard looked for."""

LEAST_GAIN = 0.05
"""Share of the bytes that must be saved for a pool to be worth it."""

_IDS = (("U8", "u1", 1 << 8), ("U16", "<u2", 1 << 16), ("U32", "<u4", 1 << 32))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class _Found:
    """Vectors of one module type and side, taken apart.

    Attributes:
        pool: uint8 (shards, bytes of one), distinct shards in order of appearance.
        ids: int64 (vectors, shards per vector).
    """

    pool: NDArray[np.uint8]
    ids: NDArray[np.int64]

    @property
    def bytes(self) -> int:
        """Stored bytes of pool and table."""
        return self.pool.size + self.ids.size * np.dtype(_id_type(len(self.pool))[1]).itemsize


def read_tensors(weights: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a weights file as they lie there.

    Raises:
        InvalidAdapterError: The file cannot be read.
    """
    header = read_header(weights)
    found = {}
    with weights.open("rb") as file:
        for key in keys:
            entry = header.tensors[key]
            file.seek(entry.start)
            data = file.read(entry.stop - entry.start)
            found[key] = Tensor(entry.dtype, entry.shape, data)
    return found


def pool_parameters(modules: Sequence[tuple[int, int]], layers: int, equivalent_rank: int) -> int:
    """Trainable parameters of MoS: equivalent_rank * layers * sum(d_in + d_out) over types."""
    return equivalent_rank * layers * sum(d_in + d_out for d_in, d_out in modules)


def store(
    members: Sequence[tuple[Sequence[Module], Mapping[str, Tensor]]],
) -> tuple[list[list[list[Any]]], list[Section]]:
    """Entries per member, [key, dtype, shape, section, ...], and the sections they refer to.

    An entry of four fields is a whole tensor. One of six is made of shards: the pool's number,
    the first vector in its table, and 1 where vectors are columns.
    """
    groups: dict[tuple[str, str, str, int], list[tuple[int, str, bool]]] = defaultdict(list)
    for i, (modules, tensors) in enumerate(members):
        for m in modules:
            for side, key, dtype, length in (
                ("A", m.key_a, m.dtype_a, m.d_in),
                ("B", m.key_b, m.dtype_b, m.d_out),
            ):
                if len(tensors[key].shape) == 2:
                    groups[m.target, side, dtype, length].append((i, key, side == "B"))
    sections: list[Section] = []
    sharded: dict[tuple[int, str], list[Any]] = {}
    for (_, _, dtype, length), uses in sorted(groups.items()):
        vectors = [_vectors(members[i][1][key], columns) for i, key, columns in uses]
        whole = np.concatenate(vectors)
        distinct = {members[i][1][key].data for i, key, _ in uses}
        found = _take_apart(whole, length, DTYPE_BYTES[dtype])
        if found is None or found.bytes >= (1 - LEAST_GAIN) * sum(map(len, distinct)):
            continue
        assert (found.pool[found.ids].reshape(whole.shape) == whole).all()
        number = len(sections) // 2
        name, kind, _ = _id_type(len(found.pool))
        shape = (len(found.pool), found.pool.shape[1] // DTYPE_BYTES[dtype])
        sections.append(Section(f"pool.{number}", dtype, shape, found.pool.tobytes()))
        ids = found.ids.astype(kind).tobytes()
        sections.append(Section(f"ids.{number}", name, found.ids.shape, ids))
        first = 0
        for (i, key, columns), rows in zip(uses, vectors, strict=True):
            sharded[i, key] = [number, first, int(columns)]
            first += len(rows)
    return _entries(members, sharded, sections), sections


def _entries(
    members: Sequence[tuple[Sequence[Module], Mapping[str, Tensor]]],
    sharded: Mapping[tuple[int, str], list[Any]],
    sections: list[Section],
) -> list[list[list[Any]]]:
    """Entries of all members; whole tensors are appended to ``sections``, equal ones once."""
    stored: dict[tuple[str, tuple[int, ...], str], str] = {}
    found = []
    for i, (_, tensors) in enumerate(members):
        entries = []
        for key, tensor in tensors.items():
            entry: list[Any] = [key, tensor.dtype, list(tensor.shape)]
            if (i, key) in sharded:
                entry += sharded[i, key]
            else:
                identity = tensor.dtype, tensor.shape, hashlib.sha256(tensor.data).hexdigest()
                if identity not in stored:
                    stored[identity] = f"tensor.{len(stored)}"
                    sections.append(
                        Section(stored[identity], tensor.dtype, tensor.shape, tensor.data)
                    )
                entry.append(stored[identity])
            entries.append(entry)
        found.append(entries)
    return found


def expand(pack: PackFile, entries: object, limit: int) -> dict[str, Tensor]:
    """The tensors of a member that was stored exactly, ``limit`` values at most.

    Raises:
        InvalidAdapterError: An entry is not what a pack has there.
    """
    found = {}
    checked = _checked_all(pack, entries)
    values = sum(math.prod(shape) for _, _, shape, *_ in checked)
    if values > limit:
        raise pack.invalid(
            "field 'tensors'", f"claims {values} values, more than the file can hold"
        )
    for key, dtype, shape, *where in checked:
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        if len(where) == 1:
            data = pack.section(where[0], dtype)
        else:
            data = _assemble(pack, dtype, shape, *where)
        if len(data) != size:
            raise pack.invalid(f"tensor '{key}'", f"has {len(data)} bytes, its shape needs {size}")
        found[key] = Tensor(dtype, shape, data)
    return found


def layout(pack: PackFile, entries: object) -> list[tuple[str, tuple[int, ...]]]:
    """The dtype and shape of every tensor of a member, without reading them.

    Raises:
        InvalidAdapterError: An entry is not what a pack has there.
    """
    return [entry[1:3] for entry in _checked_all(pack, entries)]


def _checked_all(pack: PackFile, entries: object) -> list[tuple[Any, ...]]:
    if not isinstance(entries, list):
        raise pack.invalid("field 'tensors'", "is no list")
    return [_checked(pack, entry) for entry in entries]


def _checked(pack: PackFile, entry: object) -> tuple[Any, ...]:
    if isinstance(entry, list) and len(entry) in {4, 6}:
        key, dtype, shape, *where = entry
        numbers = [*shape, *where] if isinstance(shape, list) and len(where) == 3 else shape
        if (
            isinstance(key, str)
            and key.isprintable()
            and dtype in DTYPE_BYTES
            and isinstance(numbers, list)
            and all(type(n) is int and 0 <= n < 1 << 31 for n in numbers)
            and (len(where) == 3 or isinstance(where[0], str))
        ):
            return (key, dtype, tuple(shape), *where)
    raise pack.invalid("field 'tensors'", "has an entry that is malformed")


def _assemble(
    pack: PackFile, dtype: str, shape: tuple[int, ...], number: int, first: int, columns: int
) -> bytes:
    """A factor from its shards."""
    item = DTYPE_BYTES[dtype]
    pool, ids = pack.shape(f"pool.{number}"), pack.shape(f"ids.{number}")
    if len(shape) != 2 or len(pool) != 2 or len(ids) != 2:
        raise pack.invalid(f"section 'pool.{number}'", "does not fit the tensors that use it")
    length, count = shape if columns else shape[::-1]
    kind = _id_type(pool[0])
    table = np.frombuffer(pack.section(f"ids.{number}", kind[0]), kind[1]).reshape(ids)
    table = table[first : first + count]
    if len(table) != count or pool[1] * ids[1] != length or (table >= pool[0]).any():
        raise pack.invalid(f"section 'ids.{number}'", "does not fit the tensors that use it")
    shards = np.frombuffer(pack.section(f"pool.{number}", dtype), np.uint8)
    vectors = shards.reshape(pool[0], pool[1] * item)[table].reshape(count, length, item)
    data: bytes = (vectors.transpose(1, 0, 2) if columns else vectors).tobytes()
    return data


def _vectors(tensor: Tensor, columns: bool) -> NDArray[np.uint8]:
    """Rows (columns where told) of a factor, as bytes (vectors, bytes of one)."""
    values = np.frombuffer(tensor.data, np.uint8).reshape(*tensor.shape, DTYPE_BYTES[tensor.dtype])
    if columns:
        values = values.transpose(1, 0, 2)
    return np.ascontiguousarray(values).reshape(len(values), -1)


def _take_apart(whole: NDArray[np.uint8], length: int, item: int) -> _Found | None:
    """The split into equal shards that stores fewest bytes; None where no shard occurs twice."""
    best: _Found | None = None
    for parts in range(1, length // LEAST_SHARD + 1):
        if length % parts:
            continue
        shards = whole.reshape(-1, length // parts * item)
        _, first, inverse = np.unique(
            shards.view(f"V{shards.shape[1]}")[:, 0], return_index=True, return_inverse=True
        )
        if len(first) == len(shards):
            continue
        place = np.empty(len(first), np.int64)
        order = np.argsort(first)
        place[order] = np.arange(len(first))
        found = _Found(shards[first[order]], place[inverse].reshape(-1, parts))
        if best is None or found.bytes < best.bytes:
            best = found
    return best


def _id_type(count: int) -> tuple[str, str, int]:
    """The safetensors and numpy type of ids below ``count``."""
    return next(t for t in _IDS if count <= t[2])
