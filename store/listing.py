"""Pages of adapters: filtered, sorted, searched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Text,
    exists,
    func,
    or_,
    select,
    type_coerce,
)

from lorahub.errors import UsageError
from store import search
from store.database import Database
from store.evaluations import figure_named, figure_names
from store.identity import meaning
from store.models import adapter_table, evaluation_table, label_table, lineage_table
from store.values import AdapterFilter, AdapterSummary, Span

# Each is the whole of an index, whose entries end with the id: no listing has to sort.
SORTS: Mapping[str, tuple[str, ...]] = {
    "name": ("name", "id"),
    "created": ("created_at", "id"),
    "rank": ("rank_max", "id"),
    "size": ("weights_bytes", "id"),
    "base": ("base", "name", "id"),
}

# What `Listing.facets` counts, with the column of each.
_FACETS = {
    "base": adapter_table.c.base,
    "rank": adapter_table.c.rank_max,
    "task": adapter_table.c.task_type,
    "license": adapter_table.c.license,
    "source": adapter_table.c.source,
    "method": adapter_table.c.method,
    "dtype": adapter_table.c.dtype,
}
_LISTS = {"target": adapter_table.c.targets, "tag": adapter_table.c.tags}

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

        ``sort`` is one of `SORTS` or a suite's figure, ``SUITE.FIGURE``; adapters that have none
        come last, whichever the order.

        Raises:
            UsageError: An unknown sort key.
        """
        with self._read() as connection:
            query = select(*_SUMMARY).where(*conditions(connection, where))
            query = _ordered(connection, query, sort, descending=descending)
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return [_summary(row) for row in rows]

    def count(self, where: AdapterFilter | None = None) -> int:
        """How many adapters match."""
        with self._read() as connection:
            matching = conditions(connection, where)
            query = select(func.count()).select_from(adapter_table).where(*matching)
            return connection.execute(query).scalar_one()

    def facets(self, where: AdapterFilter | None = None) -> dict[str, dict[str, int]]:
        """How many of the matching adapters have each value, most frequent first.

        Keys are ``base``, ``rank`` (the largest), ``task``, ``license``, ``source``, ``method``,
        ``dtype``, ``target`` and ``tag``; what an adapter lacks is counted as an empty text.
        """
        columns = [*_FACETS.values(), *(type_coerce(c, Text) for c in _LISTS.values())]
        with self._read() as connection:
            query = select(*columns).where(*conditions(connection, where))
            rows = connection.execute(query).all()
        # Counted here: grouping by several texts costs the database more than handing them over.
        names = (*_FACETS, *_LISTS)
        values = zip(*rows, strict=True) if rows else ((),) * len(names)
        found = {name: Counter(column) for name, column in zip(names, values, strict=True)}
        for name in _LISTS:
            lists = found[name]
            found[name] = Counter()
            for text, count in lists.items():
                found[name].update(dict.fromkeys(json.loads(text), count))
        return {
            name: dict(sorted(_named(counts), key=lambda item: (-item[1], item[0])))
            for name, counts in found.items()
        }

    def search(
        self, words: str, *, limit: int = 50, offset: int = 0, where: AdapterFilter | None = None
    ) -> list[AdapterSummary]:
        """Full-text search over names, base models, tags, targets and cards, best first.

        ``where`` says among which. Every word must occur; the last may be the beginning of one.
        Where nothing has them all, `corrected` ones are searched for.
        """
        with self._read() as connection:
            among = conditions(connection, where)
            ids = search.hits(connection, words, limit, offset, among)
            if not ids and not search.hits(connection, words, 1, 0):
                words = search.corrected(connection, words)
                ids = search.hits(connection, words, limit, offset, among)
            query = select(*_SUMMARY).where(adapter_table.c.id.in_(ids))
            found = {r["id"]: _summary(r) for r in connection.execute(query).mappings()}
        return [found[i] for i in ids if i in found]

    def corrected(self, words: str) -> str:
        """The words that a search without hits goes on with; see `store.search.corrected`."""
        with self._read() as connection:
            return search.corrected(connection, words)

    def names_like(self, name: str) -> list[str]:
        """Up to three names that a mistyped one may mean, nearest first."""
        from rapidfuzz import fuzz, process

        with self._read() as connection:
            names = connection.execute(select(adapter_table.c.name).limit(20_000)).scalars().all()
        near = process.extract(name, names, scorer=fuzz.ratio, score_cutoff=60, limit=3)
        return [name for name, *_ in near]


