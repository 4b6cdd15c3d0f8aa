"""The catalog's tables. The schema itself is made by the migrations; a test holds both equal."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, MetaData, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Declarative base with stable constraint names, which migrations need."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, str: Text}  # noqa: RUF012 - SQLAlchemy's own spelling


class AdapterRow(Base):
    """One adapter at one revision; summary columns spare the listing its modules."""

    __tablename__ = "adapters"
    __table_args__ = (
        Index(None, "repo_id", "revision"),
        Index(None, "base_model", "name"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[str] = mapped_column(index=True)
    source: Mapped[str]
    folder: Mapped[str] = mapped_column(index=True)
    repo_id: Mapped[str | None]
    revision: Mapped[str | None]
    requested_revision: Mapped[str | None]
    endpoint: Mapped[str | None]
    method: Mapped[str | None]
    content_hash: Mapped[str] = mapped_column(index=True)
    format: Mapped[str]
    peft_type: Mapped[str | None]
    base_model: Mapped[str | None]
    task_type: Mapped[str | None]
    license: Mapped[str | None]
    weights_file: Mapped[str]
    weights_bytes: Mapped[int] = mapped_column(index=True)
    weights_sha256: Mapped[str]
    config_sha256: Mapped[str]
    config: Mapped[dict[str, Any]]
    refusals: Mapped[list[Any]]
    warnings: Mapped[list[Any]]
    tags: Mapped[list[Any]]
    card: Mapped[str]
    rank_min: Mapped[int]
    rank_max: Mapped[int] = mapped_column(index=True)
    targets: Mapped[list[Any]]
    dtype: Mapped[str]
    parameters: Mapped[int]
    module_count: Mapped[int]


class ModuleRow(Base):
    """One target module of an adapter."""

    __tablename__ = "modules"

    adapter_id: Mapped[int] = mapped_column(
        ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    rank: Mapped[int]
    d_in: Mapped[int]
    d_out: Mapped[int]
    dtype_a: Mapped[str]
    dtype_b: Mapped[str]
    alpha: Mapped[float]
    scaling: Mapped[float]
    key_a: Mapped[str]
    key_b: Mapped[str]
    hash_a: Mapped[bytes] = mapped_column(LargeBinary)
    hash_b: Mapped[bytes] = mapped_column(LargeBinary)


class RunRow(Base):
    """One execution of a plan."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(index=True)
    state: Mapped[str]
    recipe: Mapped[str]
    method: Mapped[str]
    target: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[str]
    ended_at: Mapped[str | None]
    error: Mapped[str | None]
    record: Mapped[str | None]
    adapter_id: Mapped[int | None] = mapped_column(
        ForeignKey("adapters.id", ondelete="SET NULL"), index=True
    )


class LineageRow(Base):
    """One parent of a merged adapter; what it was stays even when its row is removed."""

    __tablename__ = "lineage"
    __table_args__ = (UniqueConstraint("adapter_id", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(
        ForeignKey("adapters.id", ondelete="CASCADE"), index=True
    )
    position: Mapped[int]
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("adapters.id", ondelete="SET NULL"), index=True
    )
    reference: Mapped[str]
    content_hash: Mapped[str]
    weight: Mapped[float]
    repo_id: Mapped[str | None]
    revision: Mapped[str | None]


class ExportRow(Base):
    """One export of an adapter to a folder."""

    __tablename__ = "exports"

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(
        ForeignKey("adapters.id", ondelete="CASCADE"), index=True
    )
    folder: Mapped[str]
    format: Mapped[str]
    created_at: Mapped[str]


class PushRow(Base):
    """One publication of an adapter on a Hub."""

    __tablename__ = "pushes"

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(
        ForeignKey("adapters.id", ondelete="CASCADE"), index=True
    )
    repo_id: Mapped[str]
    endpoint: Mapped[str | None]
    revision: Mapped[str]
    url: Mapped[str]
    created_at: Mapped[str]
