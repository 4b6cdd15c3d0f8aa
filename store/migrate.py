"""Bringing a catalog to the schema this version knows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from lorahub import errors
from lorahub.errors import CatalogError
from store.identity import identify_rows

HEAD = "0005"
"""Newest revision in ``migrations/``; naming it here spares every start the import of Alembic."""

_LOCK = 0x106A  # a number of lorahub's own among a server's advisory locks


def current(engine: Engine) -> str | None:
    """Revision of the open database, None for an empty one.

    Raises:
        CatalogError: The database holds tables that are not lorahub's.
    """
    with engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
        if "alembic_version" in tables:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables:
        raise CatalogError(
            f"{engine.url.render_as_string()}: is not a lorahub catalog (it has table "
            f"'{min(tables)}')",
            hint="point LORAHUB_HOME or LORAHUB_DATABASE_URL elsewhere",
        )
    return None


def upgrade(engine: Engine) -> Path | None:
    """Migrate to `HEAD`; returns the backup made of an older SQLite file.

    Raises:
        CatalogError: The catalog was written by a newer lorahub.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    before = current(engine)
    if before is not None and before not in known:
        raise CatalogError(
            f"{engine.url.render_as_string()}: the catalog has revision {before}, newer than "
            f"this lorahub knows ({HEAD})",
            hint="upgrade lorahub, or set LORAHUB_HOME to another folder",
        )
    backup = _backup(engine, before) if before is not None else None
    with engine.connect() as plain:
        connection = plain.execution_options(write=True)
        with connection.begin():
            if engine.dialect.name == "postgresql":  # a file has a lock of its own
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            identify_rows(connection)
    return backup


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or at the root of a checkout."""
    package = Path(errors.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def _backup(engine: Engine, revision: str) -> Path | None:
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return None
    source = Path(engine.url.database)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = source.with_name(f"{source.name}.backup-{revision}-{stamp}")
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
    return target
