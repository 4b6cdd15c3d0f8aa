"""What lies in the Hub's own cache on this machine: adapters, at commits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import StorageError
from lorahub.hub.snapshots import RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

_MARKS = {"adapter_config.json", "adapter_model.safetensors", "lorahub.json"}
"""Files that only repositories of adapters have at their root."""


@dataclass(frozen=True, slots=True)
class CachedAdapter:
    """An adapter's repository at one commit, as far as it was downloaded.

    Attributes:
        repo_id: ``owner/name``.
        revision: The commit.
        folder: Its snapshot.
        requested_revision: A branch or tag by which it was fetched, or None for the main one.
    """

    repo_id: str
    revision: str
    folder: Path
    requested_revision: str | None

    def damaged(self) -> tuple[str, ...]:
        """Names of files at its root that are not what the name of their blob says."""
        links = (path for path in sorted(self.folder.iterdir()) if path.is_symlink())
        return tuple(path.name for path in links if not _expected(path).is_at(path))


@dataclass(frozen=True, slots=True)
class Cache:
    """All cached adapters, per repository from the oldest download to the newest.

    ``problems`` are repositories of the cache that cannot be read, in words.
    """

    adapters: tuple[CachedAdapter, ...]
    problems: tuple[str, ...]


def read_cache() -> Cache:
    """Look through the Hub's cache."""
    info = _scan()
    if info is None:
        return Cache((), ())
    found = []
    for repo in sorted(info.repos, key=lambda r: r.repo_id):
        if repo.repo_type == "model":
            # Offline, nothing tells which commit is the newest: the last to come counts as such.
            order = sorted(
                repo.revisions, key=lambda r: ("main" in r.refs, r.last_modified, r.commit_hash)
            )
            found += [_adapter(repo, r) for r in order if _is_adapter(r)]
    return Cache(tuple(found), tuple(sorted(str(w) for w in info.warnings)))


def freed_bytes(adapters: Sequence[CachedAdapter]) -> int:
    """Bytes on the disk that deleting these commits of one repository frees."""
    strategy = _strategy(adapters)
    return int(strategy.expected_freed_size) if strategy else 0


def delete(adapters: Sequence[CachedAdapter]) -> None:
    """Delete commits of one repository from the cache, with the blobs that no other one uses.

    Raises:
        StorageError: One is still there afterwards.
    """
    strategy = _strategy(adapters)
    if strategy is not None:
        strategy.execute()
    for adapter in adapters:
        if adapter.folder.exists():
            raise StorageError(
                f"{adapter.folder}: cannot be deleted", hint="see its permissions, and try again"
            )


def _scan() -> HFCacheInfo | None:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{constants.HF_HUB_CACHE}: cannot be read ({error})") from error


def _strategy(adapters: Sequence[CachedAdapter]) -> Any:  # noqa: ANN401 - huggingface_hub's
    info = _scan()
    if info is None:
        return None
    # A renamed repository has the same commits under another name.
    kind = ("model", adapters[0].repo_id)
    own = frozenset(r for r in info.repos if (r.repo_type, r.repo_id) == kind)
    return replace(info, repos=own).delete_revisions(*(a.revision for a in adapters))


def _is_adapter(revision: Any) -> bool:  # noqa: ANN401 - huggingface_hub's CachedRevisionInfo
    names = {f.file_name for f in revision.files if f.file_path.parent == revision.snapshot_path}
    return bool(names & _MARKS) and re.fullmatch(r"[0-9a-f]{40}", revision.commit_hash) is not None


def _adapter(repo: Any, revision: Any) -> CachedAdapter:  # noqa: ANN401 - huggingface_hub's
    from huggingface_hub import constants

    # As a download names it; the scan resolves links on the way to the cache.
    folder = Path(constants.HF_HUB_CACHE) / repo.repo_path.name / "snapshots" / revision.commit_hash
    plain = not revision.refs or "main" in revision.refs
    return CachedAdapter(
        repo.repo_id, revision.commit_hash, folder, None if plain else min(revision.refs)
    )


def _expected(path: Path) -> RemoteFile:
    """The file that the blob behind a link is named after."""
    etag = path.readlink().name
    sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
    git_sha1 = etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None
    return RemoteFile(path.name, path.stat().st_size, sha256, git_sha1)
