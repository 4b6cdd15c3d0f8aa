"""Scoring adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.errors import LorahubError, NotFoundError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.integrity import check_unchanged
from lorahub.lookup import with_content
from lorahub.output import write_text
from lorahub.record import Record
from lorahub.workspace.pulling import Pulling
from store import Evaluation

if TYPE_CHECKING:
    from lorahub.suites import RunningSuite, Suite


class Evaluating(Pulling):
    """What suites find of adapters."""

    def evaluate(
        self,
        references: Sequence[str],
        suite: str,
        *,
        plot: Path | None = None,
        listener: Listener = ignore,
    ) -> Iterator[tuple[str, dict[str, float] | LorahubError]]:
        """Score adapters one by one, and store with each what was found.

        Args:
            references: Adapters; what is not in the catalog yet is pulled.
            suite: ``factors``, or the path of a suite's file (see `lorahub.suites`).
            plot: SVG file that compares the adapters, written after the last of them.
            listener: Receives the phase ``eval``.

        Yields:
            Name of the adapter with its figures, or the reference with why it has none.

        Raises:
            InvalidRecipeError: No such suite.
            UsageError: ``plot`` is no SVG file.
            StorageError: It cannot be written.
        """
        from lorahub.suites import FACTORS, load_suite

        if plot is not None and plot.suffix != ".svg":
            raise UsageError(f"{plot}: a plot is an SVG file", hint="give a name that ends in .svg")
        chosen = None if suite == FACTORS else load_suite(Path(suite))
        return self._evaluated(references, chosen, plot, listener)

    def _evaluated(
        self,
        references: Sequence[str],
        suite: Suite | None,
        plot: Path | None,
        listener: Listener,
    ) -> Iterator[tuple[str, dict[str, float] | LorahubError]]:
        from lorahub.suites import chart

        listener(PhaseStarted("eval", len(references), "adapters"))
        found: dict[str, dict[str, float]] = {}
        with suite.start() if suite else nullcontext() as running:
            for done, reference in enumerate(references, 1):
                try:
                    adapter = self._source(reference, ignore)
                    found[adapter.name] = self._score(adapter, running)
                    yield adapter.name, found[adapter.name]
                except LorahubError as error:
                    yield reference, error
                listener(Advanced("eval", done, reference))
        if plot is not None and found:
            write_text(plot.absolute(), chart(found))

    def _score(self, adapter: Adapter, suite: Suite | RunningSuite | None) -> dict[str, float]:
        """Figures of an adapter, stored with it."""
        from lorahub.suites import FACTORS

        check_unchanged(adapter)
        figures = suite.run(adapter) if suite else self._from_factors(adapter)
        self.catalog.record_evaluation(adapter.id, suite.name if suite else FACTORS, figures)
        return figures

    def evaluations(self, adapter: Adapter) -> tuple[Evaluation, ...]:
        """What suites found of an adapter, by name of the suite."""
        return self.catalog.evaluations([adapter.id]).get(adapter.id, ())

    def _from_factors(self, adapter: Adapter) -> dict[str, float]:
        """Figures that need no data: how a merged adapter relates to its sources.

        ``retained``: share of a source's energy that it kept; ``alignment``: cosine with it;
        ``interference``: as `merged_figures`; ``drift``: its norm over the sources' root mean
        square norm; ``truncation``: distance from the exact weighted sum.
        """
        from lorahub.engine.compare import compare
        from lorahub.suites import merged_figures

        record = Record.read(adapter.origin.folder)
        if record is None:
            raise UsageError(
                f"'{adapter.name}' is not the result of a merge, and suite 'factors' tells how a "
                "merge relates to its sources",
                hint="give a suite of your own with --with, or see `lorahub compare`",
            )
        parents: list[Adapter] = []
        for parent in record.parents:
            found = with_content(self.catalog, parent.content_hash, {p.name for p in parents})
            if found is None:
                raise NotFoundError(
                    f"source '{parent.reference}' of '{adapter.name}' is no longer in the catalog",
                    hint=f"pull it again: `lorahub pull {parent.pinned}`",
                )
            parents.append(found)
        check = record.verification
        figures = {"truncation": check.truncation, "retained": min(check.retained)}
        figures |= {
            f"retained.{p.reference}": kept
            for p, kept in zip(record.parents, check.retained, strict=True)
        }
        unique = list({p.id: p for p in parents}.values())
        compared = compare([adapter, *unique])
        norms = {n.adapter: n.norm for n in compared.norms}
        cosines = {(p.one, p.other): p.cosine for p in compared.pairs}
        figures |= {
            f"alignment.{source.reference}": cosines[adapter.name, p.name]
            for source, p in zip(record.parents, parents, strict=True)
        }
        mean = (sum(norms[p.name] ** 2 for p in parents) / len(parents)) ** 0.5
        figures["drift"] = norms[adapter.name] / mean if mean else 0.0
        between = {
            (i, j): cosines.get((a.name, b.name), cosines.get((b.name, a.name), 1.0))
            for i, a in enumerate(parents)
            for j, b in enumerate(parents)
            if i < j
        }
        weights = [p.weight * p.factor for p in record.parents]
        return figures | merged_figures(between, [norms[p.name] for p in parents], weights)
