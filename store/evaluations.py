"""What suites found of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from sqlalchemy import Connection, delete, insert, select

from store.database import Database, now
from store.models import evaluation_table
from store.values import Evaluation


class Evaluations(Database):
    """Figures of adapters by suite; the latest of each suite."""

    def record_evaluation(self, adapter_id: int, suite: str, figures: Mapping[str, float]) -> None:
        """Remember figures, in place of what the suite found before."""
        table = evaluation_table
        with self._write() as connection:
            connection.execute(
                delete(table).where(table.c.adapter_id == adapter_id, table.c.suite == suite)
            )
            connection.execute(
                insert(table).values(
                    adapter_id=adapter_id, suite=suite, figures=dict(figures), created_at=now()
                )
            )

    def figures(self) -> tuple[str, ...]:
        """Every figure that some adapter has, as ``SUITE.FIGURE``."""
        with self._read() as connection:
            return figure_names(connection)

    def figure(self, name: str, adapter_ids: Sequence[int]) -> dict[int, float]:
        """By adapter, its figure ``SUITE.FIGURE``; those without it are left out."""
        with self._read() as connection:
            meant = figure_named(connection, name)
            if meant is None:
                return {}
            table = evaluation_table.c
            value = table.figures[meant[1]].as_float()
            query = select(table.adapter_id, value).where(
                table.suite == meant[0], table.adapter_id.in_(adapter_ids), value.is_not(None)
            )
            return {row[0]: row[1] for row in connection.execute(query)}

    def evaluations(self, adapter_ids: Sequence[int]) -> dict[int, tuple[Evaluation, ...]]:
        """By adapter, its evaluations by name of the suite; those without any are left out."""
        columns = [evaluation_table.c[f.name] for f in fields(Evaluation)]
        query = (
            select(evaluation_table.c.adapter_id, *columns)
            .where(evaluation_table.c.adapter_id.in_(adapter_ids))
            .order_by(evaluation_table.c.suite)
        )
        found: dict[int, tuple[Evaluation, ...]] = {}
        with self._read() as connection:
            for row in connection.execute(query).mappings():
                one = Evaluation(**{f.name: row[f.name] for f in fields(Evaluation)})
                found[row["adapter_id"]] = (*found.get(row["adapter_id"], ()), one)
        return found


def figure_names(connection: Connection) -> tuple[str, ...]:
    """Every figure that some adapter has, as ``SUITE.FIGURE``, within a transaction."""
    rows = connection.execute(select(evaluation_table.c.suite, evaluation_table.c.figures))
    return tuple(sorted({f"{suite}.{name}" for suite, figures in rows for name in figures}))


def figure_named(connection: Connection, name: str) -> tuple[str, str] | None:
    """The suite and the figure that ``SUITE.FIGURE`` means; both may have dots of their own."""
    table = evaluation_table.c
    parts = name.split(".")
    for at in range(1, len(parts)):
        suite, figure = ".".join(parts[:at]), ".".join(parts[at:])
        if '"' in figure:  # SQLite's paths into JSON cannot say it
            continue
        known = select(table.suite).where(
            table.suite == suite, table.figures[figure].as_float().is_not(None)
        )
        if connection.execute(known.limit(1)).first():
            return suite, figure
    return None
