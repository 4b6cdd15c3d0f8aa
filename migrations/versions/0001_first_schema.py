"""The first schema: adapters, modules, runs, lineage, exports, pushes, full-text index."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(sa.Text(), "postgresql")
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("created_at", Text, nullable=False),
        sa.Column("source", Text, nullable=False),
        sa.Column("folder", Text, nullable=False),
        sa.Column("repo_id", Text, nullable=True),
        sa.Column("revision", Text, nullable=True),
        sa.Column("requested_revision", Text, nullable=True),
        sa.Column("endpoint", Text, nullable=True),
        sa.Column("method", Text, nullable=True),
        sa.Column("base_model", Text, nullable=True),
        sa.Column("rank_min", sa.Integer(), nullable=False),
        sa.Column("rank_max", sa.Integer(), nullable=False),
        sa.Column("targets", Json, nullable=False),
        sa.Column("dtype", Text, nullable=False),
        sa.Column("parameters", Count, nullable=False),
        sa.Column("module_count", sa.Integer(), nullable=False),
        sa.Column("weights_bytes", Count, nullable=False),
        sa.Column("license", Text, nullable=True),
        sa.Column("content_hash", Text, nullable=False),
        sa.Column("refusals", Json, nullable=False),
        sa.Column("format", Text, nullable=False),
        sa.Column("peft_type", Text, nullable=True),
        sa.Column("task_type", Text, nullable=True),
        sa.Column("weights_file", Text, nullable=False),
        sa.Column("weights_sha256", Text, nullable=False),
        sa.Column("config_sha256", Text, nullable=False),
        sa.Column("warnings", Json, nullable=False),
        sa.Column("tags", Json, nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("card", Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("name", name=op.f("uq_adapters_name")),
    )
    op.create_index(
        op.f("ix_adapters_base_model_name"), "adapters", ["base_model", "name"], unique=False
    )
    op.create_index(op.f("ix_adapters_content_hash"), "adapters", ["content_hash"], unique=False)
    op.create_index(op.f("ix_adapters_created_at"), "adapters", ["created_at"], unique=False)
    op.create_index(op.f("ix_adapters_folder"), "adapters", ["folder"], unique=False)
    op.create_index(op.f("ix_adapters_rank_max"), "adapters", ["rank_max"], unique=False)
    op.create_index(
        op.f("ix_adapters_repo_id_revision"), "adapters", ["repo_id", "revision"], unique=False
    )
    op.create_index(op.f("ix_adapters_weights_bytes"), "adapters", ["weights_bytes"], unique=False)
    op.create_table(
        "exports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("folder", Text, nullable=False),
        sa.Column("format", Text, nullable=False),
        sa.Column("created_at", Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_exports_adapter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
    )
    op.create_index(op.f("ix_exports_adapter_id"), "exports", ["adapter_id"], unique=False)
    op.create_table(
        "lineage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("reference", Text, nullable=False),
        sa.Column("content_hash", Text, nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("repo_id", Text, nullable=True),
        sa.Column("revision", Text, nullable=True),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_lineage_adapter_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["adapters.id"], name=op.f("fk_lineage_parent_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lineage")),
        sa.UniqueConstraint("adapter_id", "position", name=op.f("uq_lineage_adapter_id_position")),
    )
    op.create_index(op.f("ix_lineage_adapter_id"), "lineage", ["adapter_id"], unique=False)
    op.create_index(op.f("ix_lineage_parent_id"), "lineage", ["parent_id"], unique=False)
    op.create_table(
        "modules",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("kind", Text, nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("d_in", sa.Integer(), nullable=False),
        sa.Column("d_out", sa.Integer(), nullable=False),
        sa.Column("dtype_a", Text, nullable=False),
        sa.Column("dtype_b", Text, nullable=False),
        sa.Column("alpha", sa.Double(), nullable=False),
        sa.Column("scaling", sa.Double(), nullable=False),
        sa.Column("key_a", Text, nullable=False),
        sa.Column("key_b", Text, nullable=False),
        sa.Column("hash_a", sa.LargeBinary(), nullable=False),
        sa.Column("hash_b", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_modules_adapter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", "name", name=op.f("pk_modules")),
    )
    op.create_table(
        "pushes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("repo_id", Text, nullable=False),
        sa.Column("endpoint", Text, nullable=True),
        sa.Column("revision", Text, nullable=False),
        sa.Column("url", Text, nullable=False),
        sa.Column("created_at", Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_pushes_adapter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pushes")),
    )
    op.create_index(op.f("ix_pushes_adapter_id"), "pushes", ["adapter_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("recipe", Text, nullable=False),
        sa.Column("method", Text, nullable=False),
        sa.Column("target", Text, nullable=False),
        sa.Column("host", Text, nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", Text, nullable=False),
        sa.Column("ended_at", Text, nullable=True),
        sa.Column("error", Text, nullable=True),
        sa.Column("record", Text, nullable=True),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_runs_adapter_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_adapter_id"), "runs", ["adapter_id"], unique=False)
    op.create_index(op.f("ix_runs_digest"), "runs", ["digest"], unique=False)

    if op.get_context().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE adapters_fts USING fts5("
            "name, base, tags, targets, card, "
            "tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3')"
        )
    else:
        op.execute(
            "CREATE TABLE adapters_fts ("
            "id integer PRIMARY KEY REFERENCES adapters (id) ON DELETE CASCADE, "
            "document tsvector NOT NULL)"
        )
        # Ranking reads every document that matches: outside of the table that takes twice as long.
        op.execute("ALTER TABLE adapters_fts ALTER COLUMN document SET STORAGE MAIN")
        op.execute("CREATE INDEX ix_adapters_fts_document ON adapters_fts USING gin (document)")
