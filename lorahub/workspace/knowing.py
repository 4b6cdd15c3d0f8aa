"""Understanding a collection: what is alike, what is the same, what came from what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub import sketching
from lorahub.errors import LorahubError, UsageError
from lorahub.events import Listener, Warned, ignore
from lorahub.lineage import Kin, ancestors, descendants
from lorahub.output import write_text
from lorahub.workspace.finding import Finding
from store import AdapterFilter

if TYPE_CHECKING:
    from lorahub.duplicates import Duplicate
    from lorahub.similarity import Family, Neighbour, Place
    from store.sketches import Kind, Sketched


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
        """The catalogued adapters most like one, nearest first, of those that can be for its base.

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
        kind = _kind(by)
        return sketching.neighbours(self.catalog, self.get(reference), kind, limit, listener)

    def duplicates(self, *, listener: Listener = ignore) -> tuple[Duplicate, ...]:
        """Adapters that the catalog has more than once; see `lorahub.duplicates`.

        Two are only called so when their bits are equal, or are after a cast.
        """
        from lorahub.duplicates import find_duplicates, is_cast

        def ask(wide: str, narrow: str) -> bool:
            one, other = self.catalog.by_name(wide), self.catalog.by_name(narrow)
            try:
                return one is not None and other is not None and is_cast(one, other)
            except LorahubError as error:
                listener(Warned(error.message, error.hint))
                return False

        sketching.complete(self.catalog, listener)
        return find_duplicates(self.catalog.sketch_keys(sketching.VERSION), ask)

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
            raise UsageError(
                f"a cosine of {cosine:g} is not between 0 and 1", hint="give it as 0.5"
            )
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
            points = [(p.name, p.base or "unknown base", p.x, p.y) for p in found]
            write_text(
                plot.expanduser().absolute(), scatter(points, f"{len(points)} adapters by {kind}")
            )
        return found

    def _sketched(
        self, kind: Kind, where: AdapterFilter | None, listener: Listener
    ) -> list[Sketched]:
        """All sketches of a kind, the missing ones made first."""
        sketching.complete(self.catalog, listener, where)
        return self.catalog.sketches(kind, sketching.VERSION, where)


def _kind(by: str) -> Kind:
    for kind in sketching.KINDS:
        if by == kind:
            return kind
    raise UsageError(
        f"cannot compare by '{by}'", hint=f"compare by one of {', '.join(sketching.KINDS)}"
    )
