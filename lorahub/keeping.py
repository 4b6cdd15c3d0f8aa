"""What nobody needs any more: finding it, weighing it to the byte, and removing it.

Nothing that a user made or brought is removed without being asked for: of itself, only scraps of
killed processes and copies that lorahub makes again when it needs them.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from lorahub import storage
from lorahub.adapter import Adapter
from lorahub.config import Config
from lorahub.copies import COPIES, url_file
from lorahub.errors import ConflictError, LorahubError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned
from lorahub.output import is_being_written, partials, remove_folder
from store import Catalog

Kind = Literal["partial", "copy", "run", "orphan", "cached", "missing"]

FRESH_SECONDS = 3600
"""A younger copy may belong to a pull that is about to catalogue it."""


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that can go.

    Attributes:
        kind: ``partial`` (left by a killed process), ``copy`` (made again when needed), ``run``
            (ended without a word), ``orphan`` (a merged folder no catalog entry names),
            ``cached`` (in the Hub's cache only), ``missing`` (an entry whose files are gone).
        what: Folder, repository or name.
        why: In words.
        bytes: What removing it frees, exactly.
    """

    kind: Kind
    what: str
    why: str
    bytes: int
    _remove: Callable[[], object] = field(repr=False, compare=False)

    def remove(self) -> None:
        """Remove it.

        Raises:
            LorahubError: It cannot be removed.
        """
        self._remove()


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed (or would), and what it could not, with the reason."""

    removed: tuple[Waste, ...]
    failed: tuple[tuple[Waste, str], ...]

    @property
    def bytes(self) -> int:
        """Bytes that became free."""
        return sum(waste.bytes for waste in self.removed)


def sweep(waste: Sequence[Waste], listener: Listener, *, dry_run: bool) -> Swept:
    """Remove what was found, one thing after the other; what fails does not stop the rest."""
    removed, failed = [], []
    listener(PhaseStarted("gc", len(waste), "things"))
    for done, item in enumerate(waste, 1):
        try:
            if not dry_run:
                item.remove()
            removed.append(item)
        except LorahubError as error:
            failed.append((item, error.message))
        listener(Advanced("gc", done, item.what))
    return Swept(tuple(removed), tuple(failed))


class Finder:
    """Looks for waste in one data folder, beside its catalog."""

    def __init__(self, config: Config, catalog: Catalog, listener: Listener) -> None:
        self._config = config
        self._catalog = catalog
        self._listener = listener
        self._locks = config.home / "locks"
        self._placed = tuple(catalog.placed())
        self._used = {placed.folder for placed in self._placed}
        runs = catalog.open_runs()
        self._dead = [run for run in runs if not run.alive]
        self._writing = {Path(run.target) for run in runs if run.alive}

    def scraps(self) -> Iterator[Waste]:
        """Partial folders, copies without an entry, dead runs."""
        parents = [self._config.adapters, *(Path(run.target).parent for run in self._dead)]
        for name in COPIES:
            parents += self._folders(self._config.home / name)
        for parent in dict.fromkeys(parents):
            yield from self._partials(parent)
        for name, why in COPIES.items():
            for key in self._folders(self._config.home / name):
                inside = self._folders(key)
                for folder in inside:
                    if folder not in self._used and not _is_fresh(folder):
                        yield self._folder("copy", folder, why)
        for run in self._dead:
            why = "its process ended without a word"
            yield Waste("run", f"run {run.id}", why, 0, partial(self._end, run.id))

    def orphans(self) -> Iterator[Waste]:
        """Folders of merged adapters that no catalog entry names."""
        for folder in self._folders(self._config.adapters):
            taken = folder in self._used or folder in self._writing
            if not taken and not is_being_written(folder, self._locks):
                yield self._folder("orphan", folder, "no catalog entry names it")

    def cached(self) -> Iterator[Waste]:
        """Commits of adapters in the Hub's cache that no catalog entry names."""
        from lorahub.hub.cache import CachedAdapter, delete, freed_bytes, read_cache

        used = {(placed.repo_id, placed.revision) for placed in self._placed}
        unused: dict[str, list[CachedAdapter]] = defaultdict(list)
        for adapter in read_cache().adapters:
            if (adapter.repo_id, adapter.revision) not in used:
                unused[adapter.repo_id].append(adapter)
        for repo_id, adapters in unused.items():
            what = f"{repo_id}@{','.join(a.revision[:8] for a in adapters)}"
            why = "no catalog entry names it"
            size = freed_bytes(adapters)
            yield Waste("cached", what, why, size, partial(delete, adapters))

    def missing(self) -> Iterator[Waste]:
        """Catalog entries whose weights are gone."""
        for placed in self._placed:
            weights = placed.folder / placed.weights_file
            if not weights.exists():
                remove = partial(self._catalog.remove, placed.id)
                yield Waste("missing", placed.name, f"{weights} is gone", 0, remove)

    def unfinished(self, url: str) -> Iterator[Waste]:
        """Uploads to a storage URL, and to the folders in it, that did not end."""
        for left in storage.unfinished(url):
            remove = partial(storage.remove_unfinished, left.url)
            yield Waste("partial", left.url, "left by a killed upload", left.bytes, remove)

    def _partials(self, parent: Path) -> Iterator[Waste]:
        try:
            found = partials(parent)
        except FileNotFoundError:
            return
        except OSError as error:
            self._listener(Warned(f"{parent}: cannot be read ({error.strerror})"))
            return
        for path, target in found:
            if not is_being_written(target, self._locks):
                yield self._folder("partial", path, "left by a killed process", target)

    def _folder(self, kind: Kind, folder: Path, why: str, target: Path | None = None) -> Waste:
        size = self._weighed(folder)
        remove = partial(self._remove, folder, target)
        return Waste(kind, str(folder), why, size, remove)

    def _remove(self, folder: Path, target: Path | None) -> None:
        if self._catalog.by_folder(folder) is not None:
            raise ConflictError(f"{folder}: was catalogued meanwhile")
        remove_folder(folder, self._locks, target, note=url_file(folder))

    def _folders(self, parent: Path) -> list[Path]:
        """The folders in a folder, hidden ones aside, sorted; an unreadable one is warned of."""
        try:
            found = [p for p in parent.iterdir() if not p.name.startswith(".")]
            return sorted(p for p in found if p.is_dir() and not p.is_symlink())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._listener(Warned(f"{parent}: cannot be read ({error.strerror})"))
            return []

    def _weighed(self, folder: Path) -> int:
        return weigh(folder, lambda error: self._listener(Warned(str(error))))

    def _end(self, run_id: int) -> None:
        self._catalog.end_run(run_id, "interrupted", "the process ended without a word")


