"""Understanding adapters from their factors alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import UsageError
from lorahub.events import Listener, ignore
from lorahub.output import write_text
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison
    from lorahub.engine.suggest import Suggestion


class Comparing(Pulling):
    """How adapters relate to each other."""

    def compare(
        self,
        references: Sequence[str],
        *,
        plot: Path | None = None,
        workers: int | None = None,
        listener: Listener = ignore,
    ) -> Comparison:
        """Norms, spectra, subspace overlap and sign conflict, from factors.

        Args:
            references: Two or more adapters.
            plot: SVG file to draw them into; what is there is replaced.
            workers: Threads; None takes the CPUs this process may use, at most 8.
            listener: Receives progress.

        Raises:
            UsageError: Fewer than two adapters, or a plot that is no ``.svg`` file.
            LorahubError: What `lorahub.engine.compare.compare` raises, and StorageError.
        """
        if len(references) < 2:
            raise UsageError(
                "comparing needs at least two adapters", hint="name another; see `lorahub ls`"
            )
        if plot is not None and plot.suffix != ".svg":
            raise UsageError(f"{plot}: a plot is an SVG file", hint="give a name that ends in .svg")
        from lorahub.engine.compare import compare
        from lorahub.engine.pictures import chart

        adapters = [self._source(r, listener) for r in references]
        found = compare(adapters, workers=workers, listener=listener)
        if plot is not None:
            write_text(plot.expanduser().absolute(), chart(found))
        return found

    def inspect(
        self, reference: str, *, workers: int | None = None, listener: Listener = ignore
    ) -> Comparison:
        """Norms, spectra and effective ranks of one adapter, by module, from its factors.

        Raises:
            LorahubError: What `lorahub.engine.compare.measure` raises.
        """
        from lorahub.engine.compare import measure

        return measure([self._source(reference, listener)], workers=workers, listener=listener)

    def suggest(
        self,
        references: Sequence[str],
        *,
        rank: int | None = None,
        budget: str | float | None = None,
        workers: int | None = None,
        listener: Listener = ignore,
    ) -> Suggestion:
        """Method, scale, rank and weights for a merge, from the adapters' figures alone.

        Args:
            references: Two or more adapters.
            rank: Largest (average) rank of the result.
            budget: Size of the result instead, as a recipe says it.
            workers: Threads; None takes the CPUs this process may use, at most 8.
            listener: Receives progress.

        Raises:
            UsageError: Fewer than two adapters.
            LorahubError: What `lorahub.engine.suggest.suggest` raises.
        """
        from lorahub.engine.suggest import suggest

        adapters = [self._source(r, listener) for r in references]
        return suggest(adapters, rank=rank, budget=budget, workers=workers, listener=listener)
