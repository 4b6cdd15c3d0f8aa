"""Runs, and which adapters a merged one came from."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sqlalchemy import func, insert, select, update

from lorahub.adapter import Adapter
from lorahub.record import Parent
from store.adapters import insert_rows, remove_row
from store.database import Database, now
from store.lineage import lineage_row
from store.models import adapter_table, lineage_table, run_table
from store.values import ParentLink, Run, RunDraft


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run without an end: its id, the folder it writes, and whether it may still be at it.

    Of other hosts, nobody here can tell: their runs count as alive.
    """

    id: int
    target: str
    alive: bool


class Runs(Database):
    """Executions of plans, and lineage."""

    def begin_run(self, draft: RunDraft) -> int:
        """Record that a run begins; returns its id."""
        with self._write() as connection:
            statement = insert(run_table).values(
                **asdict(draft),
                state="running",
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=now(),
            )
            run_id: int = connection.execute(statement.returning(run_table.c.id)).scalar_one()
            return run_id

    def finish_run(
        self,
        run_id: int,
        adapter: Adapter,
        parents: Sequence[tuple[Parent, int | None]],
        record: str,
        *,
        replaces: int | None = None,
    ) -> Adapter:
        """Add a merged adapter, its lineage and the end of its run in one transaction.

        Args:
            run_id: From `begin_run`.
            adapter: The result.
            parents: Each parent with its catalog id.
            record: The text of the result's record.
            replaces: Id of the adapter that leaves the catalog in the same moment.

        Raises:
            ConflictError: The name is taken.
        """
        with self._write() as connection:
            if replaces is not None:
                remove_row(connection, replaces)
            added = insert_rows(connection, adapter)
            for position, (parent, parent_id) in enumerate(parents):
                row = lineage_row(added.id, position, parent)
                connection.execute(insert(lineage_table).values(**row, parent_id=parent_id))
            connection.execute(
                update(run_table)
                .where(run_table.c.id == run_id)
                .values(state="finished", ended_at=now(), record=record, adapter_id=added.id)
            )
            return added

    def end_run(self, run_id: int, state: str, error: str | None = None) -> None:
        """Record that a run ended without a result that stays, and why; an ended one is left."""
        with self._write() as connection:
            connection.execute(
                update(run_table)
                .where(run_table.c.id == run_id, run_table.c.state == "running")
                .values(state=state, ended_at=now(), error=error)
            )

    def open_runs(self) -> list[OpenRun]:
        """Runs that did not end yet, or whose process ended without a word, oldest first."""
        here = socket.gethostname()
        columns = (run_table.c[name] for name in ("id", "target", "host", "pid"))
        query = select(*columns).where(run_table.c.state == "running").order_by(run_table.c.id)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [OpenRun(r.id, r.target, r.host != here or _alive(r.pid)) for r in rows]

    def sweep_dead_runs(self) -> int:
        """Mark running runs of this host whose process is gone as interrupted."""
        dead = [run for run in self.open_runs() if not run.alive]
        for run in dead:
            self.end_run(run.id, "interrupted", "the process ended without a word")
        return len(dead)

    def runs(self, *, limit: int = 50, offset: int = 0) -> list[Run]:
        """Runs, newest first."""
        columns = [run_table.c[f.name] for f in fields(Run)]
        query = select(*columns).order_by(run_table.c.id.desc()).limit(limit).offset(offset)
        with self._read() as connection:
            return [Run(**row) for row in connection.execute(query).mappings()]

    def count_runs(self) -> int:
        """How many runs there are."""
        with self._read() as connection:
            return connection.execute(select(func.count()).select_from(run_table)).scalar_one()

    def parents(self, adapter_id: int) -> tuple[ParentLink, ...]:
        """The adapters a merged one came from, in recipe order."""
        columns = [lineage_table.c[f.name] for f in fields(ParentLink)]
        query = (
            select(*columns)
            .where(lineage_table.c.adapter_id == adapter_id)
            .order_by(lineage_table.c.position)
        )
        with self._read() as connection:
            return tuple(ParentLink(**row) for row in connection.execute(query).mappings())

    def children(self, adapter_id: int) -> tuple[str, ...]:
        """Names of the adapters merged from this one, sorted."""
        query = (
            select(adapter_table.c.name)
            .join(lineage_table, lineage_table.c.adapter_id == adapter_table.c.id)
            .where(lineage_table.c.parent_id == adapter_id)
            .order_by(adapter_table.c.name)
        )
        with self._read() as connection:
            return tuple(connection.execute(query).scalars())

    def child_counts(self, adapter_ids: Sequence[int]) -> dict[int, int]:
        """How many adapters were merged from each of these; those without any are left out."""
        parent = lineage_table.c.parent_id
        query = select(parent, func.count()).where(parent.in_(adapter_ids)).group_by(parent)
        with self._read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _defunct(pid)


def _defunct(pid: int) -> bool:
    """Whether a process has ended and its parent has only not asked yet, where Linux tells."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[:1] == [b"Z"]  # what stands before is its name
