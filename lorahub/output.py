"""Writing a folder all at once: nobody ever sees half of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from lorahub.errors import ConflictError, StorageError, UsageError


def check_name(name: str) -> str:
    """A name for a catalogued adapter that is also safe as one folder name.

    Raises:
        UsageError: It is empty, hidden, too long, or would leave its folder.
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "").replace(" ", "")
    if not plain.isalnum() or name.startswith(".") or name != name.strip() or len(name) > 100:
        raise UsageError(
            f"'{name}' cannot be a name",
            hint="use letters, digits, '-', '_' and '.', at most 100, not starting with '.'",
        )
    return name


@contextmanager
def new_folder(target: Path, locks: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` if the block ends well.

    The folder lies beside ``target``, so that the final rename is atomic. An exception removes
    it; what a killed process left is removed by the next call for the same target.

    Args:
        target: Where the folder goes.
        locks: Folder for the lock that keeps two writers of one target apart.
        replace: Whether an existing folder is replaced.

    Raises:
        ConflictError: ``target`` exists, or another process is writing it.
        StorageError: The disk is full, read-only or failing.
    """
    from filelock import FileLock, Timeout

    if target.exists() and not replace:
        raise _exists(target)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]
        with FileLock(locks / f"{key}.lock", timeout=0):
            prefix = f".{target.name}.partial-"
            for stale in target.parent.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                partial.chmod(0o777 & ~_umask())
                yield partial
                for file in partial.rglob("*"):
                    _sync(file)
                _move(partial, target, replace=replace)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout as error:
        raise ConflictError(f"{target}: another lorahub is writing it right now") from error
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({error.strerror or error})",
            hint="free some space, or write to another folder",
        ) from error


@contextmanager
def new_file(target: Path) -> Iterator[TextIO]:
    """Open a text that becomes ``target``, in place of what is there, if the block ends well.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        try:
            with partial.open("x", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({error.strerror or error})",
            hint="free some space, or write to another folder",
        ) from error


def _move(partial: Path, target: Path, *, replace: bool) -> None:
    if replace and target.exists():
        old = partial.with_name(f"{partial.name}-old")
        target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        if target.exists():
            raise _exists(target)
        partial.rename(target)
    _sync(target.parent)


def _exists(target: Path) -> ConflictError:
    return ConflictError(
        f"{target}: already exists",
        hint="choose another folder or name, or remove it; a merge replaces it with --force",
    )


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    with suppress(PermissionError):  # Windows does not open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
