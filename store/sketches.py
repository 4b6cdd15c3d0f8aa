"""Sketches of adapters, by which the catalog tells which are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from store.database import Database
from store.listing import conditions
from store.models import adapter_table, sketch_table
from store.values import AdapterFilter

Kind = Literal["delta", "subspace", "spectrum"]


@dataclass(frozen=True, slots=True)
class Sketched:
    """One sketch of an adapter.

    Attributes:
        id: Row id of the adapter.
        name: Its name.
        base: Its canonical base model, or, where nobody knows it, what it names as such.
        vector: int8 values of any common scale.
    """

    id: int
    name: str
    base: str | None
    vector: bytes


@dataclass(frozen=True, slots=True)
class SketchKeys:
    """What must agree before two adapters can hold the same factors.

    Attributes:
        id: Row id of the adapter.
        name: Its name.
        dtype: dtype of its factors, or ``mixed``.
        weights_bytes: Size of its weights file in bytes.
        structure: sha256 over names, shapes, ranks and scalings of its modules.
        factors: sha256 over these, the dtypes and the hashes of all factors.
        vector: Sketch of its deltas.
    """

    id: int
    name: str
    dtype: str
    weights_bytes: int
    structure: bytes
    factors: bytes
    vector: bytes


class Sketches(Database):
    """Vectors of fixed length per adapter, and hashes of its factors."""

    def unsketched(
        self, version: int, where: AdapterFilter | None = None, *, base: str | None = None
    ) -> list[str]:
        """Names of the adapters with factors but no sketch of this version, oldest first.

        With ``base``, those that can be for that canonical base model only.
        """
        known = select(sketch_table.c.adapter_id).where(sketch_table.c.version == version)
        query = (
            select(adapter_table.c.name)
            .where(adapter_table.c.module_count > 0, adapter_table.c.id.not_in(known))
            .where(*_can_be_for(base))
            .order_by(adapter_table.c.id)
        )
        with self._read() as connection:
            query = query.where(*conditions(connection, where))
            return list(connection.execute(query).scalars())

    def add_sketch(self, adapter_id: int, **columns: Any) -> None:  # noqa: ANN401 - as the table
        """Keep an adapter's sketch in place of an older one; one that left meanwhile keeps none.

        ``columns`` are the table's: a version and the fields of `lorahub.engine.sketch.Sketch`.
        """
        try:
            with self._write() as connection:
                old = delete(sketch_table).where(sketch_table.c.adapter_id == adapter_id)
                connection.execute(old)
                connection.execute(insert(sketch_table).values(adapter_id=adapter_id, **columns))
        except IntegrityError:
            return

    def sketches(
        self,
        kind: Kind,
        version: int,
        where: AdapterFilter | None = None,
        *,
        ids: Sequence[int] | None = None,
    ) -> list[Sketched]:
        """One kind of sketch of all adapters that have it, or of some, oldest adapter first."""
        query = (
            select(
                adapter_table.c.id,
                adapter_table.c.name,
                func.coalesce(func.nullif(adapter_table.c.base, ""), adapter_table.c.base_model),
                sketch_table.c[kind],
            )
            .join(sketch_table, sketch_table.c.adapter_id == adapter_table.c.id)
            .where(sketch_table.c.version == version)
            .order_by(sketch_table.c.adapter_id)
        )
        if ids is not None:
            query = query.where(adapter_table.c.id.in_(ids))
        with self._read() as connection:
            query = query.where(*conditions(connection, where))
            return [Sketched(*row) for row in connection.execute(query).all()]

    def sketch_vectors(
        self, kind: Kind, version: int, *, base: str | None = None
    ) -> tuple[list[int], bytes]:
        """Ids of all adapters that have a sketch, ascending, and their vectors end to end.

        What one adapter is compared with: names and all else are asked for the nearest only.
        With ``base``, those that can be for that canonical base model only.
        """
        query = (
            select(sketch_table.c.adapter_id, sketch_table.c[kind])
            .where(sketch_table.c.version == version)
            .order_by(sketch_table.c.adapter_id)
        )
        if base is not None:
            same = sketch_table.c.adapter_id == adapter_table.c.id
            query = query.join(adapter_table, same).where(*_can_be_for(base))
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [row[0] for row in rows], b"".join(row[1] for row in rows)

    def sketch_keys(self, version: int) -> list[SketchKeys]:
        """What tells possible duplicates, oldest adapter first."""
        query = (
            select(
                adapter_table.c.id,
                adapter_table.c.name,
                adapter_table.c.dtype,
                adapter_table.c.weights_bytes,
                sketch_table.c.structure,
                sketch_table.c.factors,
                sketch_table.c.delta,
            )
            .join(sketch_table, sketch_table.c.adapter_id == adapter_table.c.id)
            .where(sketch_table.c.version == version)
            .order_by(sketch_table.c.adapter_id)
        )
        with self._read() as connection:
            return [SketchKeys(*row) for row in connection.execute(query)]


def _can_be_for(base: str | None) -> list[ColumnElement[bool]]:
    return [] if base is None else [adapter_table.c.base.in_((base, ""))]
