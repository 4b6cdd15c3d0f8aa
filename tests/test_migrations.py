"""Catalogs of older versions keep what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from lorahub.adapter import Confidence
from store import AdapterFilter, Catalog, migrate
from store.session import open_engine

ADAPTER = {
    "name": "old", "created_at": "2025-01-01T00:00:00.000+00:00", "source": "hub", "folder": "/x",
    "repo_id": "owner/old", "revision": "a" * 40, "base_model": "unsloth/llama-3-8b-bnb-4bit",
    "rank_min": 8, "rank_max": 8, "targets": '["k_proj", "q_proj"]', "dtype": "F32",
    "parameters": 2**40, "module_count": 2, "weights_bytes": 2**40 + 1, "content_hash": "c" * 64,
    "refusals": "[]", "format": "peft", "weights_file": "w.safetensors", "weights_sha256": "w",
    "config_sha256": "s", "warnings": "[]", "tags": '["law", "law"]', "config": '{"b": 1, "a": 2}',
    "card": "Writes limericks.",
}  # fmt: skip
MODULE = {
    "adapter_id": 1, "kind": "linear", "rank": 8, "d_in": 4096, "dtype_a": "F32", "dtype_b": "F32",
    "scaling": 2.0, "hash_a": b"a", "hash_b": b"b",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_catalog_of_the_first_schema(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where: Path | str = tmp_path / "catalog.db"
    if kind == "postgresql":
        where = request.getfixturevalue("postgres").new(empty=True)
    _first(where)
    with Catalog.open(where) as catalog:
        old = catalog.by_name("old")
        assert old is not None
        assert list(old.info.config.items()) == [("b", 1), ("a", 2)]
        assert (old.info.card, old.info.tags) == ("Writes limericks.", ("law", "law"))
        assert (old.info.weights_bytes, len(old.info.modules)) == (2**40 + 1, 2)
        assert old.base is not None
        assert old.base.name == "meta-llama/Meta-Llama-3-8B"
        assert old.base.confidence is Confidence.CERTAIN
        for where_ in (
            AdapterFilter(alpha=(15, 17)),
            AdapterFilter(alpha=(32, None)),
            AdapterFilter(targets=("q_proj", "k_proj"), tags=("law",)),
            AdapterFilter(base="meta-llama/Meta-Llama-3-8B"),
        ):
            assert catalog.count(where_) == 1
        assert [a.name for a in catalog.search("meta limericks")] == ["old"]
        assert catalog.corrected("limmericks") == "limericks"
        assert catalog.check() == ()
        catalog.remove(old.id)
        assert catalog.facets()["target"] == {}


def _first(where: Path | str) -> None:
    """Make a catalog as the first version left it, with one adapter."""
    engine = open_engine(where)
    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    rows = [("adapters", {**ADAPTER, "id": 1})]
    for name, alpha, d_out in (("q_proj", 16.0, 4096), ("k_proj", 32.0, 1024)):
        full = f"model.layers.31.self_attn.{name}"
        own = {"name": full, "alpha": alpha, "d_out": d_out, "key_a": "a", "key_b": "b"}
        rows.append(("modules", {**MODULE, **own}))
    with engine.connect() as plain:
        connection = plain.execution_options(write=True)
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            for table, row in rows:
                columns, values = ", ".join(row), ", ".join(f":{c}" for c in row)
                connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), row)
            if engine.dialect.name == "sqlite":
                connection.execute(
                    text("INSERT INTO adapters_fts (rowid, name, card) VALUES (1, :name, :card)"),
                    {"name": ADAPTER["name"], "card": ADAPTER["card"]},
                )
    engine.dispose()
