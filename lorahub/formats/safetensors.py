"""safetensors files: validated headers, factors read one by one, and a streaming writer.

The layout is public: 8 bytes little-endian header length, a JSON header, then the tensors'
bytes without gaps (https://huggingface.co/docs/safetensors). The header is parsed here rather
than by the library because inspecting must not import torch and must say what is wrong where.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import local
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lorahub.errors import InvalidAdapterError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
"""The limit the reference implementation sets, against headers made to exhaust memory."""

_CHUNK = 1 << 20
_FLUSH_BYTES = 16 << 20
"""New bytes at which the disk begins with them; with fewer the advice itself costs time."""

_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: dtype name, shape, and absolute byte range [start, stop)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header: tensors by name in file order, and the free-form metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and validate the header of a safetensors file; tensors are not touched.

    Raises:
        InvalidAdapterError: The file cannot be read, is truncated, or its header lies.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if prefix == b"version " and file.read(16).startswith(b"https://git-lfs"):
                raise InvalidAdapterError(
                    f"{path}: is a git LFS pointer, not the file itself",
                    hint="run `git lfs pull` there",
                )
            if len(prefix) < 8:
                raise _bad(path, f"is only {size} bytes long, too short for a safetensors header")
            length = int(struct.unpack("<Q", prefix)[0])
            if length > MAX_HEADER_BYTES:
                raise _bad(path, f"claims a header of {length} bytes; not a safetensors file")
            raw = file.read(length)
    except OSError as error:
        raise InvalidAdapterError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) < length:
        raise _bad(path, f"is truncated: its header needs {length} bytes, {len(raw)} are there")
    return _parse(path, raw, size - 8 - length, 8 + length)


def _parse(path: Path, raw: bytes, data_bytes: int, data_start: int) -> Header:
    if not raw.startswith(b"{"):
        raise _bad(path, "has a header that is not a JSON object; not a safetensors file")
    try:
        # Decoded here: given bytes, json would also take UTF-16 and UTF-32.
        body = json.loads(raw.decode(), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"has a header that is not JSON ({error})") from error
    metadata = body.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "has a __metadata__ that is not a map of strings")
    entries = {name: _entry(path, name, value, data_start) for name, value in body.items()}
    end = data_start
    ordered = sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop))
    for name, entry in ordered:
        if entry.start != end:
            what = "overlaps the tensor before it" if entry.start < end else "leaves a gap"
            raise _bad(path, f"tensor '{name}' {what} (data_offsets)")
        end = entry.stop
    missing = end - data_start - data_bytes
    if missing > 0:
        raise _bad(path, f"is truncated: {missing} bytes of tensor data are missing")
    if missing < 0:
        raise _bad(path, f"has {-missing} bytes after its last tensor")
    return Header(dict(ordered), metadata)


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    if not name.isprintable():  # would reach terminals, and half a surrogate pair no file
        raise _bad(path, f"has a tensor name with control characters, {name[:80]!r}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"tensor '{name}' needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad(path, f"tensor '{name}' has an unknown dtype {dtype!r}")
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2 and len(shape) <= 64):
        raise _bad(path, f"tensor '{name}' has a malformed shape or data_offsets")
    start, stop = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if start > stop or (stop - start) * 8 != bits:
        raise _bad(
            path,
            f"tensor '{name}' of shape {shape} and dtype {dtype} needs {bits // 8} bytes, "
            f"its data_offsets say {stop - start}",
        )
    return TensorEntry(dtype, tuple(shape), data_start + start, data_start + stop)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _bad(path, f"names '{twice}' twice in its header")
    return body


def _bad(path: Path, what: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"{path}: {what}", hint="get a fresh copy of the file, or save the adapter again"
    )


class TensorFile:
    """An open safetensors file whose tensors are read one by one, from any thread.

    Tensors are read at their offsets into a buffer per thread that is used again, not mapped:
    resident memory then does not grow with the file, workers do not contend for the page
    tables, and a file that shrinks meanwhile is an error instead of a SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            InvalidAdapterError: As `read_header`.
        """
        self.path = path
        self.header = read_header(path)
        self._file = path.open("rb", buffering=0)

    def read_into(self, name: str, out: Tensor) -> None:
        """Copy tensor ``name`` into ``out`` (same shape, any strides), converting the dtype.

        Raises:
            InvalidAdapterError: The file became shorter than its header says.
        """
        import torch

        entry = self.header.tensors[name]
        size = entry.stop - entry.start
        if len(_scratch.buffer) < size:
            _scratch.buffer = bytearray(size)
        with memoryview(_scratch.buffer)[:size] as view:
            done = 0
            while done < size:
                count = os.preadv(self._file.fileno(), [view[done:]], entry.start + done)
                if count == 0:
                    raise _bad(self.path, f"became shorter while tensor '{name}' was read")
                done += count
        dtype = torch_dtype(entry.dtype)
        data = torch.frombuffer(_scratch.buffer, dtype=dtype, count=math.prod(entry.shape))
        out.copy_(data.view(entry.shape))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of tensor ``name`` as they stand in the file, a piece at a time.

        Raises:
            InvalidAdapterError: The file became shorter than its header says.
        """
        entry = self.header.tensors[name]
        at = entry.start
        while at < entry.stop:
            chunk = os.pread(self._file.fileno(), min(entry.stop - at, _CHUNK), at)
            if not chunk:
                raise _bad(self.path, f"became shorter while tensor '{name}' was read")
            at += len(chunk)
            yield chunk

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Scratch(local):
    """One read buffer per thread."""

    def __init__(self) -> None:
        self.buffer = bytearray(0)


