"""Merging, and checking what was merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.errors import IntegrityError, NotFoundError
from lorahub.events import Listener, ignore
from lorahub.extracting import Extractor
from lorahub.extraction import Extraction
from lorahub.merging import Merged, Merger, plan_for
from lorahub.provenance import is_result_of
from lorahub.publishing import holds_result
from lorahub.record import FILE_NAME, Record, Verification
from lorahub.storage import get_folder, read_file
from lorahub.workspace.parts import OnExecutor
from lorahub.workspace.publishing import Publishing
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan
    from lorahub.executors import Executor
    from lorahub.recipe import Recipe


class Merging(Pulling, Publishing):
    """Recipes in, verified adapters out."""

    def plan(self, recipe: Recipe, *, listener: Listener = ignore) -> Plan:
        """Resolve a recipe's references (pulling what is missing) and check that it can work.

        Method ``auto`` becomes the one that `suggest` chooses; notes of the plan say why.

        Raises:
            InvalidRecipeError: The recipe, its method or a parameter is wrong.
            IncompatibleError: The adapters do not fit together.
            UnsupportedAdapterError: One of them cannot be merged.
            NotFoundError: A reference names nothing.
            IntegrityError: A source is not what the recipe pinned.
        """
        return self._plan(recipe, lambda reference: self._source(reference, listener), listener)

    def _plan(self, recipe: Recipe, find: Callable[[str], Adapter], listener: Listener) -> Plan:
        """`plan`, with sources looked up by ``find``."""
        from lorahub.recipe import AUTO, check_method

        check_method(recipe)
        adapters = [find(s.adapter) for s in recipe.sources]
        if recipe.method != AUTO:
            return plan_for(recipe, adapters)
        from lorahub.engine.suggest import resolved

        concrete, why = resolved(recipe, adapters, listener=listener)
        plan = plan_for(concrete, adapters)
        return replace(plan, notes=plan.notes + why)

    def merge(
        self,
        recipe: Recipe,
        *,
        device: str = "auto",
        workers: int | None = None,
        executor: Executor | None = None,
        force: bool = False,
        listener: Listener = ignore,
    ) -> Merged:
        """Execute a recipe: the merged adapter is written whole, verified and catalogued.

        The folder gets the weights, their config, ``lorahub.json`` (the record),
        ``recipe.yaml`` (sources pinned) and a model card. A repeat that would give the same
        result leaves what is there. What the recipe says of exports and a push is done then.

        Args:
            recipe: What to merge; its output must name a catalog name or a folder.
            device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
            workers: Threads; None takes the CPUs this process may use, at most 8.
            executor: Who makes the factors, part by part; the other passes and the verification
                stay in this process.
            force: Replace an output of the same name or folder.
            listener: Receives progress.

        Raises:
            ConflictError: The output exists and is something else.
            VerificationError: The result is further from its definition than its dtype or the
                recipe allows; nothing is written.
            NetworkError: The executor's cluster does not answer.
            LorahubError: As `plan`, and StorageError.
        """
        elsewhere = None
        if executor is not None and executor.elsewhere:
            elsewhere = OnExecutor(executor, self.config, device)
        merger = Merger(self.config, self.catalog, elsewhere)
        merger.target(recipe)
        plan = self.plan(recipe, listener=listener)
        if not force:
            self._bring_back(recipe, plan, merger, listener)
        merged = merger.merge(
            recipe,
            plan,
            device=device,
            workers=workers,
            force=force,
            listener=listener,
        )
        self._hand_on(recipe, merged.adapter.name, force=force)
        return merged

    def _bring_back(self, recipe: Recipe, plan: Plan, merger: Merger, listener: Listener) -> None:
        """Download the result of this very plan where it is not here but at a URL it goes to."""
        _, target = merger.target(recipe)
        for copy in () if target.exists() else recipe.output.export:
            if not isinstance(copy.folder, str) or copy.format != "peft":
                continue
            try:
                text = read_file(copy.folder, FILE_NAME).decode()
                if is_result_of(Record.from_json(text, copy.folder), plan):
                    get_folder(copy.folder, target, self.config.home / "locks", listener=listener)
                    return
            except (NotFoundError, IntegrityError, UnicodeDecodeError):
                continue  # it is not there, or damaged: it is made and uploaded again

    def _hand_on(
        self, recipe: Recipe, name: str, *, force: bool = False, resume: bool = False
    ) -> None:
        """Export and publish a result as its recipe says; what is done already stays.

        With ``force`` it replaces what is there, with ``resume`` what an earlier merge made.
        """
        for copy in recipe.output.export:
            replace = force or (resume and holds_result(copy.folder))
            self.export(name, copy.folder, format_name=copy.format, replace=replace)
        push = recipe.output.push
        if push is not None:
            self.push(name, push.repo, private=push.private, remote=push.remote)

    def verify(self, reference: str, *, listener: Listener = ignore) -> Verification:
        """Recompute a merged or extracted adapter from its lineage and compare.

        Raises:
            UsageError: It is the result of neither.
            NotFoundError: A source is no longer in the catalog.
            IntegrityError: A source or the result changed since the merge.
            VerificationError: It is further from its definition than its dtype allows.
        """
        adapter = self.get(reference)
        extraction = Extraction.read(adapter.origin.folder)
        if extraction is not None:
            return Extractor(self.config, self.catalog).verify(adapter, extraction, listener)
        return Merger(self.config, self.catalog).verify(adapter, listener)
