"""Reading packs: what is in them, and any member as an ordinary LoRA.

Everything that an index says is checked before memory is taken for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorahub.adapter import DTYPE_BYTES, ModuleKind
from lorahub.errors import InvalidAdapterError, NotFoundError
from lorahub.formats import peft
from lorahub.formats.safetensors import Writer, encode, torch_dtype
from lorahub.packing import baselines, shards, waterfill
from lorahub.packing.container import VALUES_PER_BYTE, PackFile
from lorahub.packing.gauge import as_float64
from lorahub.packing.info import Candidate, Expanded, MemberInfo, PackInfo
from lorahub.packing.joint import decode_public
from lorahub.packing.members import (
    FieldError,
    naturals,
    read_bits,
    read_plain,
    read_public,
    read_waterfill,
)
from lorahub.packing.pools import PUBLIC, Key, Pool
from lorahub.packing.rans import StreamError
from lorahub.packing.waterfill import Basis, Factors

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 1 << 24
"""Values that even the smallest file may hold."""

_LARGEST_DIMENSION = 1 << 24
_UNLIKE = "is not what a pack has there"
_WEIGHTS = "adapter_model.safetensors"


def read_info(path: Path) -> PackInfo:
    """What a pack holds; its checksum is verified.

    Raises:
        InvalidAdapterError: It is no pack, is damaged, or of a newer version.
        IntegrityError: Its bytes changed.
    """
    return _Reader(path).info()


def expand(path: Path, name: str) -> tuple[Expanded, ...]:
    """A member as factors, scaling included; the same bits on every machine.

    Raises:
        NotFoundError: No member has that name.
        LorahubError: As `read_info`.
    """
    return _Reader(path).expand(name)


def unpack(path: Path, name: str, folder: Path) -> None:
    """Write a member into an existing folder as PEFT reads it.

    An exact member gets its tensors and config back as they were; a lossy one float32 factors of
    scaling 1, with rank 1 and all zeros where nothing was left of a module.

    Raises:
        NotFoundError: No member has that name.
        LorahubError: As `read_info`.
    """
    _Reader(path).unpack(name, folder)


def _as_torch(tensor: shards.Tensor) -> Tensor:
    import torch

    flat = torch.frombuffer(bytearray(tensor.data), dtype=torch_dtype(tensor.dtype))
    return flat.view(tensor.shape)


@dataclass(frozen=True, slots=True)
class _Module:
    """One line of a layout."""

    name: str
    kind: ModuleKind
    d_in: int
    d_out: int


class _Reader:
    """A pack, and what was decoded of it so far."""

    def __init__(self, path: Path) -> None:
        self._pack = PackFile(path)
        self._layouts = [self._layout(lines) for lines in self._list("layouts")]
        self._members: list[Mapping[str, Any]] = []
        for fields in self._list("members"):
            self._members.append(self._checked(fields))
        self._names = [m["name"] for m in self._members]
        if len(set(self._names)) < len(self._names):
            raise self._pack.invalid("field 'members'", "has a name twice")
        self._decoded: dict[int, tuple[Factors, ...]] = {}
        self._bases: dict[Key, Basis] | None = None

    # --- what is in it ---

    def info(self) -> PackInfo:
        """All members."""
        members = tuple(self._info(i) for i in range(len(self._members)))
        bf16 = 2 * sum(m.parameters for m in members)
        return PackInfo(self._pack.path, self._pack.size, bf16, members)

    def _info(self, i: int) -> MemberInfo:
        fields, real = self._members[i], self._real(i)
        stored, layout = self._members[real], self._modules(real)
        table = tuple(Candidate(str(c), int(b), float(e)) for c, b, e in stored.get("table", ()))
        worst, error = stored.get("worst", (0, 0.0))
        exact = stored["codec"] == "exact"
        if exact:
            tensors = shards.layout(self._pack, stored.get("tensors"))
            rank = max((min(shape) for _, shape in tensors), default=0)
            size = sum(math.prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in tensors)
        else:
            rank = max(self._ranks(real), default=0)
            size = len(self._pack.section(f"member.{real}", "U8"))
        return MemberInfo(
            name=fields["name"],
            codec=str(stored.get("method", stored["codec"])),
            modules=len(layout),
            parameters=fields["parameters"],
            rank=rank,
            bytes=0 if real != i else size,
            error=float(stored.get("error", 0.0)),
            worst_module=None if exact else layout[worst].name,
            worst_error=float(error),
            base_model=fields.get("base_model"),
            license=fields.get("license"),
            same_as=None if real == i else self._names[real],
            table=table,
        )

    # --- members ---

    def expand(self, name: str) -> tuple[Expanded, ...]:
        """The factors of a member, in float32."""
        i = self._real(self._index_of(name))
        if self._members[i]["codec"] == "exact":
            return self._expand_exact(i)
        found = []
        for module, factors in zip(self._modules(i), self._decode(i), strict=True):
            A = factors.rows.astype(np.float32)
            B = (factors.columns.T * factors.scales).astype(np.float32)
            if not len(A):
                A = np.zeros((1, module.d_in), np.float32)
                B = np.zeros((module.d_out, 1), np.float32)
            found.append(Expanded(module.name, module.kind, A, B))
        return tuple(found)

    def unpack(self, name: str, folder: Path) -> None:
        """Write a member into ``folder`` as PEFT reads it."""
        import torch

        i = self._real(self._index_of(name))
        fields = self._members[i]
        if fields["codec"] == "exact":
            config = fields["config"]
            tensors = [
                (key, _as_torch(tensor), tensor.dtype) for key, tensor in self._tensors(i).items()
            ]
        else:
            modules = self.expand(name)
            config = peft.config_for(
                {m.name: len(m.A) for m in modules},
                base_model=fields.get("base_model"),
                task_type=fields.get("task_type"),
                fan_in_fan_out=fields.get("fan_in_fan_out", False),
                auto_mapping=fields.get("auto_mapping"),
            )
            tensors = [
                (key, torch.from_numpy(values), "F32")
                for m in modules
                for key, values in zip(peft.tensor_keys(m.name, m.kind), (m.A, m.B), strict=True)
            ]
        room = sum(len(key.encode()) + 120 for key, _, _ in tensors) + 64
        with Writer(folder / _WEIGHTS, room) as writer:
            for key, values, dtype in tensors:
                writer.write(key, encode(values, dtype))
        text = json.dumps(config, indent=2) + "\n"
        (folder / peft.CONFIG_NAME).write_text(text, encoding="utf-8")

    def _index_of(self, name: str) -> int:
        if name not in self._names:
            raise NotFoundError(
                f"{self._pack.path}: has no member '{name}'",
                hint=f"it has {', '.join(self._names[:8])}"
                + (" ..." if len(self._names) > 8 else ""),
            )
        return self._names.index(name)

    def _real(self, i: int) -> int:
        """The member whose data member ``i`` uses: itself, or one with the same files."""
        fields = self._members[i]
        return int(fields["as"]) if fields["codec"] == "same" else i

    def _modules(self, i: int) -> tuple[_Module, ...]:
        layout: int = self._members[i]["layout"]
        return self._layouts[layout]

    def _tensors(self, i: int) -> dict[str, shards.Tensor]:
        limit = VALUES_PER_BYTE * self._pack.size + _SMALL
        tensors = shards.expand(self._pack, self._members[i].get("tensors"), limit)
        if len(tensors) != 2 * len(self._modules(i)):
            raise self._wrong(i, "tensors")
        return tensors

    def _expand_exact(self, i: int) -> tuple[Expanded, ...]:
        tensors = list(self._tensors(i).values())
        modules = self._modules(i)
        scalings = self._members[i].get("scalings")
        if not isinstance(scalings, list) or len(scalings) != len(modules):
            raise self._wrong(i, "scalings")
        found = []
        for j, module in enumerate(modules):
            a, b = tensors[2 * j : 2 * j + 2]
            if a.shape[1:] != (module.d_in,) or b.shape != (module.d_out, a.shape[0]):
                raise self._wrong(i, "tensors")
            A = as_float64(a.dtype, a.shape, a.data)
            B = as_float64(b.dtype, b.shape, b.data) * float(scalings[j])
            found.append(
                Expanded(module.name, module.kind, A.astype(np.float32), B.astype(np.float32))
            )
        return tuple(found)

    def _decode(self, i: int) -> tuple[Factors, ...]:
        """A member, after those that it is predicted from."""
        if i in self._decoded:
            return self._decoded[i]
        fields, modules = self._members[i], self._modules(i)
        ranks = zip(self._ranks(i), modules, strict=True)
        self._bound(
            f"member {i}, field 'ranks'", (max(1, k) * (m.d_in + m.d_out) for k, m in ranks)
        )
        data = self._pack.section(f"member.{i}", "U8")
        shapes = [(m.d_in, m.d_out) for m in modules]
        try:
            if fields["codec"] == "plain":
                found = baselines.decode(read_plain(fields, data, len(modules)), shapes)
            else:
                coded, sides = read_waterfill(fields, data, len(modules))
                keys = [(m.name, m.d_in, m.d_out) for m in modules]
                pool = Pool(self._public() if any(s & PUBLIC for s in sides) else None)
                if any(s and not s & PUBLIC for s in sides):
                    for j in range(i):
                        if self._members[j]["codec"] == "waterfill":
                            before = [(m.name, m.d_in, m.d_out) for m in self._modules(j)]
                            pool.add(before, self._decode(j))
                bases = [pool.basis(key, s) for key, s in zip(keys, sides, strict=True)]
                found = waterfill.decode(coded, shapes, bases)
        except FieldError as error:
            raise self._wrong(i, str(error)) from error
        except (StreamError, ValueError) as error:
            raise self._pack.invalid(f"section 'member.{i}'", str(error)) from error
        self._decoded[i] = found
        return found

    def _public(self) -> dict[Key, Basis]:
        """Bases of the public rows."""
        if self._bases is None:
            try:
                public = read_public(
                    self._pack.index.get("public"), self._pack.section("public", "U8")
                )
                self._bound("public", (k * m[1] + n * m[2] for m, (k, n) in zip(
                    public.modules, public.counts, strict=True
                )))  # fmt: skip
                self._bases = decode_public(public)
            except FieldError as error:
                raise self._pack.invalid(f"public, field '{error}'", _UNLIKE) from error
            except StreamError as error:
                raise self._pack.invalid("section 'public'", str(error)) from error
        return self._bases

    # --- checks ---

    def _list(self, name: str) -> list[Any]:
        values = self._pack.index.get(name)
        if not isinstance(values, list):
            raise self._pack.invalid(f"field '{name}'", "is no list")
        return values

    def _layout(self, lines: object) -> tuple[_Module, ...]:
        found = []
        for line in lines if isinstance(lines, list) else [None]:
            match line:
                case [str(name), str(kind), int(d_in), int(d_out)] if (
                    name.isprintable()
                    and kind in tuple(ModuleKind)
                    and 0 < d_in <= _LARGEST_DIMENSION
                    and 0 < d_out <= _LARGEST_DIMENSION
                ):
                    found.append(_Module(name, ModuleKind(kind), d_in, d_out))
                case _:
                    raise self._pack.invalid("field 'layouts'", "has a malformed line")
        return tuple(found)

    def _checked(self, fields: object) -> Mapping[str, Any]:
        """A member's fields, those that all codecs have being what they should."""
        i = len(self._members)
        if not isinstance(fields, dict):
            raise self._pack.invalid("field 'members'", f"has a malformed member {i}")
        texts = ("base_model", "task_type", "license")
        if any(not isinstance(fields.get(t), str | None) for t in texts):
            raise self._wrong(i, "base_model, task_type or license")
        if not isinstance(fields.get("name"), str) or not fields["name"].isprintable():
            raise self._wrong(i, "name")
        layout, parameters = fields.get("layout"), fields.get("parameters")
        if type(layout) is not int or not 0 <= layout < len(self._layouts):
            raise self._wrong(i, "layout")
        if type(parameters) is not int or parameters < 0:
            raise self._wrong(i, "parameters")
        match fields.get("codec"):
            case "same":
                first = fields.get("as")
                if (
                    type(first) is not int
                    or not 0 <= first < i
                    or self._members[first]["codec"] == "same"
                    or self._members[first]["layout"] != layout
                ):
                    raise self._wrong(i, "as")
            case "exact":
                if not isinstance(fields.get("config"), dict):
                    raise self._wrong(i, "config")
            case "waterfill" | "plain":
                self._check_report(i, fields, len(self._layouts[layout]))
            case _:
                raise self._wrong(i, "codec")
        return fields

    def _check_report(self, i: int, fields: Mapping[str, Any], modules: int) -> None:
        match fields.get("worst"):
            case [int(at), int() | float()] if 0 <= at < modules:
                pass
            case _:
                raise self._wrong(i, "worst")
        for row in fields.get("table", [None]):
            match row:
                case [str(), int(), int() | float()]:
                    pass
                case _:
                    raise self._wrong(i, "table")
        if not isinstance(fields.get("error"), int | float):
            raise self._wrong(i, "error")

    def _ranks(self, i: int) -> tuple[int, ...]:
        fields, modules = self._members[i], len(self._modules(i))
        try:
            if fields["codec"] == "plain":
                return tuple(len(b) for b in read_bits(fields, modules))
            return naturals(fields, "ranks", modules)
        except FieldError as error:
            raise self._wrong(i, str(error)) from error

    def _bound(self, where: str, values: Iterable[int]) -> None:
        """Refuse more values than the file can hold, before memory is taken for them."""
        claimed = sum(values)
        if claimed > VALUES_PER_BYTE * self._pack.size + _SMALL:
            raise self._pack.invalid(where, f"claims {claimed} values, more than the file can hold")

    def _wrong(self, i: int, field: str) -> InvalidAdapterError:
        return self._pack.invalid(f"member {i}, field '{field}'", _UNLIKE)
