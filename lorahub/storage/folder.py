"""One folder of a store: what is in it, whole or half, and its manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorahub.adapter import content_hash_of
from lorahub.errors import IntegrityError, NotFoundError
from lorahub.integrity import file_sha256
from lorahub.storage.drivers import errors, filesystem, unwritable
from lorahub.urls import canonical, join

MANIFEST = "lorahub-manifest.json"
UPLOAD = "lorahub-upload.json"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 24
"""Most bytes of a file that is read into memory."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size (bytes) and sha256 (hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder at a storage URL holds: its files by name."""

    files: Mapping[str, StoredFile]

    @property
    def content_hash(self) -> str | None:
        """Identity of the adapter among the files, as `AdapterInfo.content_hash`; None for none."""
        weights = self.files.get(_WEIGHTS)
        if weights is None:
            return None
        config = self.files.get(_CONFIG)
        return content_hash_of(config.sha256 if config else "", weights.sha256)

    def to_json(self) -> str:
        """The text of the manifest; the same files give the same bytes."""
        body = {"version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(body, indent=2, sort_keys=True) + "\n"

    @classmethod
    def of(cls, files: Sequence[Path]) -> Manifest:
        """The manifest of local files."""
        found: dict[str, StoredFile] = {}
        for path in sorted(files):
            found[path.name] = StoredFile(path.stat().st_size, file_sha256(path))
        return cls(found)

    @classmethod
    def of_folder(cls, folder: Path) -> Manifest:
        """The manifest of a local folder's files; its subfolders are left out."""
        return cls.of([path for path in folder.iterdir() if path.is_file()])


class Folder:
    """One folder of a store.

    Attributes:
        url: Its URL.
        sizes: Bytes of the files in it when it was last looked at, by name.
        folders: Names of the folders in it, sorted.
    """

    def __init__(self, url: str, files: Any, root: str) -> None:  # noqa: ANN401 - fsspec is untyped
        self.url = url
        self._files = files
        self._root = root
        self.look()

    @classmethod
    def at(cls, url: str) -> Folder:
        """The folder at ``url``, there or not."""
        url = canonical(url)
        return cls(url, *filesystem(url))

    def look(self) -> None:
        """See what is there now."""
        self.sizes: dict[str, int] = {}
        self.folders: list[str] = []
        with errors(self.url):
            try:
                found = self._files.ls(self._root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in found:
            name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            if entry["type"] == "directory":
                self.folders.append(name)
            elif entry["name"].rstrip("/") != self._root:
                self.sizes[name] = entry["size"]
        self.folders.sort()

    def manifest(self) -> Manifest | None:
        """The manifest; None where there is none, or one that its writer did not finish."""
        if MANIFEST not in self.sizes:
            return None
        try:
            body = json.loads(self.read(MANIFEST))
            version, files = body["version"], body["files"]
            if version != FORMAT_VERSION:
                raise IntegrityError(
                    f"{join(self.url, MANIFEST)}: version {version} is not {FORMAT_VERSION}",
                    hint="upgrade lorahub to read it",
                )
            found = {
                name: StoredFile(int(file["bytes"]), str(file["sha256"]))
                for name, file in files.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        for name in found:
            if name in {"", ".", ".."} or re.search(r"[/\\\0]", name):
                raise IntegrityError(
                    f"{join(self.url, MANIFEST)}: '{name}' cannot be the name of a file in it",
                    hint="the manifest was edited or is hostile",
                )
        return Manifest(found)

    def has_all_of(self, manifest: Manifest) -> bool:
        """Whether every file is there with its size."""
        return all(self.sizes.get(name) == file.bytes for name, file in manifest.files.items())

    def whole(self) -> Manifest:
        """The manifest of a folder that is there."""
        manifest = self.manifest()
        if manifest is None:
            why = "an upload that did not end" if UPLOAD in self.sizes else "nothing of lorahub's"
            raise NotFoundError(
                f"{self.url}: holds {why}",
                hint="`lorahub export NAME URL` puts an adapter at a storage URL",
            )
        if not self.has_all_of(manifest):
            wrong = next(n for n, f in manifest.files.items() if self.sizes.get(n) != f.bytes)
            has = self.sizes.get(wrong)
            raise IntegrityError(
                f"{join(self.url, wrong)}: "
                + ("is missing" if has is None else f"has {has} bytes")
                + f", its manifest says {manifest.files[wrong].bytes}",
                hint="upload the adapter again",
            )
        return manifest

    def begun(self, before: datetime | None = None) -> list[str] | None:
        """Names that an upload without an end was to write; None where there is no such upload."""
        if UPLOAD not in self.sizes:
            return None
        try:
            body = json.loads(self.read(UPLOAD))
            names = [str(name) for name in body["files"] if "/" not in name]
            when = datetime.fromisoformat(body["begun"])
        except (ValueError, KeyError, TypeError):
            return []  # killed while it wrote that
        return None if before is not None and when > before else names

    def read(self, name: str) -> bytes:
        """The bytes of a small file, empty where it went away meanwhile."""
        if self.sizes.get(name, 0) > MAX_BYTES:
            raise IntegrityError(f"{join(self.url, name)}: {self.sizes[name]} bytes are too many")
        with errors(self.url):
            try:
                data: bytes = self._files.cat_file(join(self._root, name))
            except FileNotFoundError:
                return b""
        return data

    def write(self, name: str, text: str) -> None:
        """Write a small text file."""
        # Of all drivers' ways to write, only that of a file makes the folders it needs.
        with TemporaryDirectory(prefix="lorahub-") as folder:
            path = Path(folder) / name
            try:
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise unwritable(str(path), error) from error
            self.put(path)

    def put(self, path: Path) -> None:
        """Write a local file under its own name."""
        with errors(self.url):
            self._files.put_file(str(path), join(self._root, path.name))

    def get(self, name: str, path: Path) -> None:
        """Read a file into a local one."""
        with errors(self.url):
            try:
                self._files.get_file(join(self._root, name), str(path))
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                raise unwritable(str(path), error) from error

    def remove(self, name: str) -> None:
        """Remove a file that was seen; one that is gone is fine."""
        if self.sizes.pop(name, None) is not None:
            with errors(self.url), suppress(FileNotFoundError):
                self._files.rm_file(join(self._root, name))


def check(found: Path | bytes, file: StoredFile, where: str) -> None:
    """Raise IntegrityError unless a file, or its bytes, are what its manifest says."""
    digest = hashlib.sha256(found).hexdigest() if isinstance(found, bytes) else file_sha256(found)
    if digest != file.sha256:
        raise IntegrityError(
            f"{where}: has sha256 {digest}, its manifest says {file.sha256}",
            hint="upload the adapter again",
        )


def upload_text(names: Iterable[str]) -> str:
    """What `UPLOAD` says: when the upload began, and which files it may leave."""
    body = {
        "version": FORMAT_VERSION,
        "begun": datetime.now(UTC).isoformat(),
        "files": sorted(names),
    }
    return json.dumps(body, indent=2) + "\n"
