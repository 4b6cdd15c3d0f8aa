"""Making the sketches that the catalog lacks."""

from __future__ import annotations

import os
from dataclasses import asdict

from lorahub.errors import LorahubError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned
from lorahub.integrity import check_unchanged
from lorahub.parallel import each
from store import AdapterFilter, Catalog

MOST_WORKERS = 8

PART = 32
"""Adapters sketched between two words of progress; each is kept as soon as it is done."""


def sketch_missing(
    catalog: Catalog, version: int, where: AdapterFilter | None, listener: Listener
) -> None:
    """Sketch every adapter that has factors but no sketch; what cannot be is warned of."""
    names = catalog.unsketched(version, where)
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
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    listener(PhaseStarted("sketch", len(names), "adapters"))
    try:
        for start in range(0, len(names), PART):
            part = names[start : start + PART]
            for done, error in enumerate(each(attempt, part, workers), start + 1):
                if error is not None:
                    listener(Warned(error.message))
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
        catalog.add_sketch(adapter.id, **asdict(sketch(adapter)))
