"""The catalog: adapters, runs and lineage in one database."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError, OperationalError

from store.adapters import Adapters
from store.evaluations import Evaluations
from store.facets import Facets
from store.lineage import Lineage
from store.listing import Listing
from store.publications import Publications
from store.remote import Remote
from store.runs import Runs
from store.sketches import Sketches


class Catalog(
    Adapters,
    Lineage,
    Evaluations,
    Facets,
    Listing,
    Publications,
    Remote,
    Runs,
    Sketches,
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


def _problems(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        found = connection.execute(text("PRAGMA integrity_check")).scalars()
        yield from (p for p in found if p != "ok")
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            yield f"table {row[0]}, row {row[1]}: its {row[2]} is missing"
    lost = connection.execute(
        text("SELECT count(*) FROM adapters WHERE id NOT IN (SELECT rowid FROM adapters_fts)")
    ).scalar_one()
    if lost:
        yield f"{lost} adapters are missing from the search index"
