"""Bringing adapters into the catalog: fetch, convert, inspect, name, record."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

from lorahub import formats, storage
from lorahub.adapter import Adapter, Origin, Reference, Source
from lorahub.config import Config
from lorahub.copies import url_file
from lorahub.errors import (
    IntegrityError,
    LorahubError,
    NotFoundError,
    OfflineError,
    UsageError,
)
from lorahub.events import Advanced, Event, Listener, PhaseStarted, Warned, ignore
from lorahub.integrity import check_unchanged, file_sha256
from lorahub.lookup import existing_folder, is_folder, is_unchanged
from lorahub.output import check_name, folder_name, new_folder, remove_folder, write_text
from lorahub.parallel import each
from lorahub.record import Record
from lorahub.urls import canonical
from store import Catalog

if TYPE_CHECKING:
    from lorahub.hub import Hub

WORKERS = 8


@dataclass(frozen=True, slots=True)
class Pulled:
    """Outcome of pulling one reference.

    ``state`` is ``added``, ``up to date`` or ``failed``; exactly one of adapter and error is set.
    """

    reference: str
    state: Literal["added", "up to date", "failed"]
    adapter: Adapter | None
    error: LorahubError | None


class Puller:
    """Pulls into one catalog, several references at a time."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog
        self._writing = Lock()
        self._offline: dict[str | None, OfflineError] = {}

    def pull(
        self,
        references: Sequence[str],
        hub: Hub,
        hub_at: Callable[[str], Hub],
        *,
        name: str | None,
        all_files: bool,
        allow_pickle: bool,
        listener: Listener,
    ) -> tuple[Pulled, ...]:
        """One outcome per reference, in order; see `lorahub.workspace.Workspace.pull`.

        ``hub`` is asked for what no address says otherwise, ``hub_at(address)`` for the rest.
        """
        if not references:
            raise UsageError("nothing to pull", hint="name a Hub repository or a folder")
        if name is not None:
            check_name(name)
            if len(references) > 1:
                raise UsageError("--name goes with one reference")
        stopped = threading.Event()
        progress = _Progress(listener, len(references))

        def pull_one(text: str) -> Pulled:
            outcome = attempt(text)
            progress.advance(text)
            return outcome

        def attempt(text: str) -> Pulled:
            try:
                reference = Reference.parse(text)
                elsewhere = reference.endpoint not in {None, hub.endpoint}
                asked = hub_at(str(reference.endpoint)) if elsewhere else hub
                known = None if all_files else self._at_commit(reference, asked)
                if known is not None and name in {None, known.name}:
                    return Pulled(text, "up to date", known, None)
                origin = self._fetch(reference, asked, all_files, allow_pickle, progress.listener)
                adapter, added = self._register(
                    origin, name, allow_pickle=allow_pickle, stopped=stopped
                )
                return Pulled(text, "added" if added else "up to date", adapter, None)
            except LorahubError as error:
                return Pulled(text, "failed", None, error)

        try:
            return each(pull_one, references, WORKERS)
        except BaseException:
            # What a thread is writing is finished, and nothing is begun after the interruption.
            with self._writing:
                stopped.set()
            raise

    def _at_commit(self, reference: Reference, hub: Hub) -> Adapter | None:
        """What is in the catalog already of a reference that names a full commit."""
        if reference.repo_id is None or not re.fullmatch(r"[0-9a-f]{40}", reference.revision or ""):
            return None
        for known in self._catalog.by_repo(reference.repo_id, reference.revision):
            if known.origin.endpoint == hub.endpoint:
                try:
                    check_unchanged(known)
                except IntegrityError:
                    continue
                return known
        return None

    def register(self, origin: Origin) -> tuple[Adapter, bool]:
        """Catalogue the adapter that lies at ``origin``, and say whether it is new.

        Raises:
            InvalidAdapterError: There is none, or a damaged one.
            IntegrityError: Its record is none.
        """
        return self._register(origin, None, allow_pickle=False, stopped=threading.Event())

    def _fetch(
        self,
        reference: Reference,
        hub: Hub,
        all_files: bool,
        allow_pickle: bool,
        listener: Listener,
    ) -> Origin:
        text = reference.text
        if reference.pack is not None:
            return Origin(Source.FOLDER, self._unpacked(reference))
        if reference.is_url:
            return self._downloaded(canonical(text), listener)
        is_file = not reference.is_hub and Path(text).is_file()
        if reference.is_path or is_folder(reference) or is_file:
            folder = existing_folder(text)
            merged = folder.is_relative_to(self._config.adapters) and Record.read(folder)
            return Origin(Source.MERGE if merged else Source.FOLDER, folder)
        if reference.repo_id is None:
            raise NotFoundError(
                f"'{text}' is neither a folder nor a Hub repository",
                hint="a repository is owner/name[@revision]; start a folder with ./ or /",
            )
        if hub.endpoint in self._offline:  # once is enough to wait for a Hub that is not there
            first = self._offline[hub.endpoint]
            raise OfflineError(f"{text} was not tried: {first.message}", hint=first.hint)
        try:
            snapshot = hub.resolve(reference.repo_id, reference.revision)
            if snapshot.moved_to is not None:
                listener(
                    Warned(f"{snapshot.repo_id} is now {snapshot.moved_to}: use that name from now")
                )
            folder = hub.fetch(
                snapshot, all_files=all_files, allow_pickle=allow_pickle, listener=listener
            )
        except OfflineError as error:
            self._offline[hub.endpoint] = error
            raise
        return Origin(
            Source.HUB,
            folder,
            snapshot.repo_id,
            snapshot.revision,
            reference.revision,
            hub.endpoint,
        )

    def brought(
        self, adapter: Adapter, hub_at: Callable[[str | None], Hub], url: str | None
    ) -> Adapter:
        """An adapter that another machine catalogued, with its files on this one.

        Of several processes that want it, one downloads it.

        Args:
            adapter: Whose files may be elsewhere.
            hub_at: The client for a Hub, by its address; None is the default one.
            url: Storage URL where the files are too, if they are.

        Raises:
            NotFoundError: They are nowhere that this machine can reach.
            LorahubError: As `pull`.
        """
        origin = adapter.origin
        if adapter.weights_path.is_file():
            return adapter
        from filelock import FileLock

        locks = self._config.home / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"bring-{adapter.info.content_hash[:32]}.lock"):
            if origin.repo_id is not None:
                hub = hub_at(origin.endpoint)
                folder = hub.fetch(hub.resolve(origin.repo_id, origin.revision))
            elif (where := origin.url or url) is not None:
                folder = self._downloaded(canonical(where), ignore).folder
            else:
                raise NotFoundError(
                    f"{socket.gethostname()} has no {origin.folder}, where '{adapter.name}' is",
                    hint="give the source as a Hub repository or at a storage URL, or share the "
                    "folder between the machines",
                )
        return replace(adapter, origin=replace(origin, folder=folder))

    def _downloaded(self, url: str, listener: Listener) -> Origin:
        """Where, in the data folder, the adapter at a storage URL now lies, and that it does."""
        manifest = storage.stored(url)
        if manifest is not None and manifest.content_hash is not None:
            for known in self._catalog.by_url(url):
                if known.info.content_hash == manifest.content_hash and is_unchanged(known):
                    return known.origin
        key = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:16] if manifest else "none"
        target = self._config.home / "stored" / key / folder_name(url.rpartition("/")[2])
        if not (manifest and target.is_dir() and storage.Manifest.of_folder(target) == manifest):
            locks = self._config.home / "locks"
            remove_folder(target, locks)  # a copy of the same, damaged since
            storage.get_folder(url, target, locks, listener=listener)
        write_text(url_file(target), f"{url}\n")
        return Origin(Source.STORE, target, endpoint=url)

    def _unpacked(self, reference: Reference) -> Path:
        """The folder, in the data folder, that a member of a pack was unpacked to."""
        from lorahub import packing
        from lorahub.packs import member_folder

        target, path = member_folder(self._config.home, reference)
        if not target.exists():
            with new_folder(target, self._config.home / "locks") as partial:
                packing.unpack(path, str(reference.member), partial)
        return target

    def _register(
        self, origin: Origin, name: str | None, *, allow_pickle: bool, stopped: threading.Event
    ) -> tuple[Adapter, bool]:
        """The catalogued adapter for an origin, and whether it is new."""
        if allow_pickle and (pickled := formats.find_pickle(origin.folder)):
            with self._unless(stopped):
                origin = self._converted(origin, pickled)
        info = formats.inspect(origin.folder)
        with self._unless(stopped):
            for known in self._same_place(origin):
                if known.info.content_hash == info.content_hash and name in {None, known.name}:
                    return known, False
            default = origin.repo_id or origin.folder.name
            wanted = name or self._followed_name(origin) or default
            taken = self._catalog.by_name(wanted)
            rename_older = None
            if taken is not None and name is None:
                asked = {None, taken.origin.requested_revision}
                if _same_line(taken.origin, origin) and origin.requested_revision in asked:
                    # The plain name follows the newest revision of the same place.
                    rename_older = f"{wanted}@{_short(taken)}"
                else:
                    wanted = f"{wanted}@{(origin.revision or info.content_hash)[:8]}"
            record = Record.read(origin.folder)
            if record is not None and record.weights_sha256 != info.weights_sha256:
                record = None  # what was trained on since is no longer what it tells of
            adapter = Adapter(wanted, origin, info, method=record.method if record else None)
            added = self._catalog.add(adapter, rename_older=rename_older)
            if record is not None:
                self._catalog.add_lineage(added.id, record.parents)
            return added, True

    def _followed_name(self, origin: Origin) -> str | None:
        """The name that was given to what the newest at the same place was before."""
        for known in self._followed(origin):
            before = known.origin
            line = (before.endpoint, before.requested_revision)
            if line == (origin.endpoint, origin.requested_revision) and "@" not in known.name:
                return known.name
        return None

    def _followed(self, origin: Origin) -> list[Adapter]:
        """What was pulled from the same repository or storage URL, newest first."""
        if origin.repo_id is not None:
            return self._catalog.by_repo(origin.repo_id)
        return self._catalog.by_url(origin.url) if origin.url else []

    @contextmanager
    def _unless(self, stopped: threading.Event) -> Iterator[None]:
        """One thread at a time writes, and none once ``stopped`` is set."""
        with self._writing:
            if stopped.is_set():
                raise LorahubError("the pull was interrupted")
            yield

    def _same_place(self, origin: Origin) -> list[Adapter]:
        if origin.repo_id is not None:
            found = self._catalog.by_repo(origin.repo_id, origin.revision)
            return [a for a in found if a.origin.endpoint == origin.endpoint]
        if origin.url is not None:
            return self._followed(origin)
        known = self._catalog.by_folder(origin.folder)
        return [known] if known else []

    def _converted(self, origin: Origin, pickled: Path) -> Origin:
        """A safetensors copy, in the data folder, of an adapter whose weights are a pickle."""
        key = file_sha256(pickled)[:16]
        target = self._config.home / "converted" / key / origin.folder.name
        if not target.exists():
            with new_folder(target, self._config.home / "locks") as partial:
                formats.convert_pickle(origin.folder, partial)
        return replace(origin, folder=target)


class _Progress:
    """Files, while one adapter is pulled; adapters, while several are."""

    def __init__(self, listener: Listener, count: int) -> None:
        self._listener, self._count, self._done = listener, count, 0
        self._lock = Lock()
        if count > 1:
            listener(PhaseStarted("pull", count, "adapters"))

    def listener(self, event: Event) -> None:
        if self._count == 1 or isinstance(event, Warned):
            self._listener(event)

    def advance(self, item: str) -> None:
        if self._count > 1:
            with self._lock:
                self._done += 1
                self._listener(Advanced("pull", self._done, item))


def _same_line(one: Origin, other: Origin) -> bool:
    """Whether two origins are revisions of one place."""
    if one.repo_id is not None or other.repo_id is not None:
        return one.repo_id == other.repo_id and one.endpoint == other.endpoint
    return one.url == other.url if one.url or other.url else one.folder == other.folder


def _short(adapter: Adapter) -> str:
    return (adapter.origin.revision or adapter.info.content_hash)[:8]
