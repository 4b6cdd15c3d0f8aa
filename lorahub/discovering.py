"""What there is on a Hub: its listing, with what the weights' headers say of each adapter."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from lorahub.adapter import Outline
from lorahub.errors import LorahubError
from lorahub.events import Advanced, Listener, PhaseStarted
from lorahub.parallel import each
from store import Catalog

if TYPE_CHECKING:
    from lorahub.hub import Hub, Listed, Query

WORKERS = 8


@dataclass(frozen=True, slots=True)
class Discovered:
    """An adapter on a Hub.

    Attributes:
        listed: What the Hub's listing says.
        outline: What its weights' header says; None where it was not read.
        error: Why it could not be read, or None.
        name: Its name in the catalog, where this very commit is in it.
    """

    listed: Listed
    outline: Outline | None
    error: LorahubError | None
    name: str | None


def discover(
    query: Query, hub: Hub, catalog: Catalog, *, headers: bool, listener: Listener
) -> tuple[Discovered, ...]:
    """One per repository; see `lorahub.workspace.Workspace.discover`."""
    found = hub.find(query)
    outlines: dict[tuple[str, str], Outline] = {}
    errors: dict[tuple[str, str], LorahubError] = {}
    if headers:
        outlines = catalog.outlines(hub.endpoint, [(f.repo_id, f.revision) for f in found])
        todo = [f for f in found if f.weights_file and (f.repo_id, f.revision) not in outlines]
        try:
            _read(todo, hub, outlines, errors, listener)
        finally:
            # Also what was read before an interruption need not be read again.
            catalog.remember_outlines(hub.endpoint, dict(outlines))
    here = {
        (a.repo_id, a.revision): a.name
        for a in catalog.hub_adapters()
        if a.endpoint == hub.endpoint
    }
    return tuple(
        Discovered(f, outlines.get(key), errors.get(key), here.get(key))
        for f in found
        for key in [(f.repo_id, f.revision)]
    )


def _read(
    todo: list[Listed],
    hub: Hub,
    outlines: dict[tuple[str, str], Outline],
    errors: dict[tuple[str, str], LorahubError],
    listener: Listener,
) -> None:
    done, lock = 0, Lock()
    listener(PhaseStarted("discover", len(todo), "headers"))

    def read_one(listed: Listed) -> None:
        nonlocal done
        key = (listed.repo_id, listed.revision)
        try:
            outlines[key] = hub.outline(listed)
        except LorahubError as error:
            errors[key] = error
        with lock:
            done += 1
            listener(Advanced("discover", done, listed.repo_id))

    each(read_one, todo, WORKERS)
