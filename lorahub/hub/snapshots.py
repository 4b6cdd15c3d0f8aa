"""Repositories at one commit: what files they hold, and whether a local file is one of them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub.errors import InvalidAdapterError, NetworkError
from lorahub.hub import client
from lorahub.hub.client import Client, with_retries


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; exactly one of the hashes is known for every real Hub."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def is_at(self, path: Path) -> bool:
        """Whether the local file ``path`` has this file's content."""
        if path.stat().st_size != self.size:
            return False
        with path.open("rb") as stream:
            if self.sha256 is not None:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
            if self.git_sha1 is not None:
                return _git_sha1(stream.read()) == self.git_sha1
        return True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit (40 hex).

    ``moved_to`` is its present id where the one asked for only redirects to it, else None.
    """

    repo_id: str
    revision: str
    files: tuple[RemoteFile, ...]
    moved_to: str | None = None

    def holds(self, path: Path) -> bool:
        """Whether it has a file of that name with the same content."""
        remote = next((f for f in self.files if f.name == path.name), None)
        return remote is not None and remote.is_at(path)


class Resolving(Client):
    """Pinning."""

    def resolve(self, repo_id: str, revision: str | None = None) -> Snapshot:
        """Pin a repository to a commit and list its files.

        Raises:
            NotFoundError: No such repository or revision, or a private one.
            AuthError: The repository is gated, or the token is refused.
            OfflineError: There is no connection to the Hub.
            NetworkError: The Hub does not answer.
            InvalidAdapterError: A file name would leave its folder.
        """
        api = self._api()

        def ask() -> Any:  # noqa: ANN401 - huggingface_hub's ModelInfo
            return api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=client.TIMEOUT_SECONDS
            )

        with self._translated(f"{repo_id}{f'@{revision}' if revision else ''}"):
            info = with_retries(ask)
        files = tuple(
            RemoteFile(
                safe_name(s.rfilename, repo_id),
                s.size or 0,
                s.lfs.sha256 if s.lfs else None,
                None if s.lfs else s.blob_id,
            )
            for s in info.siblings or ()
        )
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise NetworkError(f"{repo_id}: the Hub names no commit to pin")
        moved = str(info.id).lower() != repo_id.lower() and str(info.id).isprintable()
        return Snapshot(repo_id, info.sha, files, info.id if moved else None)


def safe_name(name: str, repo_id: str) -> str:
    """A repository's file name that stays inside its folder on every system.

    Raises:
        InvalidAdapterError: It would not.
    """
    parts = name.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or "\\" in name
        or ":" in parts[0]
        or any(unicodedata.category(c) == "Cc" for c in name)
    ):
        raise InvalidAdapterError(
            f"{repo_id}: file name {name!r} would leave its folder; nothing was fetched",
            hint="do not use this repository",
        )
    return name


def _git_sha1(content: bytes) -> str:
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()
