"""Sketches of adapters, and descendants found by content."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sketches",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("norm", sa.Double(), nullable=False),
        sa.Column("structure", sa.LargeBinary(), nullable=False),
        sa.Column("factors", sa.LargeBinary(), nullable=False),
        sa.Column("delta", sa.LargeBinary(), nullable=False),
        sa.Column("subspace", sa.LargeBinary(), nullable=False),
        sa.Column("spectrum", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_sketches_adapter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_sketches")),
    )
    op.create_index(op.f("ix_sketches_version"), "sketches", ["version"], unique=False)
    op.create_index(op.f("ix_lineage_content_hash"), "lineage", ["content_hash"], unique=False)
