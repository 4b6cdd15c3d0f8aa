"""Lineage over all generations, up to what an adapter came from and down to what it is part of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Select, func, insert, select, update

from lorahub.record import Parent
from store.database import Database
from store.models import adapter_table, lineage_table


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """One parent of one merged adapter.

    Attributes:
        child_id: Row id of the merged adapter.
        parent_id: Row id of the parent, or of another adapter with its very content; None where
            the catalog has neither.
        reference: The parent as the merge named it.
        content_hash: Its content.
        weight: Its weight.
        repo_id: ``owner/name`` when it came from the Hub, else None.
        revision: Commit when it came from the Hub, else None.
    """

    child_id: int
    parent_id: int | None
    reference: str
    content_hash: str
    weight: float
    repo_id: str | None
    revision: str | None


@dataclass(frozen=True, slots=True)
class LineageAdapter:
    """What a family tree shows of a catalogued adapter."""

    id: int
    name: str
    content_hash: str
    method: str | None
    license: str | None
    repo_id: str | None
    revision: str | None


# Whoever left the catalog and was pulled again has another row; its content is the same.
_NEWEST = (
    select(func.max(adapter_table.c.id))
    .where(adapter_table.c.content_hash == lineage_table.c.content_hash)
    .scalar_subquery()
)

_EDGES = select(
    lineage_table.c.adapter_id,
    func.coalesce(lineage_table.c.parent_id, _NEWEST),
    lineage_table.c.reference,
    lineage_table.c.content_hash,
    lineage_table.c.weight,
    lineage_table.c.repo_id,
    lineage_table.c.revision,
)


class Lineage(Database):
    """Trees of adapters, read generation by generation."""

    def ancestry(self, adapter_id: int) -> tuple[LineageEdge, ...]:
        """The edges of all generations above an adapter, each once, in recipe order."""

        def above(ids: Sequence[int]) -> Select[Any]:
            where = lineage_table.c.adapter_id.in_(ids)
            order = (lineage_table.c.adapter_id, lineage_table.c.position)
            return _EDGES.where(where).order_by(*order)

        return self._generations(adapter_id, above, lambda edge: edge.parent_id)

    def descent(self, adapter_id: int) -> tuple[LineageEdge, ...]:
        """The edges of all generations below an adapter, each once, oldest child first."""

        def below(ids: Sequence[int]) -> Select[Any]:
            hashes = select(adapter_table.c.content_hash).where(adapter_table.c.id.in_(ids))
            where = lineage_table.c.content_hash.in_(hashes)
            return _EDGES.where(where).order_by(lineage_table.c.adapter_id)

        return self._generations(adapter_id, below, lambda edge: edge.child_id)

    def _generations(
        self,
        adapter_id: int,
        query: Callable[[Sequence[int]], Select[Any]],
        follow: Callable[[LineageEdge], int | None],
    ) -> tuple[LineageEdge, ...]:
        found: dict[LineageEdge, None] = {}
        seen, level = {adapter_id}, [adapter_id]
        with self._read() as connection:
            while level:
                edges = [LineageEdge(*row) for row in connection.execute(query(level))]
                found |= dict.fromkeys(edges)
                ids = dict.fromkeys(follow(edge) for edge in edges)
                level = [i for i in ids if i is not None and i not in seen]
                seen.update(level)
        return tuple(found)

    def lineage_adapters(self, ids: Sequence[int]) -> dict[int, LineageAdapter]:
        """What a tree shows of adapters, by id."""
        columns = [adapter_table.c[f.name] for f in fields(LineageAdapter)]
        query = select(*columns).where(adapter_table.c.id.in_(ids))
        with self._read() as connection:
            return {row.id: LineageAdapter(*row) for row in connection.execute(query)}

    def add_lineage(self, adapter_id: int, parents: Sequence[Parent]) -> None:
        """Give an adapter the parents its record names, unless it has some already."""
        known = select(lineage_table.c.id).where(lineage_table.c.adapter_id == adapter_id)
        with self._write() as connection:
            if connection.execute(known.limit(1)).first() is not None:
                return
            for position, parent in enumerate(parents):
                same = adapter_table.c.content_hash == parent.content_hash
                newest = select(func.max(adapter_table.c.id)).where(same).scalar_subquery()
                row = lineage_row(adapter_id, position, parent)
                connection.execute(insert(lineage_table).values(**row, parent_id=newest))

    def linked_parents(self) -> int:
        """How many parents of adapters, over all lineage, are in the catalog themselves."""
        query = select(func.count()).where(lineage_table.c.parent_id.is_not(None))
        with self._read() as connection:
            return connection.execute(query).scalar_one()

    def linkable_parents(self, contents: Collection[str], parents: Sequence[Parent]) -> int:
        """How many more there would be with adapters of ``contents``, and lineage to ``parents``.

        Args:
            contents: Content hashes.
            parents: As records name them.
        """
        loose = select(lineage_table.c.content_hash).where(lineage_table.c.parent_id.is_(None))
        with self._read() as connection:
            there = set(connection.execute(select(adapter_table.c.content_hash)).scalars())
            wanted = list(connection.execute(loose).scalars())
        there |= set(contents)
        return sum(h in there for h in (*wanted, *(p.content_hash for p in parents)))

    def link_parents(self) -> int:
        """Point lineage at adapters that came, or came back, after it; how many were linked."""
        statement = (
            update(lineage_table)
            .where(lineage_table.c.parent_id.is_(None), _NEWEST.is_not(None))
            .values(parent_id=_NEWEST)
        )
        with self._write() as connection:
            return connection.execute(statement).rowcount


def lineage_row(adapter_id: int, position: int, parent: Parent) -> dict[str, Any]:
    """The columns of one parent but the one that points at its row."""
    return {
        "adapter_id": adapter_id,
        "position": position,
        "reference": parent.reference,
        "content_hash": parent.content_hash,
        "weight": parent.weight,
        "repo_id": parent.repo_id,
        "revision": parent.revision,
    }
