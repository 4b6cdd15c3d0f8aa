"""The pack beside a merged adapter, whose decoding its weights then are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub import formats
from lorahub.adapter import Adapter, AdapterInfo
from lorahub.errors import IntegrityError
from lorahub.events import Listener
from lorahub.integrity import file_sha256
from lorahub.record import PACK_NAME, Packed, Record

if TYPE_CHECKING:
    from lorahub.engine.sizes import PackTarget


def pack_beside(
    folder: Path, name: str, info: AdapterInfo, target: PackTarget, listener: Listener
) -> Packed:
    """Pack the adapter in ``folder`` beside itself, and put what it decodes to in its place."""
    from lorahub import packing

    pack = folder / PACK_NAME
    found = packing.pack(
        [packing.PackInput(name, folder, info)],
        pack,
        ratio=target.ratio,
        bytes_budget=target.limit,
        listener=listener,
    )
    for replaced in (info.weights_file, formats.peft.CONFIG_NAME):
        (folder / replaced).unlink()
    packing.unpack(pack, name, folder)
    (member,) = found.members
    return Packed(
        target.ratio,
        target.limit,
        found.bytes,
        file_sha256(pack),
        member.codec,
        member.error,
        member.worst_error,
        tuple((c.codec, c.bytes, c.error) for c in member.table),
    )


def check_pack(adapter: Adapter, record: Record) -> None:
    """Raise IntegrityError unless the pack beside the weights is the one that was made."""
    if record.packed is None:
        return
    path = adapter.origin.folder / PACK_NAME
    if not path.is_file() or file_sha256(path) != record.packed.sha256:
        raise IntegrityError(
            f"{path}: is gone, or is not the pack that was made",
            hint="merge again from the recipe beside it",
        )
