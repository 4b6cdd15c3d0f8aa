"""Pages of adapters: filtered, sorted, searched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields

from sqlalchemy import ColumnElement, RowMapping, func, select, text

from lorahub.errors import UsageError
from store.database import Database
from store.models import adapter_table
from store.values import AdapterFilter, AdapterSummary

# Each is the whole of an index, whose entries end with the id: no listing has to sort.
SORTS: Mapping[str, tuple[str, ...]] = {
    "name": ("name", "id"),
    "created": ("created_at", "id"),
    "rank": ("rank_max", "id"),
    "size": ("weights_bytes", "id"),
    "base": ("base_model", "name", "id"),
}

_SUMMARY = (
    *(
        adapter_table.c[f.name]
        for f in fields(AdapterSummary)
        if f.name not in {"modules", "mergeable"}
    ),
    adapter_table.c.module_count,
    adapter_table.c.refusals,
)


class Listing(Database):
    """Summaries of adapters, a page at a time."""

    def adapters(
        self,
        where: AdapterFilter | None = None,
        *,
        sort: str = "name",
        descending: bool = False,
        limit: int = 50,
        offset: int = 0,
    ) -> list[AdapterSummary]:
        """One page of adapters; ``descending`` reverses the whole order, ties included.

        Raises:
            UsageError: An unknown sort key.
        """
        if sort not in SORTS:
            raise UsageError(f"cannot sort by '{sort}'", hint=f"sort by one of {', '.join(SORTS)}")
        columns = [adapter_table.c[name] for name in SORTS[sort]]
        order = [column.desc() for column in columns] if descending else columns
        query = select(*_SUMMARY).where(*conditions(where)).order_by(*order)
        with self._read() as connection:
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return [_summary(row) for row in rows]

    def count(self, where: AdapterFilter | None = None) -> int:
        """How many adapters match."""
        query = select(func.count()).select_from(adapter_table).where(*conditions(where))
        with self._read() as connection:
            return connection.execute(query).scalar_one()

    def search(self, words: str, *, limit: int = 50, offset: int = 0) -> list[AdapterSummary]:
        """Full-text search over names, base models, tags, targets and cards, best first.

        Every word must occur; the last may be the beginning of one.
        """
        terms = re.findall(r"\w+", words)
        if not terms:
            return []
        match = " ".join(f'"{term}"' for term in terms) + "*"
        ranked = (
            select(text("rowid AS hit"), text("bm25(adapters_fts, 10, 4, 4, 2, 1) AS score"))
            .select_from(text("adapters_fts"))
            .where(text("adapters_fts MATCH :match"))
            .order_by(text("score"), text("rowid"))
            .limit(limit)
            .offset(offset)
        )
        with self._read() as connection:
            ids = [row[0] for row in connection.execute(ranked, {"match": match})]
            query = select(*_SUMMARY).where(adapter_table.c.id.in_(ids))
            found = {r["id"]: _summary(r) for r in connection.execute(query).mappings()}
        return [found[i] for i in ids]

    def names_like(self, name: str) -> list[str]:
        """Up to three names that a mistyped one may mean."""
        with self._read() as connection:
            names = list(connection.execute(select(adapter_table.c.name).limit(20_000)).scalars())
        return difflib.get_close_matches(name, names, n=3)


def conditions(where: AdapterFilter | None) -> list[ColumnElement[bool]]:
    """What a filter asks of the adapters' table."""
    if where is None:
        return []
    conditions: list[ColumnElement[bool]] = []
    if where.base is not None:
        conditions.append(adapter_table.c.base_model.icontains(where.base, autoescape=True))
    if where.method is not None:
        conditions.append(adapter_table.c.method == where.method)
    if where.source is not None:
        conditions.append(adapter_table.c.source == where.source)
    low, high = where.rank or (None, None)
    if low is not None:
        conditions.append(adapter_table.c.rank_max >= low)
    if high is not None:
        conditions.append(adapter_table.c.rank_min <= high)
    return conditions


def _summary(row: RowMapping) -> AdapterSummary:
    values = dict(row)
    refusals, modules = values.pop("refusals"), values.pop("module_count")
    values["targets"] = tuple(values["targets"])
    return AdapterSummary(**values, modules=modules, mergeable=not refusals)
