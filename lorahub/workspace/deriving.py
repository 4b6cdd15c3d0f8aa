"""Making one thing out of another, without merging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import ConflictError
from lorahub.events import Listener, ignore
from lorahub.integrity import check_unchanged
from lorahub.output import new_folder
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.engine.compress import Compression


class Deriving(Pulling):
    """Compressed models."""

    def compress(
        self,
        model: Path,
        folder: Path,
        *,
        reduction: float,
        adapter: str | None = None,
        keep_adapter: bool = False,
        force: bool = False,
        listener: Listener = ignore,
    ) -> Compression:
        """Compress a model's linear weights into a new folder (`lorahub.engine.compress`).

        Raises:
            ConflictError: The folder exists.
            NotFoundError: The adapter's reference names nothing.
            LorahubError: What `lorahub.engine.compress.compress` raises.
        """
        from lorahub.engine.compress import compress

        target = folder.expanduser().absolute()
        if target.exists():  # force is about the reduction: it never replaces a folder
            raise ConflictError(f"{target}: already exists", hint="choose another folder")
        source = self._source(adapter, listener) if adapter is not None else None
        if source is not None:
            check_unchanged(source)
        with new_folder(target, self.config.home / "locks") as partial:
            return compress(
                model.expanduser(),
                partial,
                reduction=reduction,
                adapter=source,
                keep_adapter=keep_adapter,
                force=force,
                listener=listener,
            )
