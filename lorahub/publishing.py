"""Which files of an adapter are handed on, and copying them out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lorahub import extraction, formats
from lorahub.adapter import Adapter
from lorahub.errors import UnsupportedAdapterError, UsageError
from lorahub.integrity import file_sha256
from lorahub.output import new_folder
from lorahub.record import FILE_NAME, PACK_NAME, RECIPE_NAME


def publishable(adapter: Adapter) -> tuple[Path, ...]:
    """The files of an adapter worth handing on: weights, config, card, record, recipe, pack."""
    names = (
        adapter.info.weights_file,
        formats.peft.CONFIG_NAME,
        "README.md",
        FILE_NAME,
        extraction.FILE_NAME,
        RECIPE_NAME,
        PACK_NAME,
    )
    return tuple(p for n in names if (p := adapter.origin.folder / n).is_file())


def export(adapter: Adapter, target: Path, locks: Path, *, format_name: str) -> None:
    """Copy an adapter into a new folder; see `lorahub.workspace.Workspace.export`."""
    if format_name != "peft":
        raise UsageError(f"there is no export format '{format_name}'", hint="known: peft")
    if adapter.info.format != "peft":
        raise UnsupportedAdapterError(
            f"'{adapter.name}' is {adapter.info.format}, not PEFT",
            hint="only PEFT LoRA adapters can be exported",
        )
    files = publishable(adapter)
    # The same export again is done already: its process may have been stopped right after it.
    if not _holds_just(target, files):
        with new_folder(target, locks) as partial:
            for file in files:
                shutil.copyfile(file, partial / file.name)


def _holds_just(folder: Path, files: Sequence[Path]) -> bool:
    """Whether ``folder`` is there with copies of ``files`` and nothing else."""
    if not folder.is_dir() or {p.name for p in folder.iterdir()} != {f.name for f in files}:
        return False
    return all(file_sha256(folder / f.name) == file_sha256(f) for f in files)
