"""Packs: many adapters in one compact file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.events import Listener, ignore
from lorahub.integrity import check_unchanged
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.packing import PackInfo
    from lorahub.packs import Unpacked


class Packing(Pulling):
    """Writing and reading packs."""

    def pack(
        self,
        references: Sequence[str],
        out: Path,
        *,
        ratio: float | None = None,
        bytes_budget: int | None = None,
        error: float | None = None,
        protect: bool = False,
        force: bool = False,
        listener: Listener = ignore,
    ) -> PackInfo:
        """Write adapters into one pack file, in the order given; see `lorahub.packing.pack`.

        Raises:
            NotFoundError: A reference names nothing.
            LorahubError: As `lorahub.packing.pack`, and IntegrityError.
        """
        from lorahub import packs

        adapters = [self._source(r, listener) for r in references]
        for adapter in adapters:
            check_unchanged(adapter)
        found = packs.pack(
            adapters,
            out,
            locks=self.config.home / "locks",
            ratio=ratio,
            bytes_budget=bytes_budget,
            error=error,
            protect=protect,
            force=force,
            listener=listener,
        )
        for adapter in adapters:
            self.catalog.record_export(adapter.id, found.path, "mos")
        return found

    def unpack(
        self, file: Path, name: str | None = None, folder: Path | None = None
    ) -> tuple[Unpacked, ...]:
        """Write members of a pack as folders; see `lorahub.packs.unpack`."""
        from lorahub import packs

        return packs.unpack(file, name, folder, locks=self.config.home / "locks")

    def pack_info(self, file: Path) -> PackInfo:
        """What a pack holds, its checksum verified; see `lorahub.packing.read_info`."""
        from lorahub.packing import read_info

        return read_info(file.expanduser().absolute())
