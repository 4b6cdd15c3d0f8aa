"""Making the sketches that the catalog lacks, and asking them who is near."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.errors import LorahubError, NotFoundError, UnsupportedAdapterError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned
from lorahub.integrity import check_unchanged
from lorahub.parallel import each, usable_cpus
from store import AdapterFilter, Catalog
from store.sketches import Kind

if TYPE_CHECKING:
    from lorahub.similarity import Neighbour

VERSION = 1
"""Of the vectors: changes whenever `lorahub.engine.sketch` would make others of one adapter."""

KINDS: tuple[Kind, ...] = ("delta", "subspace", "spectrum")
"""What adapters can be alike in."""

MOST_WORKERS = 8


def complete(
    catalog: Catalog,
    listener: Listener,
    where: AdapterFilter | None = None,
    *,
    base: str | None = None,
) -> None:
    """Sketch every adapter that has factors but no sketch; what cannot be is warned of.

    With ``base``, those that can be for that canonical base model only.
    """
    names = catalog.unsketched(VERSION, where, base=base)
    if not names:
        return

    def attempt(name: str) -> LorahubError | None:
        try:
            sketch_one(catalog, name)
        except LorahubError as error:
            return error
        return None

    import torch

    threads = torch.get_num_threads()
    workers = min(usable_cpus(), MOST_WORKERS)
    listener(PhaseStarted("sketch", len(names), "adapters"))
    try:
        for start in range(0, len(names), workers):
            part = names[start : start + workers]
            for done, error in enumerate(each(attempt, part, workers), start + 1):
                if error is not None:
                    listener(Warned(error.message, error.hint))
                listener(Advanced("sketch", done, names[done - 1]))
    finally:
        torch.set_num_threads(threads)


def sketch_one(catalog: Catalog, name: str) -> None:
    """Sketch one adapter and keep it; nothing happens to one that left the catalog.

    Raises:
        IntegrityError: Its files are gone or changed.
        InvalidAdapterError: It holds NaN or Inf.
    """
    from lorahub.engine.sketch import sketch

    adapter = catalog.by_name(name)
    if adapter is not None:
        check_unchanged(adapter)
        catalog.add_sketch(adapter.id, version=VERSION, **asdict(sketch(adapter)))


def neighbours(
    catalog: Catalog, adapter: Adapter, by: Kind, limit: int, listener: Listener
) -> tuple[Neighbour, ...]:
    """The adapters most like one; see `lorahub.workspace.Workspace.similar`."""
    from lorahub.similarity import Neighbour, cosines, nearest, unpacked, vectors

    if not adapter.info.modules:
        raise UnsupportedAdapterError(
            f"'{adapter.name}' has no factors that can be read ({adapter.info.format})",
            hint="only adapters with LoRA factors can be compared",
        )
    base = adapter.base.name if adapter.base and adapter.base.sure else None
    complete(catalog, listener, base=base)
    ids, body = catalog.sketch_vectors(by, VERSION, base=base)
    if adapter.id not in ids:
        sketch_one(catalog, adapter.name)  # says why it has none
        raise NotFoundError(f"'{adapter.name}' left the catalog meanwhile")
    found, own = unpacked(body, len(ids)), ids.index(adapter.id)
    near = [ids[i] for i, _ in nearest(found, found[own], limit + 1) if i != own][:limit]
    tables = [
        {row.id: row for row in catalog.sketches(kind, VERSION, ids=[adapter.id, *near])}
        for kind in KINDS
    ]
    near = [i for i in near if all(i in table for table in tables)]
    figures = [
        cosines(vectors([table[i] for i in near]), vectors([table[adapter.id]])[0])
        for table in tables
    ]
    return tuple(
        Neighbour(tables[0][i].name, tables[0][i].base, *values)
        for i, *values in zip(near, *figures, strict=True)
    )
