"""Keeping the catalog and the disk in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorahub.copies import url_file
from lorahub.events import Listener, ignore
from lorahub.keeping import Finder, Removal, Swept, removals, sweep
from lorahub.output import remove_folder
from lorahub.workspace.finding import Finding

if TYPE_CHECKING:
    from lorahub.scanning import Scanned


class Keeping(Finding):
    """Removing, collecting what is not needed, and rebuilding."""

    def remove(
        self,
        references: Sequence[str],
        *,
        files: bool = False,
        dry_run: bool = False,
        listener: Listener = ignore,
    ) -> tuple[Removal, ...]:
        """Take adapters out of the catalog; with ``files``, also delete lorahub's own folders.

        Files of the Hub's cache and of the user's own folders are never deleted, nor those that
        another entry of the catalog names.

        Raises:
            NotFoundError: A reference names nothing; then none is removed.
            StorageError: A folder cannot be deleted; all have left the catalog by then.
        """
        adapters = {a.id: a for a in map(self.get, references)}
        found = removals(self.config, self.catalog, [*adapters.values()], listener, files=files)
        if not dry_run:
            self.catalog.remove_all([*adapters])
            for removal in found:
                if removal.deleted:
                    folder = removal.folder
                    remove_folder(folder, self.config.home / "locks", note=url_file(folder))
        return found

    def gc(
        self,
        *,
        orphans: bool = False,
        cache: bool = False,
        missing: bool = False,
        store: str | None = None,
        dry_run: bool = False,
        listener: Listener = ignore,
    ) -> Swept:
        """Remove what killed processes left and what can be made again.

        Args:
            orphans: Also folders of merged adapters that no catalog entry names.
            cache: Also adapters in the Hub's cache that no catalog entry names; other tools may
                use them, and would download them again.
            missing: Also catalog entries whose files are gone.
            store: A storage URL: also uploads to it, and to the folders in it, that began more
                than a day ago and did not end.
            dry_run: Only look, and say what would go.
            listener: Receives progress.
        """
        finder = Finder(self.config, self.catalog, listener)
        waste = [*finder.scraps()]
        if orphans:
            waste += finder.orphans()
        if cache:
            waste += finder.cached()
        if missing:
            waste += finder.missing()
        if store is not None:
            waste += finder.unfinished(store)
        return sweep(waste, listener, dry_run=dry_run)

    def scan(self, *, dry_run: bool = False, listener: Listener = ignore) -> Scanned:
        """Catalogue what lies in the Hub's cache and in the data folder; see `lorahub.scanning`."""
        from lorahub.scanning import scan

        return scan(self.config, self.catalog, self.hub().endpoint, listener, dry_run=dry_run)
