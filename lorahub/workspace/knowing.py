"""Understanding a collection: what is alike, what is the same, what came from what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import LorahubError, NotFoundError, UnsupportedAdapterError, UsageError
from lorahub.events import Listener, Warned, ignore
from lorahub.lineage import Kin, ancestors, descendants
from lorahub.output import write_text
from lorahub.sketching import sketch_missing, sketch_one
from lorahub.workspace.finding import Finding
from store import AdapterFilter

if TYPE_CHECKING:
    from lorahub.duplicates import Duplicate
    from lorahub.similarity import Family, Neighbour, Place
    from store.sketches import Kind, Sketched

KINDS: tuple[Kind, ...] = ("delta", "subspace", "spectrum")
"""What adapters can be alike in."""


class Knowing(Finding):
    """How the adapters of the catalog relate.

    Sketches are made on first use, one adapter at a time, and kept in the catalog.
    """

    def lineage(self, reference: str) -> Kin:
        """The tree of adapters that a merged one came from."""
        return ancestors(self.catalog, self.get(reference).id)

    def impact(self, reference: str) -> Kin:
        """The tree of adapters that one is part of."""
        return descendants(self.catalog, self.get(reference).id)

    def similar(
        self, reference: str, *, by: str = "delta", limit: int = 10, listener: Listener = ignore
    ) -> tuple[Neighbour, ...]:
        """The catalogued adapters most like one, nearest first.

        Args:
            reference: A catalogued adapter.
            by: Which of the three cosines orders them.
            limit: Most to return.
            listener: Receives the progress of missing sketches, and what cannot be sketched.

        Raises:
            UnsupportedAdapterError: The adapter has no factors.
            InvalidAdapterError: It holds NaN or Inf.
            IntegrityError: Its files are gone or changed.
        """
        from lorahub.similarity import Neighbour, nearest, vectors

        kind = _kind(by)
        adapter = self.get(reference)
        if not adapter.info.modules:
            raise UnsupportedAdapterError(
                f"'{adapter.name}' has no factors that can be read ({adapter.info.format})",
                hint="only adapters with LoRA factors can be compared",
            )
        rows = self._sketched(kind, None, listener)
        own = next((i for i, row in enumerate(rows) if row.id == adapter.id), None)
        if own is None:
            sketch_one(self.catalog, adapter.name)  # says why it has none
            raise NotFoundError(f"'{adapter.name}' left the catalog meanwhile")
        found = vectors(rows)
        hits = nearest(found, found[own], limit + 1)
        near = [rows[i] for i, _ in hits if i != own][:limit]
        ids = [row.id for row in near]
        figures = [self._cosines(k, adapter.id, ids) for k in KINDS]
        return tuple(
            Neighbour(row.name, row.base_model, *values)
            for row, *values in zip(near, *figures, strict=True)
        )

    def duplicates(self, *, listener: Listener = ignore) -> tuple[Duplicate, ...]:
        """Adapters that the catalog has more than once; see `lorahub.duplicates`.

        Two are only called so when their bits are equal, or are after a cast.
        """
        from lorahub.duplicates import find_duplicates, is_cast
        from lorahub.engine.sketch import VERSION

        def ask(wide: str, narrow: str) -> bool:
            one, other = self.catalog.by_name(wide), self.catalog.by_name(narrow)
            try:
                return one is not None and other is not None and is_cast(one, other)
            except LorahubError as error:
                listener(Warned(error.message))
                return False

        sketch_missing(self.catalog, VERSION, None, listener)
        return find_duplicates(self.catalog.sketch_keys(VERSION), ask)

    def cluster(
        self,
        where: AdapterFilter | None = None,
        *,
        by: str = "delta",
        cosine: float = 0.5,
        listener: Listener = ignore,
    ) -> tuple[Family, ...]:
        """Families of adapters, the largest first; see `lorahub.similarity.families`.

        Raises:
            UsageError: ``cosine`` is not between 0 and 1.
        """
        from lorahub.similarity import families

        kind = _kind(by)
        if not 0 < cosine < 1:
            raise UsageError(f"a cosine of {cosine:g} is not between 0 and 1")
        return families(self._sketched(kind, where, listener), cosine)

    def map(
        self,
        where: AdapterFilter | None = None,
        *,
        by: str = "delta",
        plot: Path | None = None,
        listener: Listener = ignore,
    ) -> tuple[Place, ...]:
        """The collection in the plane; see `lorahub.similarity.places`.

        Args:
            where: Which adapters.
            by: What they are alike in.
            plot: SVG file to draw them into; what is there is replaced.
            listener: Receives the progress of missing sketches, and what cannot be sketched.

        Raises:
            UsageError: A plot that is no ``.svg`` file.
            StorageError: It cannot be written.
        """
        from lorahub.plot import scatter
        from lorahub.similarity import places

        kind = _kind(by)
        if plot is not None and plot.suffix != ".svg":
            raise UsageError(f"{plot}: a plot is an SVG file", hint="give a name that ends in .svg")
        found = places(self._sketched(kind, where, listener))
        if plot is not None:
            points = [(p.name, p.base_model or "unknown base", p.x, p.y) for p in found]
            write_text(
                plot.expanduser().absolute(), scatter(points, f"{len(points)} adapters by {kind}")
            )
        return found

    def _sketched(
        self, kind: Kind, where: AdapterFilter | None, listener: Listener
    ) -> list[Sketched]:
        """All sketches of a kind, the missing ones made first."""
        from lorahub.engine.sketch import VERSION

        sketch_missing(self.catalog, VERSION, where, listener)
        return self.catalog.sketches(kind, VERSION, where)

    def _cosines(self, kind: Kind, adapter_id: int, ids: Sequence[int]) -> list[float]:
        """Cosines between one adapter and others, in their order."""
        from lorahub.engine.sketch import VERSION
        from lorahub.similarity import cosines, vectors

        rows = {r.id: r for r in self.catalog.sketches(kind, VERSION, ids=[adapter_id, *ids])}
        return cosines(vectors([rows[i] for i in ids]), vectors([rows[adapter_id]])[0])


def _kind(by: str) -> Kind:
    for kind in KINDS:
        if by == kind:
            return kind
    raise UsageError(f"cannot compare by '{by}'", hint=f"compare by one of {', '.join(KINDS)}")
