"""What the catalog takes the base model of an adapter to be."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select, update

from lorahub.adapter import AdapterInfo, BaseIdentity, Confidence, Module, ModuleKind
from store.models import adapter_table, alias_table, module_table
from store.search import reindex


def identity(connection: Connection, info: AdapterInfo) -> BaseIdentity:
    """The base model of an adapter, by the user's aliases first, within a transaction."""
    from lorahub.bases import identify

    return _said(connection, info.base_model) or identify(info)


def meaning(connection: Connection, name: str) -> BaseIdentity | None:
    """The base model that a name alone means, within a transaction; None where nobody knows."""
    from lorahub.bases import identify_name

    return _said(connection, name) or identify_name(name)


def _said(connection: Connection, name: str | None) -> BaseIdentity | None:
    said = alias_of(connection, name) if name else None
    if said is None:
        return None
    return BaseIdentity(said, Confidence.CERTAIN, f"you said that {name} means it")


def identify_rows(connection: Connection) -> None:
    """Identify the base models of adapters that an older lorahub catalogued."""
    query = select(adapter_table.c.id).where(adapter_table.c.base_confidence == "")
    identify_again(connection, list(connection.execute(query).scalars()))


def identify_again(connection: Connection, adapter_ids: Iterable[int]) -> int:
    """Identify the base models of adapters anew, within a transaction; returns how many."""
    changed = 0
    for adapter_id in adapter_ids:
        found = identity(connection, _info(connection, adapter_id))
        connection.execute(
            update(adapter_table)
            .where(adapter_table.c.id == adapter_id)
            .values(
                base=found.name or "",
                base_confidence=found.confidence.value,
                base_reason=found.reason,
            )
        )
        reindex(connection, [adapter_id])
        changed += 1
    return changed


def _info(connection: Connection, adapter_id: int) -> AdapterInfo:
    """As much of an adapter as its base model is known by."""
    row = connection.execute(
        select(adapter_table.c.format, adapter_table.c.base_model).where(
            adapter_table.c.id == adapter_id
        )
    ).one()
    columns = [module_table.c[n] for n in ("name", "rank", "d_in", "d_out")]
    query = select(*columns, module_table.c.kind).where(module_table.c.adapter_id == adapter_id)
    modules = tuple(
        Module(m.name, ModuleKind(m.kind), m.rank, m.d_in, m.d_out, "", "", 0, 0, "", "")
        for m in connection.execute(query.order_by(module_table.c.name))
    )
    return AdapterInfo(row.format, None, row.base_model, None, modules, (), (), {}, "", 0)


def alias_of(connection: Connection, name: str) -> str | None:
    """The base that the user says a name means, within a transaction."""
    query = select(alias_table.c.base).where(alias_table.c.folded == fold_name(name))
    return connection.execute(query).scalar()


def fold_name(name: str) -> str:
    """The form by which names of base models are compared."""
    return name.strip().casefold()
