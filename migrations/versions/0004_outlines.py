"""Headers of adapters on a Hub, so that looking for adapters reads each only once."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outlines",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("rank_min", sa.Integer(), nullable=False),
        sa.Column("rank_max", sa.Integer(), nullable=False),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("modules", sa.Integer(), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "repo_id", "revision", name=op.f("pk_outlines")),
    )
