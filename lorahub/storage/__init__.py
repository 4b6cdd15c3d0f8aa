"""Adapters at storage URLs (``file://``, ``s3://`` and whatever else fsspec has a driver for).

Such stores have no rename, so a folder becomes there all at once in another way than on a disk
(`lorahub.output`): `UPLOAD` is written first, then the files, and `MANIFEST` last. Readers take a
folder as there only when its manifest is and every file has the size that it says, and take no
file whose sha256 is another. What a killed process left has an `UPLOAD` and no manifest: nobody
sees it, the next upload to the same URL overwrites it, and `remove_unfinished` removes it.

Two processes that write different content to one URL at the same time are not kept apart; the one
that ends last wins, and what they mixed is an IntegrityError of whoever reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lorahub.errors import ConflictError, NotFoundError, StorageError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.output import new_folder
from lorahub.storage.folder import MANIFEST, UPLOAD, Folder, Manifest, check, upload_text
from lorahub.urls import join

__all__ = [
    "MANIFEST",
    "UPLOAD",
    "Manifest",
    "Unfinished",
    "get_folder",
    "put_files",
    "put_folder",
    "read_file",
    "remove_unfinished",
    "stored",
    "unfinished",
]

UNFINISHED_AFTER = timedelta(days=1)
"""An upload that began later may still be under way, on whatever machine."""


def put_folder(
    folder: Path, url: str, *, replace: bool = False, listener: Listener = ignore
) -> Manifest:
    """Upload the files of a folder (none of its subfolders), as `put_files`."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return put_files(files, url, replace=replace, listener=listener)


def put_files(
    files: Sequence[Path], url: str, *, replace: bool = False, listener: Listener = ignore
) -> Manifest:
    """Upload files of distinct names as one folder, which is there at once when all of them are.

    The same files there already stay. Other files in that folder stay too.

    Args:
        files: Local files.
        url: The folder's storage URL.
        replace: Whether files of these names, or another content, are replaced.
        listener: Receives the phase ``upload``, and a step for each file that is there.

    Raises:
        ConflictError: There is another content at ``url``.
        AuthError: The store refuses, or there are no credentials.
        NotFoundError: There is no such bucket.
        NetworkError: The store does not answer.
        StorageError: It is full, read-only or failing.
        UsageError: No URL, or a store that has no driver here or cannot be written to.
    """
    new = Manifest.of(files)
    there = Folder.at(url)
    old = there.manifest()
    if old == new and there.has_all_of(old):
        there.remove(UPLOAD)
        return new
    begun = there.begun()
    taken = (old is not None and old != new) or (
        old is None and begun is None and new.files.keys() & there.sizes.keys()
    )
    if taken and not replace:
        raise ConflictError(
            f"{there.url}: holds something else already",
            hint="choose another URL, or pass --force to replace it",
        )
    earlier = {*(begun or ()), *(old.files if old else ())}
    there.write(UPLOAD, upload_text({*new.files, *earlier}))
    if old is not None:
        there.remove(MANIFEST)
    for name in sorted(earlier - new.files.keys()):
        there.remove(name)
    listener(PhaseStarted("upload", len(files), "files"))
    for done, path in enumerate(sorted(files), 1):
        there.put(path)
        listener(Advanced("upload", done, path.name))
    there.look()
    if not there.has_all_of(new):
        raise StorageError(
            f"{there.url}: does not hold what was sent",
            hint="another process may be uploading there too; try again",
        )
    there.write(MANIFEST, new.to_json())
    there.remove(UPLOAD)
    return new


def stored(url: str) -> Manifest | None:
    """What is at a storage URL; None where nothing is, or not the whole of it.

    Raises:
        LorahubError: As `put_files`, without ConflictError.
    """
    there = Folder.at(url)
    manifest = there.manifest()
    return manifest if manifest and there.has_all_of(manifest) else None


def read_file(url: str, name: str) -> bytes:
    """The bytes of one small file of what is at a storage URL.

    Raises:
        IntegrityError: They are not those of its manifest.
        LorahubError: As `get_folder`.
    """
    there = Folder.at(url)
    manifest = there.whole()
    if name not in manifest.files:
        raise NotFoundError(f"{there.url}: has no {name}")
    data = there.read(name)
    check(data, manifest.files[name], join(there.url, name))
    return data


def get_folder(
    url: str,
    target: Path,
    locks: Path,
    *,
    listener: Listener = ignore,
) -> Manifest:
    """Download what is at a storage URL as a new folder, checked file by file.

    Args:
        url: The folder's storage URL.
        target: The local folder it becomes.
        locks: As for `lorahub.output.new_folder`.
        listener: Receives the phase ``download``.

    Raises:
        NotFoundError: Nothing is there, or not the whole of it.
        IntegrityError: A file is not what its manifest says.
        ConflictError: ``target`` exists, or another process is writing it.
        LorahubError: As `stored`.
    """
    there = Folder.at(url)
    manifest = there.whole()
    listener(PhaseStarted("download", len(manifest.files), "files"))
    with new_folder(target, locks) as partial:
        for done, (name, file) in enumerate(manifest.files.items(), 1):
            there.get(name, partial / name)
            check(partial / name, file, join(there.url, name))
            listener(Advanced("download", done, name))
    return manifest


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a killed process left of an upload: the folder's URL and the bytes of its files."""

    url: str
    bytes: int


def unfinished(url: str) -> list[Unfinished]:
    """Uploads to ``url`` and to the folders directly in it that ended without their manifest.

    One that began less than `UNFINISHED_AFTER` ago is left out: it may be under way.

    Raises:
        LorahubError: As `stored`.
    """
    found = []
    top = Folder.at(url)
    for place in (top.url, *(join(top.url, name) for name in top.folders)):
        there = Folder.at(place)
        begun = there.begun(before=datetime.now(UTC) - UNFINISHED_AFTER)
        if begun is not None and MANIFEST not in there.sizes:
            size = sum(there.sizes.get(name, 0) for name in (*begun, UPLOAD))
            found.append(Unfinished(there.url, size))
    return found


def remove_unfinished(url: str) -> None:
    """Remove what a killed process left of an upload to ``url``, if it is still unfinished.

    Raises:
        LorahubError: As `stored`.
    """
    there = Folder.at(url)
    begun = there.begun()
    if begun is None or MANIFEST in there.sizes:
        return
    for name in (*begun, UPLOAD):
        there.remove(name)
