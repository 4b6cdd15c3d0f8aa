"""Copies in the data folder: of what kinds there are, and where one came from."""

from __future__ import annotations

from pathlib import Path

from lorahub.errors import StorageError
from lorahub.urls import canonical

COPIES = {
    "unpacked": "unpacked from a pack",
    "converted": "converted from a pickle",
    "stored": "downloaded from a storage URL",
}
"""Folders of the data folder whose contents are made again by the pull that made them."""


def url_file(copy: Path) -> Path:
    """Where the URL of a copy is noted: beside it, as in it are only the files of its manifest."""
    return copy.with_name(f".{copy.name}.url")


def url_of_copy(folder: Path) -> str | None:
    """The storage URL that a folder of the data folder was downloaded from, where it is known.

    Raises:
        UsageError: What is written there is no URL.
        StorageError: It cannot be read.
    """
    path = url_file(folder)
    try:
        return canonical(path.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read ({error})", hint="remove it") from error