def _ordered(
    connection: Connection, query: Select[Any], sort: str, *, descending: bool
) -> Select[Any]:
    """The query in the order of a sort key.

    Raises:
        UsageError: There is no such key.
    """
    if sort in SORTS:
        columns = [adapter_table.c[name] for name in SORTS[sort]]
        return query.order_by(*(c.desc() if descending else c for c in columns))
    meant = figure_named(connection, sort)
    if meant is None:
        known = (*SORTS, *figure_names(connection))
        raise UsageError(f"cannot sort by '{sort}'", hint=f"sort by one of {', '.join(known)}")
    suite, name = meant
    found = evaluation_table.c
    value, tie = found.figures[name].as_float(), adapter_table.c.id
    order = (value.desc(), tie.desc()) if descending else (value.asc(), tie.asc())
    of_suite = (found.adapter_id == adapter_table.c.id) & (found.suite == suite)
    return query.outerjoin(evaluation_table, of_suite).order_by(order[0].nulls_last(), order[1])


def _named(counts: Counter[Any]) -> Iterator[tuple[str, int]]:
    for value, count in counts.items():
        yield "" if value is None else str(value), count


def conditions(connection: Connection, where: AdapterFilter | None) -> list[ColumnElement[bool]]:
    """What a filter asks of the adapters' table."""
    if where is None:
        return []
    table = adapter_table.c
    found = [
        *_within(where.rank, table.rank_min, table.rank_max),
        *_within(where.alpha, table.alpha_min, table.alpha_max),
        *_within(where.size, table.weights_bytes, table.weights_bytes),
        *(_labelled("target", value) for value in where.targets),
        *(_labelled("tag", value) for value in where.tags),
    ]
    if where.base is not None:
        found.append(_of_base(connection, where.base))
    for column, value in (
        (table.license, where.license),
        (table.source, where.source),
        (table.method, where.method),
    ):
        if value is not None:
            found.append(column == value)
    for column, value in ((table.dtype, where.dtype), (table.task_type, where.task)):
        if value is not None:
            found.append(column.in_((value, value.upper())))
    if where.since is not None:
        found.append(table.created_at >= where.since)
    if where.until is not None:
        found.append(table.created_at < f"{where.until}~")  # after all that begins so
    if where.used_in is not None:
        child = adapter_table.alias()
        parents = (
            select(lineage_table.c.parent_id)
            .join(child, child.c.id == lineage_table.c.adapter_id)
            .where(child.c.name == where.used_in)
        )
        found.append(table.id.in_(parents))
    return found


def _within(
    span: Span | None, least: Column[float], most: Column[float]
) -> list[ColumnElement[bool]]:
    low, high = span or (None, None)
    found: list[ColumnElement[bool]] = []
    if low is not None:
        found.append(most >= low)
    if high is not None:
        found.append(least <= high)
    return found


def _labelled(kind: str, value: str) -> ColumnElement[bool]:
    return exists().where(
        label_table.c.kind == kind,
        label_table.c.value == value,
        label_table.c.adapter_id == adapter_table.c.id,
    )


def _of_base(connection: Connection, name: str) -> ColumnElement[bool]:
    """Adapters of one base model; without any, those whose base has ``name`` as a part."""
    meant = meaning(connection, name)
    if meant is not None and meant.name and "/" in meant.name:
        same = adapter_table.c.base == meant.name
        if connection.execute(select(adapter_table.c.id).where(same).limit(1)).first():
            return same
    return or_(
        adapter_table.c.base.icontains(name, autoescape=True),
        adapter_table.c.base_model.icontains(name, autoescape=True),
    )


def _summary(row: RowMapping) -> AdapterSummary:
    values = dict(row)
    refusals, modules = values.pop("refusals"), values.pop("module_count")
    values["targets"] = tuple(values["targets"])
    values["base"] = values["base"] or None
    return AdapterSummary(**values, modules=modules, mergeable=not refusals)
