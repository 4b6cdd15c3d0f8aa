"""Searching for the best weights and parameters of a merge."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import ExitStack, closing
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.errors import LorahubError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned, ignore
from lorahub.making import require
from lorahub.merging import Merger, closing_run
from lorahub.provenance import parents_of
from lorahub.workspace.batches import Batches
from lorahub.workspace.evaluating import Evaluating
from lorahub.workspace.maker import Maker
from store import RunDraft

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan
    from lorahub.engine.trials import FactorSpace, Figures
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

        Every trial is recorded as a run. It is a merge as any other, verified, whose result is
        removed once it is scored; the suite ``factors`` needs no result, and computes its figures
        from the sources' Gram matrices where the method works in factor space. The last step makes
        the best one under the recipe's name. What trials gave is kept beside the recipe, so that
        the same search again, or a longer one, goes on from there.

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
            NotFoundError: A source is nowhere.
            UsageError: A budget under 1, a negative seed, no such figure, or Optuna is missing.
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
        with closing(run):
            for number in range(1, budget + 1):
                handle, values = optimiser.ask()
                figures, why = None, None
                try:
                    figures = run.figures(values)
                except LorahubError as error:
                    failure, why = error, str(error)
                    listener(Warned(f"trial {number}: {error}", error.hint))
                value = None if figures is None else sought(figures, objective)
                optimiser.tell(handle, value)
                trials.append(Trial(number, values, figures, value, None, why))
                best = best_of(trials, minimize=minimize)
                so_far = best.value if best else None
                trials[-1] = Trial(number, values, figures, value, so_far, why)
                listener(Advanced("search", number, f"trial {number}"))
                yield trials[-1]
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
        for reference in search.sources:
            self._find(reference)
        self._maker = Maker(workspace, self._find, True, device, None, ignore)
        self._name, _ = self._merger.target(search.file.recipe())
        self._trial = f"{self._name}.trial"
        self._spaces: dict[object, FactorSpace | None] = {}
        self._open = ExitStack()
        self._scorer = self._open.enter_context(suite.start()) if suite else None

    def figures(self, values: dict[str, object]) -> dict[str, float]:
        """What the suite finds of the merge with these values; looked up if it was tried."""
        recipe = self._as(self._search.recipe(values), self._trial)
        plan = self._workspace._plan(recipe, self._find, ignore)  # noqa: SLF001
        key = self._key(plan)
        known = self._tried.get(key)
        if known is not None:
            return known
        found = None if self._suite else self._from_factor_space(recipe, plan)
        if found is None:
            found = self._workspace._score(self._merge(recipe), self._scorer)  # noqa: SLF001
        self._tried.add(key, values, found)
        return found

    def _from_factor_space(self, recipe: Recipe, plan: Plan) -> dict[str, float] | None:
        """What suite ``factors`` would find of a merge that is not made; a run as any other.

        None where the merge has to be made for it.

        Raises:
            VerificationError: It keeps less than the recipe demands.
        """
        from lorahub.engine.trials import FactorSpace

        for adapter in plan.adapters:
            self._merger.check_unchanged(adapter)
        layout = plan.layout
        if layout not in self._spaces:
            self._spaces = {layout: FactorSpace.read(plan)}
        space = self._spaces[layout]
        found = space.figures(plan) if space is not None else None
        if found is None:
            return None
        catalog = self._workspace.catalog
        name, target = self._merger.target(recipe)
        draft = RunDraft(plan.digest, recipe.to_yaml(), plan.method.name, str(target))
        run_id = catalog.begin_run(draft)
        with closing_run(catalog, run_id):
            require(found.check, name, recipe.verify)
            catalog.end_run(run_id, "finished")
        return _figures(found)

    def keep(self, best: Trial) -> Adapter:
        """The best result, under the recipe's own name and with its figures."""
        recipe = self._search.recipe(best.chosen)
        adapter = self._merge(recipe)
        assert best.figures is not None
        if self._suite is None:
            self._workspace._score(adapter, None)  # noqa: SLF001 - now with its dtype's rounding
        else:
            catalog = self._workspace.catalog
            catalog.record_evaluation(adapter.id, self._suite.name, best.figures)
        self._workspace._hand_on(recipe, adapter.name)  # noqa: SLF001
        return adapter

    def close(self) -> None:
        """End the suite, and remove the result of the last trial."""
        from lorahub.output import remove_folder

        self._open.close()
        catalog, config = self._workspace.catalog, self._workspace.config
        found = catalog.by_name(self._trial)
        if found is not None and found.origin.folder == config.adapters / self._trial:
            catalog.remove(found.id)
            remove_folder(found.origin.folder, config.home / "locks")

    def _merge(self, recipe: Recipe) -> Adapter:
        from lorahub.batch import Item

        name, target = self._merger.target(recipe)
        return self._maker.one(Item(recipe, name, target, frozenset())).adapter

    def _key(self, plan: Plan) -> str:
        suite = self._suite.model_dump_json(exclude={"folder"}) if self._suite else "factors"
        return hashlib.sha256(f"{plan.digest}\n{suite}".encode()).hexdigest()

    def _as(self, recipe: Recipe, name: str) -> Recipe:
        """The recipe with another output, which goes nowhere else."""
        from lorahub.recipe import OutputSpec

        return recipe.model_copy(update={"output": OutputSpec(name=name)})


def _figures(found: Figures) -> dict[str, float]:
    """What `Evaluating.evaluate` tells of an adapter."""
    from lorahub.suites import merged_figures

    parents = parents_of(found.plan)
    figures = {"truncation": found.truncation, "retained": min(found.retained)}
    for what, values in (("retained", found.retained), ("alignment", found.alignment)):
        named = zip(parents, values, strict=True)
        figures |= {f"{what}.{parent.reference}": value for parent, value in named}
    mean = (sum(norm**2 for norm in found.norms) / len(parents)) ** 0.5
    figures["drift"] = found.norm / mean if mean else 0.0
    pairs = combinations(range(len(parents)), 2)
    between = {(i, j): found.cosines[i][j] for i, j in pairs}
    weights = [p.weight * p.factor for p in parents]
    return figures | merged_figures(between, list(found.norms), weights)
