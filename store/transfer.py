"""A catalog as JSON lines, out and in again.

The first line is ``{"kind": "catalog", "version": 1}``; each other is an alias, an adapter with
its modules, lineage, exports, pushes and evaluations, or a run that has ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from lorahub.adapter import Adapter
from lorahub.errors import ConflictError, InvalidCatalogError
from lorahub.wording import first_wrong
from store.adapters import insert_rows, read_adapters
from store.database import Database
from store.identity import alias_of, fold_name
from store.models import (
    adapter_table,
    alias_table,
    evaluation_table,
    export_table,
    lineage_table,
    push_table,
    run_table,
)
from store.values import Alias, Evaluation, Export, Imported, Push

VERSION = 1
_HEX = re.compile(r"(?:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class _Parent:
    """A parent as a line tells it: by its name where it is in the same catalog."""

    reference: str
    content_hash: str
    weight: float
    repo_id: str | None
    revision: str | None
    name: str | None


@dataclass(frozen=True, slots=True)
class _AdapterLine:
    adapter: Adapter
    parents: tuple[_Parent, ...]
    exports: tuple[Export, ...]
    pushes: tuple[Push, ...]
    evaluations: tuple[Evaluation, ...] = ()


# The parts of a line that are rows of other tables: the table, what a row is, and their order.
_PARTS: Mapping[str, tuple[Table, type[Any], str]] = {
    "exports": (export_table, Export, "id"),
    "pushes": (push_table, Push, "id"),
    "evaluations": (evaluation_table, Evaluation, "suite"),
}


@dataclass(frozen=True, slots=True)
class _RunLine:
    digest: str
    state: str
    recipe: str
    method: str
    target: str
    started_at: str
    ended_at: str | None
    error: str | None
    record: str | None
    adapter: str | None


class Transfer(Database):
    """Export and import."""

    def export_lines(self) -> Iterator[str]:
        """The whole catalog at one moment, line by line."""
        with self._read() as connection:
            yield _line("catalog", {"version": VERSION})
            for row in connection.execute(select(alias_table).order_by(alias_table.c.folded)):
                yield _line("alias", asdict(Alias(row.alias, row.base, row.created_at)))
            ids = select(adapter_table.c.id).order_by(adapter_table.c.id)
            for adapter_id in list(connection.execute(ids).scalars()):
                (adapter,) = read_adapters(connection, adapter_table.c.id == adapter_id)
                yield _adapter_line(connection, adapter)
            names = run_table.outerjoin(adapter_table, run_table.c.adapter_id == adapter_table.c.id)
            columns = [run_table.c[f.name] for f in fields(_RunLine) if f.name != "adapter"]
            ended = (
                select(*columns, adapter_table.c.name.label("adapter"))
                .select_from(names)
                .where(run_table.c.state != "running")
                .order_by(run_table.c.id)
            )
            for found in connection.execute(ended).mappings():
                yield _line("run", dict(found))

    def import_lines(self, lines: Iterable[str | bytes], source: str) -> Imported:
        """Take in what `export_lines` gave, whole or not at all; what is here already stays.

        Args:
            lines: The lines.
            source: What they came from, for errors.

        Raises:
            InvalidCatalogError: A line that is no part of a catalog, by its number.
            ConflictError: A name that is another adapter's here, or an alias of another base.
        """
        with self._write() as connection:
            importer = _Importer(connection, source)
            for number, line in enumerate(lines, 1):
                importer.take(number, line)
            return importer.finish()


class _Importer:
    """Takes lines into an open transaction."""

    def __init__(self, connection: Connection, source: str) -> None:
        self._connection = connection
        self._source = source
        self._at = source
        self._begun = False
        self._children: list[tuple[int, tuple[_Parent, ...]]] = []
        self._counts = Imported(adapters=0, known=0, aliases=0, runs=0)

    def take(self, number: int, line: str | bytes) -> None:
        self._at = f"{self._source}, line {number}"
        try:
            body = json.loads(line)
            kind = body.pop("kind")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise self._bad("is not a line of an exported catalog") from error
        if not self._begun:
            if kind != "catalog":
                raise self._bad("is not the beginning of an exported catalog")
            if body.get("version") != VERSION:
                raise self._bad(f"has version {body.get('version')!r}, not {VERSION}")
            self._begun = True
            return
        if kind == "alias":
            self._alias(self._checked(Alias, body))
        elif kind == "adapter":
            self._adapter(self._checked(_AdapterLine, body))
        elif kind == "run":
            self._run(self._checked(_RunLine, body))
        else:
            raise self._bad(f"is of an unknown kind, {str(kind)[:40]!r}")

    def finish(self) -> Imported:
        """Link children to their parents, by name."""
        if not self._begun:
            raise self._bad("is empty")
        for child, parents in self._children:
            for position, parent in enumerate(parents):
                values = {k: v for k, v in asdict(parent).items() if k != "name"}
                self._connection.execute(
                    insert(lineage_table).values(
                        **values,
                        adapter_id=child,
                        position=position,
                        parent_id=self._id(parent.name, parent.content_hash),
                    )
                )
        return self._counts

    def _checked(self, kind: type[Any], body: dict[str, Any]) -> Any:  # noqa: ANN401 - any line
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(kind).validate_json(json.dumps(body), strict=True)
        except ValidationError as error:
            first = first_wrong(error)
            where = ".".join(map(str, first["loc"])) or "it"
            raise self._bad(f"'{where}': {first['msg']}") from error

    def _alias(self, alias: Alias) -> None:
        known = alias_of(self._connection, alias.alias)
        if known not in {None, alias.base}:
            raise ConflictError(
                f"{self._at}: '{alias.alias}' means {alias.base} there, but {known} here",
                hint=f"`lorahub base unalias '{alias.alias}'`, or take the line out",
            )
        if known is None:
            values = {"folded": fold_name(alias.alias), **asdict(alias)}
            self._connection.execute(insert(alias_table).values(**values))
            self._counts = replace(self._counts, aliases=self._counts.aliases + 1)

    def _adapter(self, line: _AdapterLine) -> None:
        adapter = line.adapter
        for module in adapter.info.modules:
            if not (_HEX.fullmatch(module.hash_a) and _HEX.fullmatch(module.hash_b)):
                raise self._bad(f"module '{module.name}' has a hash that is no sha256")
        query = select(adapter_table.c.content_hash).where(adapter_table.c.name == adapter.name)
        known = self._connection.execute(query).scalar()
        if known == adapter.info.content_hash:
            self._counts = replace(self._counts, known=self._counts.known + 1)
            return
        if known is not None:
            raise ConflictError(
                f"{self._at}: '{adapter.name}' is another adapter here",
                hint=f"`lorahub rm '{adapter.name}'`, or take the line out",
            )
        added = insert_rows(self._connection, adapter, created_at=adapter.created_at or None)
        self._children.append((added.id, line.parents))
        for part, (table, _, _) in _PARTS.items():
            for value in getattr(line, part):
                self._connection.execute(insert(table).values(adapter_id=added.id, **asdict(value)))
        self._counts = replace(self._counts, adapters=self._counts.adapters + 1)

    def _run(self, line: _RunLine) -> None:
        # A batch begins several of one plan in the same millisecond.
        telling = ("digest", "target", "state", "started_at")
        same = (run_table.c[name] == getattr(line, name) for name in telling)
        if self._connection.execute(select(run_table.c.id).where(*same)).first():
            return
        values = {k: v for k, v in asdict(line).items() if k != "adapter"}
        self._connection.execute(
            insert(run_table).values(**values, host="", pid=0, adapter_id=self._id(line.adapter))
        )
        self._counts = replace(self._counts, runs=self._counts.runs + 1)

    def _id(self, name: str | None, content_hash: str | None = None) -> int | None:
        query = select(adapter_table.c.id).where(adapter_table.c.name == name)
        if content_hash is not None:
            query = query.where(adapter_table.c.content_hash == content_hash)
        return self._connection.execute(query).scalar()

    def _bad(self, what: str) -> InvalidCatalogError:
        return InvalidCatalogError(
            f"{self._at}: {what}; nothing was imported", hint="export the catalog again"
        )


def _adapter_line(connection: Connection, adapter: Adapter) -> str:
    parent = adapter_table.alias()
    columns = [lineage_table.c[f.name] for f in fields(_Parent) if f.name != "name"]
    lineage = (
        select(*columns, parent.c.name)
        .select_from(lineage_table.outerjoin(parent, parent.c.id == lineage_table.c.parent_id))
        .where(lineage_table.c.adapter_id == adapter.id)
        .order_by(lineage_table.c.position)
    )
    body: dict[str, Any] = {"adapter": asdict(replace(adapter, id=0, base=None))}
    body["adapter"]["origin"]["folder"] = str(adapter.origin.folder)
    body["parents"] = [dict(row) for row in connection.execute(lineage).mappings()]
    for name, (table, kind, order) in _PARTS.items():
        query = select(*(table.c[f.name] for f in fields(kind)))
        query = query.where(table.c.adapter_id == adapter.id).order_by(table.c[order])
        body[name] = [dict(row) for row in connection.execute(query).mappings()]
    return _line("adapter", body)


def _line(kind: str, body: dict[str, Any]) -> str:
    return json.dumps({"kind": kind, **body}, ensure_ascii=False) + "\n"
