"""Base identities and their aliases; labels to filter by; words for mistyped searches."""

import json
import re
import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(sa.Text(), "postgresql")
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

EMPTY = sa.text("''")
ZERO = sa.text("0")
INDEXED = ("source", "method", "license", "task_type", "dtype")
OLDER = (
    "SELECT a.id, a.name, a.repo_id, a.base_model, a.targets, a.tags, t.card "
    "FROM adapters a JOIN adapter_texts t ON t.adapter_id = a.id"
)


def upgrade() -> None:
    op.create_table(
        "adapter_texts",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("card", Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"],
            ["adapters.id"],
            name=op.f("fk_adapter_texts_adapter_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_adapter_texts")),
    )
    op.execute("INSERT INTO adapter_texts SELECT id, config, card FROM adapters")
    # In place: making the table anew would remove, by their foreign keys, all that refers to it.
    op.execute("ALTER TABLE adapters DROP COLUMN config")
    op.execute("ALTER TABLE adapters DROP COLUMN card")
    for name in ("base", "base_confidence", "base_reason"):
        op.add_column("adapters", sa.Column(name, Text, nullable=False, server_default=EMPTY))
    for name in ("alpha_min", "alpha_max"):
        op.add_column("adapters", sa.Column(name, sa.Double(), nullable=False, server_default=ZERO))
    op.drop_index("ix_adapters_base_model_name", table_name="adapters")
    op.create_index(op.f("ix_adapters_base_name"), "adapters", ["base", "name"])
    for name in INDEXED:
        op.create_index(op.f(f"ix_adapters_{name}"), "adapters", [name])
    op.create_table(
        "labels",
        sa.Column("kind", Text, nullable=False),
        sa.Column("value", Text, nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_labels_adapter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("kind", "value", "adapter_id", name=op.f("pk_labels")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_labels_adapter_id"), "labels", ["adapter_id"])
    op.create_table(
        "words",
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("word", Text, nullable=False),
        sa.PrimaryKeyConstraint("length", "word", name=op.f("pk_words")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "aliases",
        sa.Column("folded", Text, nullable=False),
        sa.Column("alias", Text, nullable=False),
        sa.Column("base", Text, nullable=False),
        sa.Column("created_at", Text, nullable=False),
        sa.PrimaryKeyConstraint("folded", name=op.f("pk_aliases")),
        sqlite_with_rowid=False,
    )
    _fill()


def _fill() -> None:
    connection = op.get_bind()
    for side in ("min", "max"):
        connection.execute(
            sa.text(
                f"UPDATE adapters SET alpha_{side} = coalesce("  # noqa: S608
                f"(SELECT {side}(alpha) FROM modules WHERE adapter_id = adapters.id), 0)"
            )
        )
    words: set[str] = set()
    for row in connection.execute(sa.text(OLDER)).all():
        targets, tags = json.loads(row.targets), json.loads(row.tags)
        labels = [("target", t) for t in targets] + [("tag", t) for t in tags]
        for kind, value in dict.fromkeys(labels):
            connection.execute(
                sa.text("INSERT INTO labels VALUES (:kind, :value, :id)"),
                {"kind": kind, "value": value, "id": row.id},
            )
        text = " ".join(
            (row.name, row.repo_id or "", row.base_model or "", *targets, *tags, row.card)
        )
        apart = unicodedata.normalize("NFKD", text.casefold())
        plain = "".join(c for c in apart if not unicodedata.combining(c))
        found = re.findall(r"\b\w{3,30}\b", plain.replace("_", " "))
        words.update(w for w in found if not w.isdigit())
    for word in sorted(words):
        connection.execute(
            sa.text("INSERT INTO words VALUES (:length, :word)"),
            {"length": len(word), "word": word},
        )
