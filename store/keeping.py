"""What the catalog refers to, and taking things out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from store.adapters import remove_row
from store.database import Database
from store.models import adapter_table


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the files of an adapter are."""

    id: int
    name: str
    folder: Path
    weights_file: str
    repo_id: str | None
    revision: str | None


class Keeping(Database):
    """References from the catalog to files."""

    def placed(self) -> Iterator[Placed]:
        """Where the files of all adapters are, oldest adapter first."""
        query = select(
            adapter_table.c.id,
            adapter_table.c.name,
            adapter_table.c.folder,
            adapter_table.c.weights_file,
            adapter_table.c.repo_id,
            adapter_table.c.revision,
        ).order_by(adapter_table.c.id)
        with self._read() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Placed(row[0], row[1], Path(row[2]), *row[3:])

    def remove_all(self, ids: Sequence[int]) -> None:
        """Remove adapters, all or none; children keep what they recorded of them."""
        with self._write() as connection:
            for adapter_id in ids:
                remove_row(connection, adapter_id)
