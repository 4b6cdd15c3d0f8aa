"""Packs of catalogued adapters, and their members as folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahub import packing
from lorahub.adapter import Adapter, Reference
from lorahub.errors import NotFoundError, UsageError
from lorahub.events import Listener, ignore
from lorahub.integrity import file_sha256
from lorahub.output import folder_name, new_file, new_folder
from lorahub.packing import PackInfo, PackInput


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A member of a pack and the folder it was written to."""

    name: str
    folder: Path


def pack(
    adapters: Sequence[Adapter],
    out: Path,
    *,
    locks: Path,
    ratio: float | None = None,
    bytes_budget: int | None = None,
    error: float | None = None,
    protect: bool = False,
    force: bool = False,
    listener: Listener = ignore,
) -> PackInfo:
    """Write catalogued adapters into one pack; see `lorahub.packing.pack`.

    What a killed process left of the same pack is removed; ``locks`` keeps two writers apart.
    """
    out = out.expanduser().absolute()
    with new_file(out, locks, replace=force) as partial:
        packing.pack(
            [PackInput(a.name, a.origin.folder, a.info) for a in adapters],
            partial,
            ratio=ratio,
            bytes_budget=bytes_budget,
            error=error,
            protect=protect,
            listener=listener,
        )
    return packing.read_info(out)


def unpack(
    path: Path, name: str | None, folder: Path | None, *, locks: Path
) -> tuple[Unpacked, ...]:
    """Write members of a pack as folders that PEFT reads.

    Args:
        path: The pack.
        name: The member; None takes all.
        folder: Where a single member goes, or the parent of all. None is the current folder, a
            member then getting a folder of its name.
        locks: Folder for locks.

    Raises:
        NotFoundError: No member has that name.
        ConflictError: A folder exists already.
        LorahubError: As `lorahub.packing.read_info`, and StorageError.
    """
    path = path.expanduser().absolute()
    parent = (folder or Path()).expanduser().absolute()
    if name is not None:
        target = parent if folder is not None else parent / folder_name(name)
        wanted = [Unpacked(name, target)]
    else:
        names = [m.name for m in packing.read_info(path).members]
        wanted = [Unpacked(n, parent / folder_name(n)) for n in names]
    for member in wanted:
        with new_folder(member.folder, locks) as partial:
            packing.unpack(path, member.name, partial)
    return tuple(wanted)


def member_folder(home: Path, reference: Reference) -> tuple[Path, Path]:
    """The folder that a member of a pack is unpacked to for the catalog, and the pack's path.

    It goes by the pack's content, so that a pack that changed has other folders.

    Raises:
        NotFoundError: There is no such pack.
        UsageError: The reference names no member.
    """
    assert reference.pack is not None
    path = Path(reference.pack).expanduser().absolute()
    if not path.is_file():
        raise NotFoundError(f"there is no pack {path}", hint="check the path: FILE.mos#NAME")
    if reference.member is None:
        names = ", ".join(m.name for m in packing.read_info(path).members[:8])
        raise UsageError(
            f"{path}: is a pack of several adapters",
            hint=f"name one as {reference.pack}#NAME; it has {names}",
        )
    return home / "unpacked" / file_sha256(path)[:16] / folder_name(reference.member), path
