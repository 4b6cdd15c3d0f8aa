"""Writing a folder or a file all at once: nobody ever sees half of it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from lorahub import extraction, record
from lorahub.errors import ConflictError, StorageError, UsageError

_OTHER_FOLDER = "choose another folder or name, or remove it; a merge replaces it with --force"
_NO_RESULT = "it is not what a merge made, so --force leaves it alone: choose another, or remove it"
_OTHER_FILE = "choose another file, or pass --force"
_RECORDS = (record.FILE_NAME, extraction.FILE_NAME)
_PARTIAL = re.compile(r"\.(.+)\.partial-[^/]+", re.DOTALL)


def check_name(name: str) -> str:
    """A name for a catalogued adapter that is also safe as one folder name.

    Raises:
        UsageError: It is empty, hidden, too long, or would leave its folder.
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "").replace(" ", "")
    if not plain.isalnum() or name.startswith(".") or name != name.strip() or len(name) > 100:
        raise UsageError(
            f"'{name}' cannot be a name",
            hint="use letters, digits, '-', '_', '.' and inner spaces, at most 100, "
            "not starting with '.'",
        )
    return name


def folder_name(name: str) -> str:
    """A name that comes from strangers, in a pack or a URL, as one folder name."""
    return re.sub(r"[^\w.@-]", "-", name).lstrip(".")[:100] or "member"


@contextmanager
def new_folder(target: Path, locks: Path | None = None, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` if the block ends well.

    The folder lies beside ``target``, so that the final rename is atomic. An exception removes
    it; what a killed process left is removed by the next call for the same target.

    Args:
        target: Where the folder goes.
        locks: Folder for the lock that keeps two writers of one target apart; None where the
            caller holds it (`writing`).
        replace: Whether an existing folder is replaced; only an empty one, or a result.

    Raises:
        ConflictError: ``target`` exists, or another process is writing it.
        StorageError: The disk is full, read-only or failing.
    """
    if target.exists() and not (replace and _may_be_replaced(target)):
        raise _exists(target, _NO_RESULT if replace else _OTHER_FOLDER)
    with _beside(target, locks) as partial:
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _move(partial, target, replace=replace)


@contextmanager
def new_file(target: Path, locks: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a path where nothing is yet; the file written there becomes ``target``.

    As `new_folder`: the path is in a folder of its own beside ``target``.

    Raises:
        ConflictError: ``target`` exists, or another process is writing it.
        StorageError: The disk is full, read-only or failing.
    """
    if target.exists() and not (replace and target.is_file()):
        raise _exists(target, _OTHER_FILE)
    with _beside(target, locks) as partial:
        file = partial / target.name
        yield file
        _sync(file)
        if target.exists() and not replace:
            raise _exists(target, _OTHER_FILE)
        file.replace(target)
        _sync(target.parent)


def partials(folder: Path) -> list[tuple[Path, Path]]:
    """What killed processes left in a folder: (partial, what it was to become), sorted.

    Raises:
        OSError: The folder cannot be read.
    """
    found = [(p, _PARTIAL.fullmatch(p.name)) for p in folder.iterdir() if p.is_dir()]
    return sorted((path, path.with_name(match[1])) for path, match in found if match)


def is_being_written(target: Path, locks: Path) -> bool:
    """Whether a living process writes ``target`` right now."""
    try:
        with _locked(target, locks):
            return False
    except ConflictError:
        return True


def remove_folder(
    folder: Path, locks: Path, target: Path | None = None, *, note: Path | None = None
) -> None:
    """Remove a folder in one step for everybody who looks at it; one that is gone already is fine.

    Args:
        folder: What to remove; nothing outside it is touched, links are not followed.
        locks: As for `new_folder`.
        target: What ``folder`` was to become, where it is what a killed process left.
        note: A file beside the folder that tells of it, there or not; it goes first.

    Raises:
        ConflictError: Another process is writing it.
        StorageError: It cannot be removed, or not whole.
    """
    try:
        with _locked(target or folder, locks):
            if note is not None:
                note.unlink(missing_ok=True)
            gone = folder
            if target is None:
                gone = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
                folder.rename(gone)
            _remove_tree(gone)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be removed ({error.strerror or error})",
            hint="see its permissions, and try again",
        ) from error


def _remove_tree(folder: Path) -> None:
    while True:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:  # somebody else removes it too
            if folder.exists():
                continue
        return


@contextmanager
def writing(target: Path, locks: Path) -> Iterator[None]:
    """Be the only one who writes ``target``, and who tells the catalog of it.

    Args:
        target: What is written.
        locks: As for `new_folder`.

    Raises:
        ConflictError: Another process is writing it.
        StorageError: The lock cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(target, locks))
        except OSError as error:
            raise unwritable(target, error) from error
        yield


@contextmanager
def _locked(target: Path, locks: Path) -> Iterator[None]:
    """Hold the lock of ``target``.

    Raises:
        ConflictError: Another process holds it.
    """
    key = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]
    with held(locks / f"{key}.lock", f"{target}: another lorahub is writing it right now"):
        yield


@contextmanager
def held(file: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock whose file is there only meanwhile.

    Raises:
        ConflictError: Another process holds it; ``otherwise`` says so.
    """
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0)
    # Files are opened and removed under one lock: nobody holds a file that is removed already.
    guard = FileLock(file.with_name(".guard.lock"))
    try:
        with guard:
            lock.acquire()
    except Timeout as error:
        raise ConflictError(otherwise, hint="wait until it is done") from error
    try:
        yield
    finally:
        with guard:
            lock.release()
            file.unlink(missing_ok=True)


@contextmanager
def _beside(target: Path, locks: Path | None) -> Iterator[Path]:
    """Yield an empty folder beside ``target``, which is removed at the end if it is still there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with nullcontext() if locks is None else _locked(target, locks):
            prefix = f".{target.name}.partial-"
            for stale in target.parent.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                partial.chmod(0o777 & ~_umask())
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise unwritable(target, error) from error


def unwritable(target: Path, error: OSError) -> StorageError:
    """What a place is that cannot be written, and what helps."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return StorageError(
        f"{target}: cannot be written ({error.strerror or error})",
        hint=f"{'free some space, or ' if full else ''}write to another folder",
    )


def write_text(target: Path, text: str) -> None:
    """Write a text file in one step, in place of what was there; its folder is made.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.partial-", dir=target.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            partial.chmod(0o666 & ~_umask())
            _sync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(target, error) from error


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
            raise _exists(target, _OTHER_FOLDER)
        partial.rename(target)
    _sync(target.parent)


def _may_be_replaced(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return any((folder / name).is_file() for name in _RECORDS) or not any(folder.iterdir())


def _exists(target: Path, hint: str) -> ConflictError:
    return ConflictError(f"{target}: already exists", hint=hint)


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
