"""Base models behind their names: what adapters are for, and what the user says names mean."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import Connection, delete, func, insert, select

from lorahub.adapter import BaseIdentity
from lorahub.errors import NotFoundError
from store.database import Database, now
from store.identity import fold_name, identify_again, meaning
from store.models import adapter_table, alias_table
from store.values import Alias, BaseSummary


class Bases(Database):
    """Base models, and the aliases that users give them."""

    def add_alias(self, name: str, base: str) -> int:
        """Say that a base model's name, as adapters state it, means ``base``.

        Returns:
            How many adapters that concerns; from now on they are for ``base``.
        """
        with self._write() as connection:
            _forget(connection, name)
            connection.execute(
                insert(alias_table).values(
                    folded=fold_name(name), alias=name, base=base, created_at=now()
                )
            )
            return identify_again(connection, _stating(connection, name))

    def remove_alias(self, name: str) -> int:
        """Take back what `add_alias` said; returns how many adapters that concerns.

        Raises:
            NotFoundError: There is no such alias.
        """
        with self._write() as connection:
            if not _forget(connection, name):
                raise NotFoundError(
                    f"'{name}' is not an alias of yours", hint="see `lorahub base show`"
                )
            return identify_again(connection, _stating(connection, name))

    def aliases(self, base: str | None = None) -> tuple[Alias, ...]:
        """The user's aliases, of one base or of all, sorted."""
        query = select(alias_table.c.alias, alias_table.c.base, alias_table.c.created_at)
        if base is not None:
            query = query.where(alias_table.c.base == base)
        with self._read() as connection:
            rows = connection.execute(query.order_by(alias_table.c.folded)).mappings()
            return tuple(Alias(**row) for row in rows)

    def meaning(self, name: str) -> BaseIdentity | None:
        """The base that a name means, by the user's aliases first; None where nobody knows."""
        with self._read() as connection:
            return meaning(connection, name)

    def bases(self) -> tuple[BaseSummary, ...]:
        """The base models of all adapters, with how many each has and the names they state."""
        query = (
            select(adapter_table.c.base, adapter_table.c.base_model, func.count())
            .group_by(adapter_table.c.base, adapter_table.c.base_model)
            .order_by(adapter_table.c.base, adapter_table.c.base_model)
        )
        counts: defaultdict[str, int] = defaultdict(int)
        stated: defaultdict[str, list[str]] = defaultdict(list)
        with self._read() as connection:
            for base, name, count in connection.execute(query):
                counts[base] += count
                if name and name != base:
                    stated[base].append(name)
        return tuple(BaseSummary(b or None, n, tuple(stated[b])) for b, n in counts.items())


def _stating(connection: Connection, name: str) -> list[int]:
    """Ids of the adapters that state a base model's name, in any case."""
    query = select(adapter_table.c.base_model).where(adapter_table.c.base_model.is_not(None))
    same = [
        n for n in connection.execute(query.distinct()).scalars() if fold_name(n) == fold_name(name)
    ]
    ids = select(adapter_table.c.id).where(adapter_table.c.base_model.in_(same))
    return list(connection.execute(ids.order_by(adapter_table.c.id)).scalars())


def _forget(connection: Connection, name: str) -> bool:
    gone = connection.execute(delete(alias_table).where(alias_table.c.folded == fold_name(name)))
    return gone.rowcount > 0
