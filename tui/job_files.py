"""The files of a job: reading and writing what was asked, and whether its process lives."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorahub.errors import StorageError


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be used ({error.strerror or error})",
            hint="free some space, or see who may write there",
        ) from error


def folders(folder: Path) -> list[Path]:
    """The folders of jobs in a folder."""
    try:
        return [p for p in folder.iterdir() if (p / "job.json").is_file()]
    except OSError:
        return []


def load(folder: Path) -> dict[str, Any]:
    """What was asked of a job; nothing where that cannot be read."""
    try:
        body = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def write(folder: Path, body: Mapping[str, Any]) -> None:
    """Keep what is asked of a job, whole."""
    partial = folder / "job.json.partial"
    partial.write_text(json.dumps(body), encoding="utf-8")
    partial.replace(folder / "job.json")


def held(folder: Path) -> bool:
    """Whether a process holds the job's lock, and so lives; process numbers come again."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
