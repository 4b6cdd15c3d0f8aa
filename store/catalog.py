"""The catalog: adapters, runs and lineage in one database."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DatabaseError, OperationalError

from store.adapters import Adapters
from store.bases import Bases
from store.evaluations import Evaluations
from store.keeping import Keeping
from store.lineage import Lineage
from store.listing import Listing
from store.models import adapter_table, metadata
from store.publications import Publications
from store.remote import Remote
from store.runs import Runs
from store.search import unindexed
from store.sketches import Sketches
from store.transfer import Transfer
from store.values import Stats


class Catalog(
    Adapters,
    Bases,
    Keeping,
    Lineage,
    Evaluations,
    Listing,
    Publications,
    Remote,
    Runs,
    Sketches,
    Transfer,
):
    """An open catalog. Every method is one transaction; values go in and out, rows never."""

    def check(self) -> tuple[str, ...]:
        """Problems found in the database, in words; empty when it is sound."""
        problems: list[str] = []
        with self._read() as connection:
            try:
                problems += _problems(connection)
            except DatabaseError as error:
                if isinstance(error, OperationalError):
                    raise
                problems.append(str(error.orig))
        return tuple(problems)

    def stats(self) -> Stats:
        """How much there is, and how much room it takes."""
        columns = adapter_table.c
        query = select(
            columns.source,
            func.count(),
            func.sum(columns.module_count),
            func.sum(columns.weights_bytes),
        ).group_by(columns.source)
        named = {"adapters", "adapter_texts", "modules"}
        with self._read() as connection:
            rows = connection.execute(query.order_by(columns.source)).all()
            return Stats(
                backend=connection.dialect.name,
                revision=connection.execute(
                    text("SELECT version_num FROM alembic_version")
                ).scalar_one(),
                bytes=_size(connection),
                adapters={source: count for source, count, _, _ in rows},
                modules=sum(int(modules) for _, _, modules, _ in rows),
                weights_bytes=sum(int(size) for _, _, _, size in rows),
                rows={
                    name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                    for name, table in sorted(metadata.tables.items())
                    if name not in named
                },
            )


def _size(connection: Connection) -> int:
    """Bytes of the database."""
    if connection.dialect.name == "sqlite":
        pages: int = connection.execute(text("PRAGMA page_count")).scalar_one()
        size: int = connection.execute(text("PRAGMA page_size")).scalar_one()
        return pages * size
    all_of_it = text("SELECT pg_database_size(current_database())")
    return int(connection.execute(all_of_it).scalar_one())


def _problems(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        found = connection.execute(text("PRAGMA integrity_check")).scalars()
        yield from (p for p in found if p != "ok")
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            yield f"table {row[0]}, row {row[1]}: its {row[2]} is missing"
    if lost := unindexed(connection):
        yield f"{lost} adapters are missing from the search index"
