"""Rebuilding the catalog from what lies on the disk: the Hub's cache and the data folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorahub import formats
from lorahub.adapter import Origin, Source
from lorahub.config import Config
from lorahub.copies import COPIES, url_of_copy
from lorahub.errors import IntegrityError, LorahubError
from lorahub.events import Advanced, Listener, PhaseStarted
from lorahub.hub.cache import CachedAdapter, read_cache
from lorahub.integrity import file_sha256
from lorahub.pulling import Puller
from lorahub.record import Parent, Record
from store import Catalog


@dataclass(frozen=True, slots=True)
class Scanned:
    """Outcome of a scan.

    Attributes:
        added: Names of the adapters that came into the catalog (for a dry run, their folders).
        known: How many were in it already.
        linked: How many parents of merged adapters the catalog knows now and did not before.
        skipped: What could not be taken, with the reason: folders, and repositories of the cache.
    """

    added: tuple[str, ...]
    known: int
    linked: int
    skipped: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Coming:
    """What a dry run would bring: contents of adapters, and parents that records name."""

    contents: set[str] = field(default_factory=set)
    parents: list[Parent] = field(default_factory=list)


def scan(
    config: Config,
    catalog: Catalog,
    endpoint: str | None,
    listener: Listener,
    *,
    dry_run: bool,
) -> Scanned:
    """Catalogue every adapter that lies on the disk and is not in the catalog.

    Each is one transaction: an interrupted scan goes on where it was, when it is repeated. A file
    of the cache whose content is not the one its blob is named after is not taken.

    Args:
        config: Whose data folder.
        catalog: Where to.
        endpoint: The Hub that the cache is taken to come from.
        listener: Receives progress.
        dry_run: Only look.
    """
    cache = read_cache()
    skipped = [("cache", problem) for problem in cache.problems]
    places: list[tuple[Origin, CachedAdapter | None]] = [
        (_cached_origin(adapter, endpoint), adapter)
        for adapter in cache.adapters
        # Of what was only looked at (`lorahub repro`), its texts alone were fetched.
        if formats.has_weights(adapter.folder)
    ]
    for folder, reason in _own_folders(config):
        try:
            if reason is None:
                places.append((_own_origin(folder), None))
        except LorahubError as error:
            reason = error.message
        if reason is not None:
            skipped.append((str(folder), reason))
    puller = Puller(config, catalog)
    added, known = [], 0
    before, coming = catalog.linked_parents(), _Coming() if dry_run else None
    listener(PhaseStarted("scan", len(places), "folders"))
    for done, (origin, cached) in enumerate(places, 1):
        try:
            name = _take(config, catalog, puller, origin, cached, coming)
            known += name is None
            added += [name] if name is not None else []
        except LorahubError as error:
            skipped.append((str(origin.folder), error.message))
        listener(Advanced("scan", done, str(origin.folder)))
    if coming is None:
        catalog.link_parents()
        linked = catalog.linked_parents() - before
    else:
        linked = catalog.linkable_parents(coming.contents, coming.parents)
    return Scanned(tuple(added), known, linked, tuple(skipped))


def _take(
    config: Config,
    catalog: Catalog,
    puller: Puller,
    origin: Origin,
    cached: CachedAdapter | None,
    coming: _Coming | None,
) -> str | None:
    """The name of an adapter that is new, or None for a known one; ``coming`` is of a dry run."""
    record = Record.read(origin.folder)
    known = catalog.by_folder(origin.folder)
    if known is not None:
        # A process may have been stopped between an adapter and its parents.
        if record is not None and coming is None:
            catalog.add_lineage(known.id, record.parents)
        elif record is not None and coming is not None and not catalog.parents(known.id):
            coming.parents += record.parents
        return None
    if cached is not None and (damaged := cached.damaged()):
        raise IntegrityError(
            f"{origin.folder / damaged[0]}: is not the file its blob is named after"
        )
    if record is not None and origin.folder.is_relative_to(config.adapters):
        origin = replace(origin, source=Source.MERGE)
        if file_sha256(formats.find_weights(origin.folder)) != record.weights_sha256:
            raise IntegrityError(f"{origin.folder}: the weights are not those of its record")
    if coming is not None:
        info = formats.inspect(origin.folder)
        coming.contents.add(info.content_hash)
        if record is not None and record.weights_sha256 == info.weights_sha256:
            coming.parents += record.parents
        return str(origin.folder)
    adapter, new = puller.register(origin)
    return adapter.name if new else None


def _cached_origin(adapter: CachedAdapter, endpoint: str | None) -> Origin:
    return Origin(
        Source.HUB,
        adapter.folder,
        adapter.repo_id,
        adapter.revision,
        adapter.requested_revision,
        endpoint,
    )


def _own_origin(folder: Path) -> Origin:
    url = url_of_copy(folder)
    return Origin(Source.STORE if url else Source.FOLDER, folder, endpoint=url)


def _own_folders(config: Config) -> Iterator[tuple[Path, str | None]]:
    """Folders of the data folder that may hold an adapter, or why they cannot be looked at."""
    parents: list[Path] = [config.adapters]
    for name in COPIES:
        for folder, reason in _inside(config.home / name):
            if reason is None:
                parents.append(folder)
            else:
                yield folder, reason
    for parent in parents:
        yield from _inside(parent)


def _inside(parent: Path) -> Sequence[tuple[Path, str | None]]:
    try:
        found = [p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        return [(parent, f"cannot be read ({error.strerror})")]
    return [(folder, None) for folder in sorted(found)]
