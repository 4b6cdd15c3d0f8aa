"""An open database: one transaction for every question or change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine

from store import migrate
from store.session import SNAPSHOT, is_new, locked, open_engine, translated


class Database:
    """Opens, upgrades, reads and writes; the parts of the catalog are its subclasses."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, where: str | Path) -> Self:
        """Open a SQLite file or database URL; makes it, or upgrades it after a backup.

        Raises:
            CatalogError: Not a catalog, damaged, locked, or of a newer lorahub.
            StorageError: The place cannot be written.
        """
        engine = open_engine(where)
        try:
            with translated(engine):
                if not is_new(engine) and migrate.current(engine) == migrate.HEAD:
                    return cls(engine)
                with locked(engine):
                    if migrate.current(engine) != migrate.HEAD:
                        migrate.upgrade(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with translated(self._engine), self._engine.connect() as plain:
            yield plain.execution_options(**SNAPSHOT.get(plain.dialect.name, {}))

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with translated(self._engine), self._engine.connect() as plain:
            connection = plain.execution_options(write=True)
            with connection.begin():
                yield connection


def now() -> str:
    """The present moment in UTC, as the catalog writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
