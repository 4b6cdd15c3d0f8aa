"""Opening the database behind a catalog."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, OperationalError

from lorahub.errors import CatalogError, StorageError

BUSY_SECONDS = 10
LOCK_SECONDS = 60

# Two questions of one transaction see one state of the catalog; SQLite grants it unasked.
SNAPSHOT: Mapping[str, Mapping[str, Any]] = {
    "postgresql": {"isolation_level": "REPEATABLE READ"},
}


def open_engine(where: str | Path) -> Engine:
    """An engine for a SQLite file or any SQLAlchemy URL.

    Raises:
        CatalogError: The URL is malformed.
        StorageError: The folder of the file cannot be made.
    """
    if isinstance(where, Path):
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{where.parent}: cannot be made ({error.strerror})",
                hint="set LORAHUB_HOME to a folder you may write to",
            ) from error
        url = URL.create("sqlite", database=str(where))
    else:
        url = _parsed(where)
    if url.get_backend_name() != "sqlite":
        return _server(url)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _parsed(where: str) -> URL:
    try:
        # What PostgreSQL's own tools write, and SQLAlchemy does not read.
        url = make_url(re.sub(r"\Apostgres(?:ql)?://", "postgresql+psycopg://", where))
    except ArgumentError as error:
        raise CatalogError(
            "the catalog URL cannot be parsed", hint="correct LORAHUB_DATABASE_URL"
        ) from error
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise CatalogError(
            f"a catalog cannot be kept in {url.get_backend_name()}",
            hint="use sqlite:///FILE or postgresql://USER@HOST/DATABASE",
        )
    return url


def is_local(where: str | Path) -> bool:
    """Whether a catalog is a file, which only processes of one machine can share."""
    return isinstance(where, Path) or _parsed(where).get_backend_name() == "sqlite"


def _server(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": BUSY_SECONDS,
                "options": f"-c lock_timeout={BUSY_SECONDS}s",
            },
        )
    except ModuleNotFoundError as error:
        raise CatalogError(
            f"the driver for {url.drivername} is not installed ({error.name})",
            hint="pip install 'lorahub-kit[postgres]'",
        ) from error


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, within a transaction; those whose key is there already are left out."""
    # Only the dialect in use is imported: the other would add a tenth to every start.
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        connection.execute(sqlite_insert(table).on_conflict_do_nothing(), rows)
    else:
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        connection.execute(postgresql_insert(table).on_conflict_do_nothing(), rows)


def _file(engine: Engine) -> Path | None:
    url = engine.url
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def is_new(engine: Engine) -> bool:
    """Whether a file is not yet in WAL mode: missing, being made, or never a catalog."""
    path = _file(engine)
    if path is None:
        return False
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _unwritable(path, error) from error
    return header[18:] != b"\x02\x02"


@contextmanager
def locked(engine: Engine) -> Iterator[None]:
    """Hold a file's lock while it is made or upgraded.

    SQLite does not wait for other processes while it switches a new file to WAL mode.

    Raises:
        CatalogError: Another process holds it for too long.
        StorageError: The lock file cannot be made.
    """
    path = _file(engine)
    if path is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise CatalogError(
            f"{path}: is being made or upgraded by another process",
            hint="try again when it is done",
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the catalog cannot be written ({error.strerror})",
        hint="set LORAHUB_HOME to a folder you may write to",
    )


def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
    # Transactions are begun by `_on_begin`; sqlite3's own implicit ones would come too late.
    connection.isolation_level = None
    cursor = connection.cursor()
    if cursor.execute("PRAGMA page_count").fetchone() == (0,):
        cursor.execute("PRAGMA journal_mode=WAL")  # stays; a file that is not ours is left alone
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _on_begin(connection: Any) -> None:  # noqa: ANN401 - a SQLAlchemy connection, any dialect
    # A reader that turns writer half-way can deadlock; writers say so at the start.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn database errors into lorahub's; a broken constraint is its caller's to name.

    Raises:
        StorageError: The file cannot be written.
        CatalogError: The database is locked, damaged, not reached, or none.
    """
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except IntegrityError:
        raise
    except DatabaseError as error:
        text = str(error.orig).strip()
        if any(word in text for word in ("locked", "busy", "lock timeout", "could not serialize")):
            raise CatalogError(
                f"{where}: is locked by another process", hint="try again when it is done"
            ) from error
        if engine.dialect.name != "sqlite":
            raise CatalogError(
                f"{where}: {text}", hint="check that the server runs and LORAHUB_DATABASE_URL"
            ) from error
        if not isinstance(error, OperationalError):
            raise CatalogError(
                f"{where}: is damaged or no database ({text})",
                hint="restore a backup beside it, or move it away and pull again",
            ) from error
        if any(word in text for word in ("readonly", "unable to open", "disk", "full")):
            raise StorageError(
                f"{where}: the catalog cannot be written ({text})",
                hint="free some space, or set LORAHUB_HOME to a folder you may write to",
            ) from error
        raise CatalogError(f"{where}: {text}") from error
