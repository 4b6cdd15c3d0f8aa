"""How many adapters there are of each base, rank, source and method."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, select

from store.database import Database
from store.listing import conditions
from store.models import adapter_table
from store.values import AdapterFilter

FACETS: Mapping[str, str] = {
    "base": "base_model",
    "rank": "rank_max",
    "source": "source",
    "method": "method",
}


class Facets(Database):
    """Counts by value."""

    def facets(
        self, where: AdapterFilter | None = None, *, limit: int = 12
    ) -> dict[str, tuple[tuple[str, int], ...]]:
        """By facet, the most frequent values of what matches with their counts."""
        found: dict[str, tuple[tuple[str, int], ...]] = {}
        with self._read() as connection:
            for facet, name in FACETS.items():
                column = adapter_table.c[name]
                query = (
                    select(column, func.count().label("times"))
                    .where(column.is_not(None), *conditions(where))
                    .group_by(column)
                    .order_by(func.count().desc(), column)
                    .limit(limit)
                )
                found[facet] = tuple((str(v), n) for v, n in connection.execute(query))
        return found