_scratch = _Scratch()


def torch_dtype(name: str) -> Any:  # noqa: ANN401 - torch.dtype, without importing torch here
    """The torch dtype of a safetensors dtype name among F64, F32, F16, BF16."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }[name]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor as it will stand in a file, and whether all its values are finite numbers."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    finite: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return _encoded, (self.dtype, self.shape, bytes(self.data), self.finite)


def _encoded(dtype: str, shape: tuple[int, ...], data: bytes, finite: bool) -> Encoded:
    return Encoded(dtype, shape, memoryview(data), finite)


def encode(tensor: Tensor, dtype: str) -> Encoded:
    """Convert a floating tensor, on any device, to ``dtype`` for a `Writer`."""
    import torch

    kept = tensor.detach().to("cpu", torch_dtype(dtype)).contiguous()
    # A sum is finite unless a value is not, or finite ones overflow it: then look at each.
    finite = math.isfinite(kept.sum(dtype=torch.float32)) or bool(torch.isfinite(kept).all())
    data = kept.view(-1).view(torch.uint8).numpy().data
    return Encoded(dtype, tuple(kept.shape), data, finite)


class Writer:
    """Writes a safetensors file tensor by tensor, in the order they are given.

    The header is written last into room reserved for it, so ranks need not be known before the
    factors are. The same tensors in the same order with the same ``header_room`` give the same
    bytes. Used as a context manager; leaving it by an exception leaves no valid file.
    """

    def __init__(self, path: Path, header_room: int) -> None:
        """Create ``path``, which must not exist, with ``header_room`` bytes for the header."""
        self._room = -(-header_room // 8) * 8
        self._file = path.open("xb", buffering=0)
        self._file.seek(8 + self._room)
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0
        self._flushed = 0

    def write(self, name: str, tensor: Encoded) -> None:
        """Append one tensor."""
        self._put(tensor.data)
        self._add(name, tensor.dtype, tensor.shape, len(tensor.data))

    def copy(self, name: str, source: TensorFile) -> None:
        """Append tensor ``name`` of another file as it is, whatever its dtype."""
        entry = source.header.tensors[name]
        for chunk in source.chunks(name):
            self._put(memoryview(chunk))
        self._add(name, entry.dtype, entry.shape, entry.stop - entry.start)

    def _put(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])

    def _add(self, name: str, dtype: str, shape: Sequence[int], size: int) -> None:
        self._entries[name] = header_entry(dtype, shape, self._end, size)
        self._end += size
        if self._end - self._flushed >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Let the disk begin with what is new, so that little is left to wait for at the end.

        On Linux the advice starts writing dirty pages, and drops only those that are on disk.
        """
        if hasattr(os, "posix_fadvise"):
            start, size = 8 + self._room + self._flushed, self._end - self._flushed
            with suppress(OSError):  # a file system need not take advice
                os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)
        self._flushed = self._end

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        header = encode_header(self._entries)
        if len(header) > self._room:
            raise AssertionError("header_room was too small")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))
        os.fsync(self._file.fileno())


def header_entry(dtype: str, shape: Sequence[int], start: int, size: int) -> dict[str, Any]:
    """The header's entry of a tensor whose ``size`` bytes begin at ``start`` of the data."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}


def encode_header(entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The JSON header for tensors given as safetensors header entries."""
    body = {"__metadata__": {"format": "pt"}, **entries}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
