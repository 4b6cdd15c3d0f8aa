"""Whether files are still those that were catalogued."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lorahub import formats
from lorahub.adapter import Adapter
from lorahub.errors import IntegrityError


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def glance(weights: Path, weights_bytes: int) -> str | None:
    """What is wrong with a weights file as far as its size tells, in a few words; else None.

    Args:
        weights: The file.
        weights_bytes: Its size in bytes when it was catalogued.
    """
    try:
        found = weights.stat().st_size
    except OSError as error:
        gone = not weights.parent.is_dir()
        return "files are gone" if gone else f"{weights.name}: {error.strerror}"
    if found != weights_bytes:
        return f"damaged: {found:,} bytes, not {weights_bytes:,}"
    return None


def check_unchanged(adapter: Adapter) -> None:
    """Raise IntegrityError unless the adapter's files are still those catalogued."""
    try:
        found = file_sha256(adapter.weights_path)
        _, config = formats.peft.read_config(adapter.origin.folder)
    except OSError as error:
        raise IntegrityError(
            f"the files of '{adapter.name}' are gone from {adapter.origin.folder}",
            hint="pull it again, or remove it with `lorahub rm`",
        ) from error
    if found != adapter.info.weights_sha256 or config != adapter.info.config_sha256:
        raise IntegrityError(
            f"the files of '{adapter.name}' in {adapter.origin.folder} changed since they "
            "were catalogued",
            hint="pull it again to take the new content",
        )
