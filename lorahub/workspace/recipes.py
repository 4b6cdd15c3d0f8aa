"""Recipe files: checked against the catalog, and pinned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.events import Listener, ignore
from lorahub.output import write_text
from lorahub.provenance import pinned_reference
from lorahub.workspace.merging import Merging

if TYPE_CHECKING:
    from lorahub.recipe_file import Lock


class Recipes(Merging):
    """What can be said of a recipe before it is run."""

    def lock(self, path: Path, *, listener: Listener = ignore) -> Lock:
        """Pin the sources of a recipe file, and write the lock beside it.

        What the file is locked to already is resolved anew. Sources that are not in the catalog
        yet are pulled.

        Raises:
            LorahubError: The file is no recipe, a reference names nothing, or StorageError.
        """
        from dataclasses import replace

        from lorahub.recipe_file import Lock, Pin, lock_path, relative
        from lorahub.sweep import load_sweep

        folder = path.absolute().parent
        pins: dict[str, Pin] = {}
        for recipe in replace(load_sweep(path), lock=None).recipes():
            for source in recipe.sources:
                name = relative(source.adapter, folder)
                if name in pins:
                    continue
                adapter = self._source(source.adapter, listener)
                pins[name] = Pin(
                    reference=pinned_reference(adapter.origin) or name,
                    sha256=adapter.info.content_hash,
                )
        lock = Lock(sources=pins)
        write_text(lock_path(path), lock.to_yaml())
        return lock
