"""Adapters in and out of the catalog, whole."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    delete,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from lorahub.adapter import (
    Adapter,
    AdapterInfo,
    BaseIdentity,
    Confidence,
    Module,
    ModuleKind,
    Origin,
    Refusal,
    Source,
)
from lorahub.errors import ConflictError
from store.database import Database, now
from store.identity import identity
from store.models import adapter_table, label_table, module_table, text_table
from store.search import reindex, unindex


class Adapters(Database):
    """Adapters with their modules; values go in and out, rows never."""

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
            return insert_rows(connection, adapter)

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

    def by_url(self, url: str) -> list[Adapter]:
        """Adapters downloaded from a storage URL, newest first."""
        return self._adapters(
            (adapter_table.c.source == Source.STORE.value) & (adapter_table.c.endpoint == url)
        )

    def by_folder(self, folder: Path) -> Adapter | None:
        """The newest adapter whose files lie in that folder."""
        return next(iter(self._adapters(adapter_table.c.folder == str(folder))), None)

    def remove(self, adapter_id: int) -> None:
        """Remove an adapter; children keep what they recorded of it."""
        with self._write() as connection:
            remove_row(connection, adapter_id)

    def _adapters(self, where: ColumnElement[bool]) -> list[Adapter]:
        with self._read() as connection:
            return read_adapters(connection, where)


def read_adapters(connection: Connection, where: ColumnElement[bool]) -> list[Adapter]:
    """The adapters that match, newest first, within a transaction."""
    query = (
        select(adapter_table, text_table.c.config, text_table.c.card)
        .join(text_table, text_table.c.adapter_id == adapter_table.c.id)
        .where(where)
        .order_by(adapter_table.c.id.desc())
    )
    return [_adapter(connection, row) for row in connection.execute(query).mappings()]


_INFO_COLUMNS = (
    "format", "peft_type", "base_model", "task_type", "weights_file", "weights_bytes",
    "weights_sha256", "config_sha256", "license",
)  # fmt: skip
_MODULE_COLUMNS = (
    "name", "rank", "d_in", "d_out", "dtype_a", "dtype_b", "alpha", "scaling", "key_a", "key_b",
)  # fmt: skip


def _rename(connection: Connection, old: str, new: str) -> None:
    statement = update(adapter_table).where(adapter_table.c.name == old).values(name=new)
    try:
        renamed = list(connection.execute(statement.returning(adapter_table.c.id)).scalars())
    except IntegrityError as error:
        raise _taken(new) from error
    reindex(connection, renamed)


def remove_row(connection: Connection, adapter_id: int) -> None:
    """Remove an adapter, its modules and its searched text, within a transaction."""
    unindex(connection, adapter_id)
    connection.execute(delete(adapter_table).where(adapter_table.c.id == adapter_id))


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"an adapter named '{name}' is already in the catalog",
        hint="pull the new one under another name (`lorahub pull REF --name NAME`), or remove the "
        f"old one: `lorahub rm '{name}'`",
    )


def insert_rows(
    connection: Connection, adapter: Adapter, *, created_at: str | None = None
) -> Adapter:
    """Add an adapter, its modules and its searched text, within a transaction."""
    info, origin = adapter.info, adapter.origin
    ranks = info.ranks or (0,)
    alphas = [m.alpha for m in info.modules] or [0.0]
    created = created_at or now()
    base = identity(connection, info)
    statement = insert(adapter_table).values(
        **{name: getattr(info, name) for name in _INFO_COLUMNS},
        name=adapter.name,
        created_at=created,
        base=base.name or "",
        base_confidence=base.confidence.value,
        base_reason=base.reason,
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
        alpha_min=min(alphas),
        alpha_max=max(alphas),
        targets=list(info.targets),
        dtype=info.dtype,
        parameters=info.parameters,
        module_count=len(info.modules),
    )
    try:
        adapter_id = connection.execute(statement.returning(adapter_table.c.id)).scalar_one()
    except IntegrityError as error:
        raise _taken(adapter.name) from error
    connection.execute(
        insert(text_table).values(adapter_id=adapter_id, config=dict(info.config), card=info.card)
    )
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
    labels = [("target", t) for t in info.targets] + [("tag", t) for t in info.tags]
    if labels:
        connection.execute(
            insert(label_table),
            [
                {"kind": kind, "value": value, "adapter_id": adapter_id}
                for kind, value in dict.fromkeys(labels)
            ],
        )
    reindex(connection, [adapter_id])
    return Adapter(adapter.name, origin, info, adapter_id, adapter.method, created, base)


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
        config=row["config"],
        card=row["card"],
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
    base = BaseIdentity(row["base"] or None, Confidence(row["base_confidence"]), row["base_reason"])
    return Adapter(row["name"], origin, info, row["id"], row["method"], row["created_at"], base)
