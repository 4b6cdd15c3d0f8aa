"""Where adapters were given to."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from sqlalchemy import insert, select

from store.database import Database, now
from store.models import export_table, push_table
from store.values import Export, Push


class Publications(Database):
    """Exports and pushes."""

    def record_export(self, adapter_id: int, place: Path | str, format_name: str) -> None:
        """Remember an export to a folder or a storage URL; the same again is remembered once."""
        values = {"folder": str(place), "format": format_name}
        same = [export_table.c[key] == value for key, value in values.items()]
        known = select(export_table.c.id).where(export_table.c.adapter_id == adapter_id, *same)
        with self._write() as connection:
            if connection.execute(known).first() is None:
                connection.execute(
                    insert(export_table).values(adapter_id=adapter_id, **values, created_at=now())
                )

    def exports(self, adapter_id: int) -> tuple[Export, ...]:
        """Copies of an adapter in folders and packs, oldest first."""
        columns = [export_table.c[f.name] for f in fields(Export)]
        where = export_table.c.adapter_id == adapter_id
        query = select(*columns).where(where).order_by(export_table.c.id)
        with self._read() as connection:
            return tuple(Export(**row) for row in connection.execute(query).mappings())

    def record_push(
        self, adapter_id: int, repo_id: str, endpoint: str | None, revision: str, url: str
    ) -> None:
        """Remember a publication."""
        push = Push(repo_id, endpoint, revision, url, now())
        with self._write() as connection:
            connection.execute(insert(push_table).values(adapter_id=adapter_id, **asdict(push)))

    def pushes(self, adapter_id: int) -> tuple[Push, ...]:
        """Publications of an adapter, oldest first."""
        columns = [push_table.c[f.name] for f in fields(Push)]
        query = (
            select(*columns).where(push_table.c.adapter_id == adapter_id).order_by(push_table.c.id)
        )
        with self._read() as connection:
            return tuple(Push(**row) for row in connection.execute(query).mappings())
