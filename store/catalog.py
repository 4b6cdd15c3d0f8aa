"""The catalog: adapters, runs and lineage in one database."""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    delete,
    func,
    insert,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from lorahub.adapter import Adapter, AdapterInfo, Module, ModuleKind, Origin, Refusal, Source
from lorahub.errors import ConflictError, UsageError
from lorahub.record import Parent
from store import migrate
from store.models import (
    adapter_table,
    export_table,
    lineage_table,
    module_table,
    push_table,
    run_table,
)
from store.session import is_new, locked, open_engine, translated
from store.values import AdapterFilter, AdapterSummary, Export, ParentLink, Push, Run, RunDraft

# Each is the whole of an index, whose entries end with the id: no listing has to sort.
SORTS: Mapping[str, tuple[str, ...]] = {
    "name": ("name", "id"),
    "created": ("created_at", "id"),
    "rank": ("rank_max", "id"),
    "size": ("weights_bytes", "id"),
    "base": ("base_model", "name", "id"),
}

_SUMMARY = (
    *(
        adapter_table.c[f.name]
        for f in fields(AdapterSummary)
        if f.name not in {"modules", "mergeable"}
    ),
    adapter_table.c.module_count,
    adapter_table.c.refusals,
)


class Catalog:
    """An open catalog. Every method is one transaction; values go in and out, rows never."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, where: str | Path) -> Catalog:
        """Open a SQLite file or database URL; makes it, or upgrades it after a backup.

        Raises:
            CatalogError: Not a catalog, damaged, locked, or of a newer lorahub.
            StorageError: The place cannot be written.
        """
        engine = open_engine(where)
        with translated(engine):
            if not is_new(engine) and migrate.current(engine) == migrate.HEAD:
                return cls(engine)
            with locked(engine):
                if migrate.current(engine) != migrate.HEAD:
                    migrate.upgrade(engine)
        return cls(engine)

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def __enter__(self) -> Catalog:
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
        with translated(self._engine), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with translated(self._engine), self._engine.connect() as plain:
            connection = plain.execution_options(write=True)
            with connection.begin():
                yield connection

    # --- adapters ---

    def add(self, adapter: Adapter, *, rename_older: str | None = None) -> Adapter:
        """Add an adapter with its modules.

        Args:
            adapter: What to add; its id and created_at are set here.
            rename_older: New name for the adapter that now has this name, which the newcomer
                takes over.

        Raises:
            ConflictError: The name, or the new one of the older adapter, is taken.
        """
        with self._write() as connection:
            if rename_older is not None:
                _rename(connection, adapter.name, rename_older)
            return _insert(connection, adapter)

    def by_name(self, name: str) -> Adapter | None:
        """The adapter of that name."""
        return next(iter(self._adapters(adapter_table.c.name == name)), None)

    def by_hash(self, prefix: str) -> list[Adapter]:
        """Adapters whose content hash begins so, newest first."""
        if not prefix:
            return self._adapters(true())
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return self._adapters(
            (adapter_table.c.content_hash >= prefix) & (adapter_table.c.content_hash < end)
        )

    def by_repo(self, repo_id: str, revision: str | None = None) -> list[Adapter]:
        """Adapters pulled from a repository, newest first.

        ``revision`` is a commit, its prefix, or the branch or tag that was asked for.
        """
        where: ColumnElement[bool] = adapter_table.c.repo_id == repo_id
        if revision is not None:
            where &= adapter_table.c.revision.startswith(revision, autoescape=True) | (
                adapter_table.c.requested_revision == revision
            )
        return self._adapters(where)

    def by_folder(self, folder: Path) -> Adapter | None:
        """The newest adapter whose files lie in that folder."""
        return next(iter(self._adapters(adapter_table.c.folder == str(folder))), None)

    def names_like(self, name: str) -> list[str]:
        """Up to three names that a mistyped one may mean."""
        with self._read() as connection:
            names = list(connection.execute(select(adapter_table.c.name).limit(20_000)).scalars())
        return difflib.get_close_matches(name, names, n=3)

    def _adapters(self, where: ColumnElement[bool]) -> list[Adapter]:
        query = select(adapter_table).where(where).order_by(adapter_table.c.id.desc())
        with self._read() as connection:
            return [_adapter(connection, row) for row in connection.execute(query).mappings()]

    def adapters(
        self,
        where: AdapterFilter | None = None,
        *,
        sort: str = "name",
        descending: bool = False,
        limit: int = 50,
        offset: int = 0,
    ) -> list[AdapterSummary]:
        """One page of adapters; ``descending`` reverses the whole order, ties included.

        Raises:
            UsageError: An unknown sort key.
        """
        if sort not in SORTS:
            raise UsageError(f"cannot sort by '{sort}'", hint=f"sort by one of {', '.join(SORTS)}")
        columns = [adapter_table.c[name] for name in SORTS[sort]]
        order = [column.desc() for column in columns] if descending else columns
        query = select(*_SUMMARY).where(*_conditions(where)).order_by(*order)
        with self._read() as connection:
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return [_summary(row) for row in rows]

    def count(self, where: AdapterFilter | None = None) -> int:
        """How many adapters match."""
        query = select(func.count()).select_from(adapter_table).where(*_conditions(where))
        with self._read() as connection:
            return connection.execute(query).scalar_one()

    def search(self, words: str, *, limit: int = 50, offset: int = 0) -> list[AdapterSummary]:
        """Full-text search over names, base models, tags, targets and cards, best first.

        Every word must occur; the last may be the beginning of one.
        """
        terms = re.findall(r"\w+", words)
        if not terms:
            return []
        match = " ".join(f'"{term}"' for term in terms) + "*"
        ranked = (
            select(text("rowid AS hit"), text("bm25(adapters_fts, 10, 4, 4, 2, 1) AS score"))
            .select_from(text("adapters_fts"))
            .where(text("adapters_fts MATCH :match"))
            .order_by(text("score"), text("rowid"))
            .limit(limit)
            .offset(offset)
        )
        with self._read() as connection:
            ids = [row[0] for row in connection.execute(ranked, {"match": match})]
            query = select(*_SUMMARY).where(adapter_table.c.id.in_(ids))
            found = {r["id"]: _summary(r) for r in connection.execute(query).mappings()}
        return [found[i] for i in ids]

    def remove(self, adapter_id: int) -> None:
        """Remove an adapter; children keep what they recorded of it."""
        with self._write() as connection:
            _remove(connection, adapter_id)

    # --- runs and lineage ---

    def begin_run(self, draft: RunDraft) -> int:
        """Record that a run begins; returns its id."""
        with self._write() as connection:
            statement = insert(run_table).values(
                **asdict(draft),
                state="running",
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=_now(),
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
                _remove(connection, replaces)
            added = _insert(connection, adapter)
            for position, (parent, parent_id) in enumerate(parents):
                connection.execute(
                    insert(lineage_table).values(
                        adapter_id=added.id,
                        position=position,
                        parent_id=parent_id,
                        reference=parent.reference,
                        content_hash=parent.content_hash,
                        weight=parent.weight,
                        repo_id=parent.repo_id,
                        revision=parent.revision,
                    )
                )
            connection.execute(
                update(run_table)
                .where(run_table.c.id == run_id)
                .values(state="finished", ended_at=_now(), record=record, adapter_id=added.id)
            )
            return added

    def end_run(self, run_id: int, state: str, error: str) -> None:
        """Record that a run failed or was interrupted, and why; an ended run stays as it is."""
        with self._write() as connection:
            connection.execute(
                update(run_table)
                .where(run_table.c.id == run_id, run_table.c.state == "running")
                .values(state=state, ended_at=_now(), error=error)
            )

    def sweep_dead_runs(self) -> int:
        """Mark running runs of this host whose process is gone as interrupted."""
        host = socket.gethostname()
        query = select(run_table.c.id, run_table.c.pid).where(
            run_table.c.state == "running", run_table.c.host == host
        )
        with self._read() as connection:
            dead = [row.id for row in connection.execute(query) if not _alive(row.pid)]
        for run_id in dead:
            self.end_run(run_id, "interrupted", "the process ended without a word")
        return len(dead)

    def runs(self, *, limit: int = 50, offset: int = 0) -> list[Run]:
        """Runs, newest first."""
        columns = [run_table.c[f.name] for f in fields(Run)]
        query = select(*columns).order_by(run_table.c.id.desc()).limit(limit).offset(offset)
        with self._read() as connection:
            return [Run(**row) for row in connection.execute(query).mappings()]

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

    def record_export(self, adapter_id: int, folder: Path, format_name: str) -> None:
        """Remember an export."""
        values = {"folder": str(folder), "format": format_name, "created_at": _now()}
        with self._write() as connection:
            connection.execute(insert(export_table).values(adapter_id=adapter_id, **values))

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
        push = Push(repo_id, endpoint, revision, url, _now())
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

    # --- health ---

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _conditions(where: AdapterFilter | None) -> list[ColumnElement[bool]]:
    if where is None:
        return []
    conditions: list[ColumnElement[bool]] = []
    if where.base is not None:
        conditions.append(adapter_table.c.base_model.icontains(where.base, autoescape=True))
    if where.method is not None:
        conditions.append(adapter_table.c.method == where.method)
    if where.source is not None:
        conditions.append(adapter_table.c.source == where.source)
    low, high = where.rank or (None, None)
    if low is not None:
        conditions.append(adapter_table.c.rank_max >= low)
    if high is not None:
        conditions.append(adapter_table.c.rank_min <= high)
    return conditions


def _summary(row: RowMapping) -> AdapterSummary:
    values = dict(row)
    refusals, modules = values.pop("refusals"), values.pop("module_count")
    values["targets"] = tuple(values["targets"])
    return AdapterSummary(**values, modules=modules, mergeable=not refusals)


_INFO_COLUMNS = (
    "format", "peft_type", "base_model", "task_type", "config", "weights_file", "weights_bytes",
    "weights_sha256", "config_sha256", "license", "card",
)  # fmt: skip
_MODULE_COLUMNS = (
    "name", "rank", "d_in", "d_out", "dtype_a", "dtype_b", "alpha", "scaling", "key_a", "key_b",
)  # fmt: skip


def _rename(connection: Connection, old: str, new: str) -> None:
    statement = update(adapter_table).where(adapter_table.c.name == old).values(name=new)
    try:
        row = connection.execute(
            statement.returning(adapter_table.c.id, adapter_table.c.repo_id)
        ).first()
    except IntegrityError as error:
        raise _taken(new) from error
    if row is not None:
        connection.execute(
            text("UPDATE adapters_fts SET name = :name WHERE rowid = :id"),
            {"id": row.id, "name": _searched_name(new, row.repo_id)},
        )


def _remove(connection: Connection, adapter_id: int) -> None:
    connection.execute(delete(adapter_table).where(adapter_table.c.id == adapter_id))
    connection.execute(text("DELETE FROM adapters_fts WHERE rowid = :id"), {"id": adapter_id})


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"an adapter named '{name}' is already in the catalog",
        hint="choose another with --name, or remove it with `lorahub rm`",
    )


def _searched_name(name: str, repo_id: str | None) -> str:
    return f"{name} {repo_id or ''}"


def _insert(connection: Connection, adapter: Adapter) -> Adapter:
    info, origin = adapter.info, adapter.origin
    ranks = info.ranks or (0,)
    created = _now()
    statement = insert(adapter_table).values(
        **{name: getattr(info, name) for name in _INFO_COLUMNS if name != "config"},
        config=dict(info.config),
        name=adapter.name,
        created_at=created,
        source=origin.source.value,
        folder=str(origin.folder),
        repo_id=origin.repo_id,
        revision=origin.revision,
        requested_revision=origin.requested_revision,
        endpoint=origin.endpoint,
        method=adapter.method,
        content_hash=info.content_hash,
        refusals=[[r.code, r.message] for r in info.refusals],
        warnings=list(info.warnings),
        tags=list(info.tags),
        rank_min=ranks[0],
        rank_max=ranks[-1],
        targets=list(info.targets),
        dtype=info.dtype,
        parameters=info.parameters,
        module_count=len(info.modules),
    )
    try:
        adapter_id = connection.execute(statement.returning(adapter_table.c.id)).scalar_one()
    except IntegrityError as error:
        raise _taken(adapter.name) from error
    if info.modules:
        rows = [
            {
                **{name: getattr(m, name) for name in _MODULE_COLUMNS},
                "adapter_id": adapter_id,
                "kind": m.kind.value,
                "hash_a": bytes.fromhex(m.hash_a),
                "hash_b": bytes.fromhex(m.hash_b),
            }
            for m in info.modules
        ]
        connection.execute(insert(module_table), rows)
    connection.execute(
        text(
            "INSERT INTO adapters_fts (rowid, name, base, tags, targets, card) "
            "VALUES (:id, :name, :base, :tags, :targets, :card)"
        ),
        {
            "id": adapter_id,
            "name": _searched_name(adapter.name, origin.repo_id),
            "base": info.base_model or "",
            "tags": " ".join(info.tags),
            "targets": " ".join(info.targets),
            "card": info.card,
        },
    )
    return Adapter(adapter.name, origin, info, adapter_id, adapter.method, created)


def _adapter(connection: Connection, row: RowMapping) -> Adapter:
    query = (
        select(module_table)
        .where(module_table.c.adapter_id == row["id"])
        .order_by(module_table.c.name)
    )
    modules = tuple(
        Module(
            **{name: m[name] for name in _MODULE_COLUMNS},
            kind=ModuleKind(m["kind"]),
            hash_a=m["hash_a"].hex(),
            hash_b=m["hash_b"].hex(),
        )
        for m in connection.execute(query).mappings()
    )
    info = AdapterInfo(
        **{name: row[name] for name in _INFO_COLUMNS},
        modules=modules,
        refusals=tuple(Refusal(code, message) for code, message in row["refusals"]),
        warnings=tuple(row["warnings"]),
        tags=tuple(row["tags"]),
    )
    origin = Origin(
        Source(row["source"]),
        Path(row["folder"]),
        row["repo_id"],
        row["revision"],
        row["requested_revision"],
        row["endpoint"],
    )
    return Adapter(row["name"], origin, info, row["id"], row["method"], row["created_at"])
