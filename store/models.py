"""The catalog's tables. The schema itself is made by the migrations; a test holds both equal.

They are SQLAlchemy Core tables: rows become lorahub's own values, so there is nothing for an
object mapper to map, and importing one would add a fifth to every start.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy import Text as AnyText

# Migrations need constraint names that stay.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Text is ordered and compared by its code points, whatever the server's locale.
Text = AnyText().with_variant(AnyText(collation="C"), "postgresql")
Count = BigInteger().with_variant(Integer(), "sqlite")


class _JsonText(TypeDecorator[Any]):
    """JSON as Python reads and writes it, NaN included, which PostgreSQL's own type refuses."""

    impl = AnyText
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str:  # noqa: ANN401
        return json.dumps(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any:  # noqa: ANN401
        return None if value is None else json.loads(value)


Json = JSON().with_variant(_JsonText(), "postgresql")

adapter_table = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Text, nullable=False, index=True),
    Column("source", Text, nullable=False, index=True),
    Column("folder", Text, nullable=False, index=True),
    Column("repo_id", Text),
    Column("revision", Text),
    Column("requested_revision", Text),
    Column("endpoint", Text),
    Column("method", Text, index=True),
    Column("base_model", Text),
    Column("base", Text, nullable=False, server_default=text("''")),
    Column("base_confidence", Text, nullable=False, server_default=text("''")),
    Column("base_reason", Text, nullable=False, server_default=text("''")),
    Column("rank_min", Integer, nullable=False),
    Column("rank_max", Integer, nullable=False, index=True),
    Column("alpha_min", Double, nullable=False, server_default=text("0")),
    Column("alpha_max", Double, nullable=False, server_default=text("0")),
    Column("targets", Json, nullable=False),
    Column("dtype", Text, nullable=False, index=True),
    Column("parameters", Count, nullable=False),
    Column("module_count", Integer, nullable=False),
    Column("weights_bytes", Count, nullable=False, index=True),
    Column("license", Text, index=True),
    Column("content_hash", Text, nullable=False, index=True),
    Column("refusals", Json, nullable=False),
    Column("format", Text, nullable=False),
    Column("peft_type", Text),
    Column("task_type", Text, index=True),
    Column("weights_file", Text, nullable=False),
    Column("weights_sha256", Text, nullable=False),
    Column("config_sha256", Text, nullable=False),
    Column("warnings", Json, nullable=False),
    Column("tags", Json, nullable=False),
    Index(None, "repo_id", "revision"),
    Index(None, "base", "name"),
)
"""One adapter at one revision; summary columns spare the listing its modules.

``base`` is the canonical base model, empty where nobody knows it.
"""

text_table = Table(
    "adapter_texts",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("config", Json, nullable=False),
    Column("card", Text, nullable=False),
)
"""The long texts of an adapter, apart from what listings read."""

label_table = Table(
    "labels",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column(
        "adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True, index=True
    ),
    sqlite_with_rowid=False,
)
"""What an adapter has several of, to filter by and to count: kind ``target`` or ``tag``."""

word_table = Table(
    "words",
    metadata,
    Column("length", Integer, primary_key=True, autoincrement=False),
    Column("word", Text, primary_key=True),
    sqlite_with_rowid=False,
)
"""Every word that was ever indexed for the search, for those that are mistyped."""

alias_table = Table(
    "aliases",
    metadata,
    Column("folded", Text, primary_key=True),
    Column("alias", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""A name of a base model, by its folded form, and the base that the user says it means."""

module_table = Table(
    "modules",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("d_in", Integer, nullable=False),
    Column("d_out", Integer, nullable=False),
    Column("dtype_a", Text, nullable=False),
    Column("dtype_b", Text, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("scaling", Double, nullable=False),
    Column("key_a", Text, nullable=False),
    Column("key_b", Text, nullable=False),
    Column("hash_a", LargeBinary, nullable=False),
    Column("hash_b", LargeBinary, nullable=False),
)
"""One target module of an adapter."""

run_table = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("ended_at", Text),
    Column("error", Text),
    Column("record", Text),
    Column("adapter_id", ForeignKey("adapters.id", ondelete="SET NULL"), index=True),
)
"""One execution of a plan."""

lineage_table = Table(
    "lineage",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("parent_id", ForeignKey("adapters.id", ondelete="SET NULL"), index=True),
    Column("reference", Text, nullable=False),
    Column("content_hash", Text, nullable=False, index=True),
    Column("weight", Double, nullable=False),
    Column("repo_id", Text),
    Column("revision", Text),
    UniqueConstraint("adapter_id", "position"),
)
"""One parent of a merged adapter; what it was stays even when its row is removed."""

export_table = Table(
    "exports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("folder", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)
"""One export of an adapter to a folder."""

push_table = Table(
    "pushes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("repo_id", Text, nullable=False),
    Column("endpoint", Text),
    Column("revision", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)
"""One publication of an adapter on a Hub."""

evaluation_table = Table(
    "evaluations",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("suite", Text, primary_key=True),
    Column("figures", JSON, nullable=False),
    Column("created_at", Text, nullable=False),
)
"""What a suite found of an adapter, the last time."""

sketch_table = Table(
    "sketches",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, nullable=False, index=True),
    Column("norm", Double, nullable=False),
    Column("structure", LargeBinary, nullable=False),
    Column("factors", LargeBinary, nullable=False),
    Column("delta", LargeBinary, nullable=False),
    Column("subspace", LargeBinary, nullable=False),
    Column("spectrum", LargeBinary, nullable=False),
)
"""What tells which adapters are alike, computed once per adapter; a row fits a SQLite page."""
outline_table = Table(
    "outlines",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("repo_id", Text, primary_key=True),
    Column("revision", Text, primary_key=True),
    Column("format", Text, nullable=False),
    Column("rank_min", Integer, nullable=False),
    Column("rank_max", Integer, nullable=False),
    Column("targets", JSON, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("modules", Integer, nullable=False),
    Column("weights_bytes", BigInteger, nullable=False),
)
"""What the header of a weights file on a Hub told; the default Hub has the empty endpoint."""