def _is_fresh(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime < FRESH_SECONDS
    except FileNotFoundError:
        return True


def weigh(folder: Path, on_error: Callable[[OSError], object]) -> int:
    """Bytes that removing a folder frees: a file that is linked elsewhere too frees nothing.

    The note of its URL, which goes with a copy, is among them.
    """
    links: Counter[tuple[int, int]] = Counter()
    found: dict[tuple[int, int], os.stat_result] = {}

    def told(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # what vanishes meanwhile is gone
            on_error(error)

    walked = os.walk(folder, onerror=told)
    inside = (Path(root) / name for root, _, files in walked for name in files)
    for path in chain(inside, [url_file(folder)]):
        try:
            stat = path.lstat()
        except OSError as error:
            told(error)
            continue
        file = (stat.st_dev, stat.st_ino)
        links[file] += 1
        found[file] = stat
    return sum(s.st_size for file, s in found.items() if links[file] >= s.st_nlink)


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing one adapter from the catalog means.

    Attributes:
        name: Catalog name.
        folder: Where its files are.
        deleted: Whether they are deleted too.
        bytes: What that frees, exactly.
        merged_into: Names of the adapters merged from it, which `lorahub verify` and
            `lorahub repro` then have to fetch it for.
        exports: Folders and packs it was copied to.
        pushes: Where it was published.
    """

    name: str
    folder: Path
    deleted: bool
    bytes: int
    merged_into: tuple[str, ...]
    exports: tuple[str, ...]
    pushes: tuple[str, ...]


def removals(
    config: Config,
    catalog: Catalog,
    adapters: Sequence[Adapter],
    listener: Listener,
    *,
    files: bool,
) -> tuple[Removal, ...]:
    """What removing adapters means; of files, only lorahub's own and those of no other entry."""
    leaving = {adapter.id for adapter in adapters}
    staying = {p.folder for p in catalog.placed() if p.id not in leaving} if files else set()
    own = [config.adapters, *(config.home / name for name in COPIES)]
    made = []
    for adapter in adapters:
        folder = adapter.origin.folder
        inside = any(parent in folder.parents for parent in own)
        deleted = files and inside and folder not in staying
        made.append(
            Removal(
                adapter.name,
                folder,
                deleted,
                weigh(folder, lambda e: listener(Warned(str(e)))) if deleted else 0,
                catalog.children(adapter.id),
                tuple(export.folder for export in catalog.exports(adapter.id)),
                tuple(push.url for push in catalog.pushes(adapter.id)),
            )
        )
    return tuple(made)
