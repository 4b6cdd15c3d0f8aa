"""Searching for the best weights and parameters of a merge."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.errors import LorahubError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned, ignore
from lorahub.merging import Merger
from lorahub.workspace.batches import Batches, Maker
from lorahub.workspace.evaluating import Evaluating

if TYPE_CHECKING:
    from lorahub.recipe import Recipe
    from lorahub.searching import Optimiser, Search, Trial
    from lorahub.suites import Suite


class Searching(Batches, Evaluating):
    """Recipes tried one after the other, each chosen by what those before gave."""

    def search_weights(
        self,
        path: Path,
        suite: str,
        *,
        budget: int = 40,
        objective: str | None = None,
        minimize: bool = False,
        seed: int = 0,
        device: str = "auto",
        listener: Listener = ignore,
    ) -> Generator[Trial, None, Adapter]:
        """Search the space of a recipe file for the best figure of a suite.

        Every trial is a merge as any other, verified and recorded as a run; its result is
        removed once it is scored. The last step makes the best one under the recipe's name.
        What trials gave is kept beside the recipe, so that the same search again, or a longer
        one, goes on from there.

        Args:
            path: The recipe file; its ``search`` says what is varied (see
                `lorahub.searching.load_search`).
            suite: As for `evaluate`.
            budget: How many recipes are tried.
            objective: The figure that is sought; not needed where the suite gives only one.
            minimize: Seek the smallest value instead of the largest.
            seed: Seed of the optimiser.
            device: As for `merge`.
            listener: Receives the phase ``search``.

        Yields:
            Every trial. The generator returns the best result.

        Raises:
            InvalidRecipeError: The recipe, its space or the suite is wrong.
            UsageError: A budget under 1, no such figure, or Optuna is missing.
            LorahubError: All trials failed: the error of the last one.
        """
        from lorahub.searching import Optimiser, load_search
        from lorahub.suites import FACTORS, load_suite

        if budget < 1:
            raise UsageError(f"a budget of {budget} tries nothing", hint="give 1 or more")
        search = load_search(path)
        chosen = None if suite == FACTORS else load_suite(Path(suite))
        optimiser = Optimiser(search, seed=seed, minimize=minimize)
        run = _Run(self, search, chosen, device)
        return self._searched(run, optimiser, budget, objective, minimize, listener)

    def _searched(
        self,
        run: _Run,
        optimiser: Optimiser,
        budget: int,
        objective: str | None,
        minimize: bool,
        listener: Listener,
    ) -> Generator[Trial, None, Adapter]:
        from lorahub.searching import Trial, best_of, sought

        listener(PhaseStarted("search", budget, "trials"))
        trials: list[Trial] = []
        failure: LorahubError | None = None
        try:
            for number in range(1, budget + 1):
                handle, values = optimiser.ask()
                figures, why = None, None
                try:
                    figures = run.figures(values)
                except LorahubError as error:
                    failure, why = error, str(error)
                    listener(Warned(f"trial {number}: {error}"))
                value = None if figures is None else sought(figures, objective)
                optimiser.tell(handle, value)
                trials.append(Trial(number, values, figures, value, None, why))
                best = best_of(trials, minimize=minimize)
                so_far = best.value if best else None
                trials[-1] = Trial(number, values, figures, value, so_far, why)
                listener(Advanced("search", number, f"trial {number}"))
                yield trials[-1]
        finally:
            run.tidy()
        best = best_of(trials, minimize=minimize)
        if best is None:
            assert failure is not None
            raise failure
        return run.keep(best)


class _Run:
    """Makes and scores the trials of one search."""

    def __init__(
        self, workspace: Searching, search: Search, suite: Suite | None, device: str
    ) -> None:
        from lorahub.searching import TRIALS_SUFFIX, Tried

        path = search.file.path
        self._workspace, self._search, self._suite = workspace, search, suite
        self._tried = Tried(path.with_name(path.stem + TRIALS_SUFFIX))
        self._merger = Merger(workspace.config, workspace.catalog)
        self._find = workspace._remembering(set(), ignore)  # noqa: SLF001 - its own helper
        self._maker = Maker(workspace, self._find, True, device, None, ignore)
        self._name, _ = self._merger.target(search.file.recipe())
        self._trial = f"{self._name}.trial"

    def figures(self, values: dict[str, object]) -> dict[str, float]:
        """What the suite finds of the merge with these values; looked up if it was tried."""
        recipe = self._as(self._search.recipe(values), self._trial)
        key = self._key(recipe)
        known = self._tried.get(key)
        if known is not None:
            return known
        adapter = self._merge(recipe)
        found = self._workspace._score(adapter, self._suite)  # noqa: SLF001
        self._tried.add(key, values, found)
        return found

    def keep(self, best: Trial) -> Adapter:
        """The best result, under the recipe's own name and with its figures."""
        recipe = self._search.recipe(best.chosen)
        adapter = self._merge(recipe)
        assert best.figures is not None
        suite = self._suite.name if self._suite else "factors"
        self._workspace.catalog.record_evaluation(adapter.id, suite, best.figures)
        self._workspace._hand_on(recipe, adapter.name)  # noqa: SLF001
        return adapter

    def tidy(self) -> None:
        """Remove the result of the last trial."""
        from lorahub.output import remove_folder

        catalog, config = self._workspace.catalog, self._workspace.config
        found = catalog.by_name(self._trial)
        if found is not None and found.origin.folder == config.adapters / self._trial:
            catalog.remove(found.id)
            remove_folder(found.origin.folder, config.home / "locks")

    def _merge(self, recipe: Recipe) -> Adapter:
        from lorahub.batch import Item

        name, target = self._merger.target(recipe)
        return self._maker.one(Item(recipe, name, target, frozenset())).adapter

    def _key(self, recipe: Recipe) -> str:
        plan = self._workspace._plan(recipe, self._find, ignore)  # noqa: SLF001
        suite = self._suite.model_dump_json(exclude={"folder"}) if self._suite else "factors"
        return hashlib.sha256(f"{plan.digest}\n{suite}".encode()).hexdigest()

    def _as(self, recipe: Recipe, name: str) -> Recipe:
        """The recipe with another output, which goes nowhere else."""
        from lorahub.recipe import OutputSpec

        return recipe.model_copy(update={"output": OutputSpec(name=name)})
