"""The pack file: a safetensors file with an index, the members' data and a checksum.

The layout is documented in docs/mos-format.md. All numbers are little-endian. The same sections
and index give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidAdapterError,
    NotFoundError,
    StorageError,
)
from lorahub.formats.safetensors import read_header

FORMAT = "lorahub.mos"
VERSION = 1

MAX_INDEX_BYTES = 64 << 20
"""What the index may grow to when it is inflated."""

VALUES_PER_BYTE = 1 << 12
"""More values than this per byte of file are no real adapter but a trap for memory."""

_INDEX = "index"
_BLANK = "0" * 64
_CHUNK = 1 << 20
_PACK_HINT = "a pack is what `lorahub pack` wrote"


@dataclass(frozen=True, slots=True)
class Section:
    """One tensor of the file: its name, safetensors dtype, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def assemble(index: Mapping[str, Any], sections: Sequence[Section]) -> bytes:
    """The bytes of a pack, checksum included."""
    text = json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()
    packed = zlib.compress(text, 9)
    entries: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "version": str(VERSION), "sha256": _BLANK}
    }
    at = 0
    parts = [Section(_INDEX, "U8", (len(packed),), packed), *sections]
    for part in parts:
        entries[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [at, at + len(part.data)],
        }
        at += len(part.data)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    body = b"".join([struct.pack("<Q", len(header)), header, *(p.data for p in parts)])
    digest = hashlib.sha256(body).hexdigest()
    return body.replace(_BLANK.encode(), digest.encode(), 1)


def write_file(path: Path, body: bytes, *, replace: bool = False) -> None:
    """Write a file all at once: nobody ever sees half of it.

    Raises:
        ConflictError: It exists and may not be replaced.
        StorageError: The disk is full, read-only or failing.
    """
    if path.exists() and not (replace and path.is_file()):
        raise ConflictError(f"{path}: already exists", hint="choose another file, or pass --force")
    partial: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.partial-", delete=False
        ) as file:
            partial = Path(file.name)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error})",
            hint="free some space, or write to another folder",
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class PackFile:
    """An open pack: its checked index, and its sections by name.

    Attributes:
        path: The file.
        size: Its bytes.
        index: The index as JSON gives it.
    """

    def __init__(self, path: Path) -> None:
        """Check the file and read its index.

        Raises:
            NotFoundError: There is no such file.
            InvalidAdapterError: It is no pack, is truncated, or of a newer version.
            IntegrityError: Its bytes are not those that were written.
        """
        if not path.is_file():
            raise NotFoundError(f"there is no pack {path}", hint=_PACK_HINT)
        self.path = path
        header = read_header(path)
        metadata = header.metadata
        if metadata.get("format") != FORMAT:
            raise InvalidAdapterError(
                f"{path}: is a safetensors file but no pack (metadata field 'format')",
                hint=_PACK_HINT,
            )
        version = metadata.get("version", "")
        if version != str(VERSION):
            raise InvalidAdapterError(
                f"{path}: pack version {version[:20]!r} is not {VERSION} (metadata field "
                "'version')",
                hint="upgrade lorahub to read it",
            )
        self._entries = header.tensors
        self.size = path.stat().st_size
        self._check(metadata.get("sha256", ""))
        self.index = self._read_index()

    def _check(self, digest: str) -> None:
        """Compare the checksum, which was taken with its own digits set to zero."""
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise self.invalid("metadata field 'sha256'", "is no checksum")
        start = min(e.start for e in self._entries.values()) if self._entries else self.size
        with self.path.open("rb") as file:
            head = file.read(start)
            whole = hashlib.sha256(head.replace(digest.encode(), _BLANK.encode(), 1))
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
        if whole.hexdigest() != digest:
            raise IntegrityError(
                f"{self.path}: does not match its checksum (metadata field 'sha256'): its bytes "
                "changed after it was written",
                hint="get a fresh copy, or pack the adapters again",
            )

    def _read_index(self) -> dict[str, Any]:
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(self.section(_INDEX, "U8"), MAX_INDEX_BYTES)
            if not inflate.eof:
                raise self.invalid("section 'index'", f"is larger than {MAX_INDEX_BYTES >> 20} MiB")
            index = json.loads(text.decode())
        except (zlib.error, ValueError, RecursionError) as error:
            raise self.invalid("section 'index'", f"cannot be read ({error})") from error
        if not isinstance(index, dict):
            raise self.invalid("section 'index'", "is no JSON object")
        return index

    def section(self, name: str, dtype: str | None = None) -> bytes:
        """The bytes of a section.

        Raises:
            InvalidAdapterError: There is none of that name, or of that dtype.
        """
        entry = self._entries.get(name)
        if entry is None or dtype not in {None, entry.dtype}:
            raise self.invalid(f"section '{name[:40]}'", "is missing or of another dtype")
        with self.path.open("rb") as file:
            file.seek(entry.start)
            return file.read(entry.stop - entry.start)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a section; empty where there is none of that name."""
        entry = self._entries.get(name)
        return entry.shape if entry else ()

    def invalid(self, field: str, what: str) -> InvalidAdapterError:
        """The error for a field that is not what a pack has there."""
        return InvalidAdapterError(
            f"{self.path}, {field}: {what}", hint="get a fresh copy, or pack the adapters again"
        )
