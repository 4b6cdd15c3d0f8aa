"""What is known of Hubs: headers once read, and which adapters here came from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from sqlalchemy import select

from lorahub.adapter import Outline
from store.database import Database
from store.models import adapter_table, outline_table
from store.session import insert_new
from store.values import HubAdapter

Commit = tuple[str, str]
"""A repository and its commit (40 hex)."""

_OUTLINE = [outline_table.c[f.name] for f in fields(Outline)]
_BATCH = 500


class Remote(Database):
    """Outlines of remote adapters, and the origins of pulled ones."""

    def outlines(self, endpoint: str | None, commits: Sequence[Commit]) -> dict[Commit, Outline]:
        """The outlines that are known of these commits; one of a commit never changes."""
        table, found = outline_table, {}
        with self._read() as connection:
            for start in range(0, len(commits), _BATCH):
                part = commits[start : start + _BATCH]
                query = select(table.c.repo_id, table.c.revision, *_OUTLINE).where(
                    table.c.endpoint == (endpoint or ""),
                    table.c.repo_id.in_([repo for repo, _ in part]),
                    table.c.revision.in_([revision for _, revision in part]),
                )
                for row in connection.execute(query).mappings():
                    values = {**row, "targets": tuple(row["targets"])}
                    key = (values.pop("repo_id"), values.pop("revision"))
                    found[key] = Outline(**values)
        return found

    def remember_outlines(self, endpoint: str | None, known: Mapping[Commit, Outline]) -> None:
        """Keep outlines; what is known already stays."""
        if not known:
            return
        rows = [
            {
                **asdict(outline),
                "targets": list(outline.targets),
                "endpoint": endpoint or "",
                "repo_id": repo_id,
                "revision": revision,
            }
            for (repo_id, revision), outline in known.items()
        ]
        with self._write() as connection:
            insert_new(connection, outline_table, rows)

    def hub_adapters(self) -> list[HubAdapter]:
        """Every adapter that was pulled from a Hub, newest first."""
        columns = [adapter_table.c[f.name] for f in fields(HubAdapter)]
        query = select(*columns).where(adapter_table.c.source == "hub")
        with self._read() as connection:
            rows = connection.execute(query.order_by(adapter_table.c.id.desc())).mappings()
            return [HubAdapter(**row) for row in rows]
