"""What moved upstream since adapters were pulled, and what taking it would change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

from lorahub.errors import LorahubError, OfflineError
from lorahub.events import Advanced, Listener, PhaseStarted
from lorahub.parallel import each
from store import HubAdapter

if TYPE_CHECKING:
    from lorahub.hub import Hub, Snapshot

WORKERS = 8


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file that differs; a size (bytes) is None where the file is not there."""

    name: str
    size_here: int | None
    size_there: int | None


@dataclass(frozen=True, slots=True)
class Update:
    """How a pulled adapter stands to its repository.

    Attributes:
        adapter: Where it came from.
        state: ``up to date``; ``changed``, with what a pull would bring; ``unchanged``, for a
            newer commit with the same adapter; ``pinned``, for one that was pulled by its commit;
            ``failed``.
        revision: The commit (40 hex) it would become, where the Hub told.
        changes: Files of an adapter that differ.
        moved_to: The repository's present id, where it was renamed.
        error: Why nothing is known, or None.
    """

    adapter: HubAdapter
    state: Literal["up to date", "changed", "unchanged", "pinned", "failed"]
    revision: str | None = None
    changes: tuple[FileChange, ...] = ()
    moved_to: str | None = None
    error: LorahubError | None = None


def followed(adapters: Sequence[HubAdapter]) -> list[HubAdapter]:
    """Of adapters, newest first, those that stand for the present state of a branch or tag."""
    newest: dict[tuple[str | None, str, str | None], HubAdapter] = {}
    for adapter in adapters:
        line = (adapter.endpoint, adapter.repo_id, adapter.requested_revision)
        newest.setdefault(line, adapter)
    return [a for a in newest.values() if not _is_pinned(a)]


def check(
    adapters: Sequence[HubAdapter], hub_at: Callable[[str | None], Hub], listener: Listener
) -> tuple[Update, ...]:
    """One per adapter, in order; ``hub_at(None)`` is the default Hub."""
    offline: dict[str | None, OfflineError] = {}
    done, lock = 0, Lock()
    listener(PhaseStarted("update", len(adapters), "repositories"))

    def look(adapter: HubAdapter) -> Update:
        if _is_pinned(adapter):
            return Update(adapter, "pinned", adapter.revision)
        if adapter.endpoint in offline:  # once is enough to wait for a Hub that is not there
            return Update(adapter, "failed", error=offline[adapter.endpoint])
        try:
            hub = hub_at(adapter.endpoint)
            snapshot = hub.resolve(adapter.repo_id, adapter.requested_revision)
            return _compared(adapter, snapshot)
        except OfflineError as error:
            offline[adapter.endpoint] = error
            return Update(adapter, "failed", error=error)
        except LorahubError as error:
            return Update(adapter, "failed", error=error)

    def check_one(adapter: HubAdapter) -> Update:
        nonlocal done
        update = look(adapter)
        with lock:
            done += 1
            listener(Advanced("update", done, adapter.name))
        return update

    return each(check_one, adapters, WORKERS)


def reference(adapter: HubAdapter) -> str:
    """What to pull for the present state of the adapter's branch or tag."""
    where = f"{adapter.endpoint}/" if adapter.endpoint else "hf://"
    revision = f"@{adapter.requested_revision}" if adapter.requested_revision else ""
    return f"{where}{adapter.repo_id}{revision}"


def _is_pinned(adapter: HubAdapter) -> bool:
    return re.fullmatch(r"[0-9a-f]{7,40}", adapter.requested_revision or "") is not None


def _compared(adapter: HubAdapter, snapshot: Snapshot) -> Update:
    from lorahub.hub.fetching import adapter_files

    moved = snapshot.moved_to
    if snapshot.revision == adapter.revision:
        return Update(adapter, "up to date", snapshot.revision, moved_to=moved)
    there = {f.name: f for f in adapter_files(snapshot)}
    folder = Path(adapter.folder)
    here = {p.name: p for p in folder.iterdir() if p.is_file()} if folder.is_dir() else {}
    changes = []
    for name in sorted(there.keys() | here.keys()):
        file, path = there.get(name), here.get(name)
        if file is None or path is None or not file.is_at(path):
            changes.append(
                FileChange(name, path.stat().st_size if path else None, file.size if file else None)
            )
    state: Literal["changed", "unchanged"] = "changed" if changes else "unchanged"
    return Update(adapter, state, snapshot.revision, tuple(changes), moved)
