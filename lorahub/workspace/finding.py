"""Looking into the catalog."""

from __future__ import annotations

from lorahub.adapter import Adapter, Reference
from lorahub.lookup import get
from lorahub.workspace.base import Base
from store import AdapterFilter, AdapterSummary, ParentLink


class Finding(Base):
    """What there is."""

    def get(self, reference: str) -> Adapter:
        """The catalogued adapter a reference means: name, id, folder, repository, pack's member.

        Raises:
            NotFoundError: Nothing in the catalog goes by it.
            ConflictError: An id prefix that means several.
        """
        expanded = self.config.expand(reference)
        parsed = Reference.parse(expanded)
        if parsed.pack is not None:
            from lorahub.packs import member_folder

            folder, _ = member_folder(self.config.home, parsed)
            if found := self.catalog.by_folder(folder):
                return found
        return get(self.catalog, expanded)

    def adapters(
        self,
        where: AdapterFilter | None = None,
        *,
        sort: str = "name",
        descending: bool = False,
        limit: int = 50,
        offset: int = 0,
    ) -> list[AdapterSummary]:
        """One page of the catalog."""
        return self.catalog.adapters(
            where, sort=sort, descending=descending, limit=limit, offset=offset
        )

    def search(
        self, words: str, *, limit: int = 50, offset: int = 0, where: AdapterFilter | None = None
    ) -> list[AdapterSummary]:
        """Full-text search, best first; without hits, for the `corrected` words."""
        return self.catalog.search(words, limit=limit, offset=offset, where=where)

    def corrected(self, words: str) -> str:
        """The words, with each that nothing has replaced by the nearest that something has."""
        return self.catalog.corrected(words)

    def count(self, where: AdapterFilter | None = None) -> int:
        """How many adapters match."""
        return self.catalog.count(where)

    def parents(self, adapter: Adapter) -> tuple[ParentLink, ...]:
        """What a merged adapter came from, in recipe order."""
        return self.catalog.parents(adapter.id)
