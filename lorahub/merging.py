"""Executing a recipe and checking its result: plan, write, verify, record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.config import Config
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from lorahub.events import Listener, Warned
from lorahub.integrity import check_unchanged, file_sha256
from lorahub.lookup import with_content
from lorahub.output import check_name, new_folder
from lorahub.packed import check_pack, pack_beside
from lorahub.provenance import is_result_of, parents_of, pinned_recipe, plan_again, warnings_of
from lorahub.record import (
    FILE_NAME,
    RECIPE_NAME,
    Parent,
    Record,
    Verification,
)
from store import Catalog, RunDraft

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan
    from lorahub.recipe import Recipe, VerifySpec

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Merged:
    """Outcome of a merge; ``state`` is ``unchanged`` when the same result was already there."""

    adapter: Adapter
    record: Record
    state: Literal["merged", "unchanged"]


def plan_for(recipe: Recipe, adapters: Sequence[Adapter]) -> Plan:
    """The plan of a recipe whose sources are ``adapters``, in order.

    Raises:
        LorahubError: As `lorahub.workspace.Workspace.plan`.
    """
    from lorahub.engine.plan import make_plan
    from lorahub.engine.weights import spread
    from lorahub.methods.registry import get

    for source, adapter in zip(recipe.sources, adapters, strict=True):
        if source.sha256 not in {None, adapter.info.content_hash}:
            raise IntegrityError(
                f"'{source.adapter}' has content {adapter.info.content_hash}, the recipe "
                f"pins {source.sha256}",
                hint="pull the revision that was pinned, or drop sha256 from the recipe",
            )
    return make_plan(
        adapters,
        [source.weight for source in recipe.sources],
        get(recipe.method),
        recipe.parameters,
        patterns=spread(recipe.weights, [source.weights for source in recipe.sources], adapters),
        scale=recipe.scale,
        normalize=recipe.normalize,
        allocate=recipe.allocate,
        budget=recipe.budget,
        pack=recipe.pack,
        dtype=recipe.dtype,
        seed=recipe.seed,
        base_model=recipe.base,
    )


@contextmanager
def closing_run(catalog: Catalog, run_id: int) -> Iterator[None]:
    """Record how the run ended if the block does not end well."""
    try:
        yield
    except KeyboardInterrupt:
        catalog.end_run(run_id, "interrupted", "interrupted by the user")
        raise
    except BaseException as error:
        catalog.end_run(run_id, "failed", str(error))
        raise


def output_of(name: str | None, folder: Path | None, config: Config) -> tuple[str, Path]:
    """Name and absolute folder of a result of which at least one is given.

    Raises:
        UsageError: Neither is, or the name cannot be one.
    """
    if name is None and folder is None:
        raise UsageError("the result has no place", hint="give --name NAME, or -o FOLDER, or both")
    name = name or (folder.name if folder else "")
    check_name(name)
    return name, (folder or config.adapters / name).expanduser().absolute()


class Merger:
    """Merges into one data folder and its catalog."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog
        self._unchanged: dict[Path, object] = {}

    def merge(
        self,
        recipe: Recipe,
        plan: Plan,
        *,
        device: str,
        workers: int | None,
        force: bool,
        listener: Listener,
    ) -> Merged:
        """Execute ``plan`` as ``recipe`` says; see `lorahub.workspace.Workspace.merge`."""
        name, target = self.target(recipe)
        for warning in plan.warnings:
            listener(Warned(warning))
        for adapter in plan.adapters:
            self._check_unchanged(adapter)
        known = self._catalog.by_name(name)
        done = self._already_there(name, target, plan, known, force=force)
        if done is not None:
            _require(done.record.verification, name, recipe.verify)
            return done
        self._catalog.sweep_dead_runs()
        run_id = self._catalog.begin_run(
            RunDraft(plan.digest, recipe.to_yaml(), plan.method.name, str(target))
        )
        with closing_run(self._catalog, run_id):
            with new_folder(target, self._config.home / "locks", replace=force) as partial:
                record = self.write(plan, name, partial, device, workers, listener)
                _require(record.verification, name, recipe.verify)
            adapter = self._catalogue(run_id, plan, name, target, record, known)
            return Merged(adapter, record, "merged")

    def target(self, recipe: Recipe) -> tuple[str, Path]:
        """Name and folder of the result.

        Raises:
            UsageError: The recipe names neither, or a name that cannot be one.
        """
        return output_of(recipe.output.name, recipe.output.folder, self._config)

    def _check_unchanged(self, adapter: Adapter) -> None:
        """`check_unchanged`, which reads what it read before only if the file was touched."""
        try:
            found = adapter.weights_path.stat()
        except OSError:
            found = None  # the check says what is wrong
        state = found and (found.st_ino, found.st_size, found.st_mtime_ns, adapter.info)
        if found is None or self._unchanged.get(adapter.origin.folder) != state:
            check_unchanged(adapter)
            self._unchanged[adapter.origin.folder] = state

    def is_result(self, recipe: Recipe) -> bool:
        """Whether a merge's result, of whatever recipe, stands where this one's goes."""
        name, target = self.target(recipe)
        known = self._catalog.by_name(name)
        ours = known is None or known.origin.folder == target
        return ours and target.is_dir() and Record.read(target) is not None

    def is_there(self, recipe: Recipe, plan: Plan) -> bool:
        """Whether the result of this very plan stands there; its bytes are not looked at."""
        _, target = self.target(recipe)
        record = Record.read(target) if target.is_dir() else None
        return record is not None and is_result_of(record, plan)

    def _already_there(
        self, name: str, target: Path, plan: Plan, known: Adapter | None, *, force: bool
    ) -> Merged | None:
        """The same result if it stands there already; room for it otherwise.

        A folder with the right record that the catalog does not know was finished by a process
        that was killed before it could say so: it is taken over.
        """
        record = Record.read(target) if target.is_dir() and not force else None
        same = record is not None and is_result_of(record, plan)
        if record is not None and same and file_sha256(target / _WEIGHTS) == record.weights_sha256:
            if known is not None and known.origin.folder == target:
                return Merged(known, record, "unchanged")
            if known is None:
                run_id = self._catalog.begin_run(
                    RunDraft(plan.digest, "", plan.method.name, str(target))
                )
                adapter = self._catalogue(run_id, plan, name, target, record, None)
                return Merged(adapter, record, "unchanged")
        if known is not None:
            if not force:
                raise ConflictError(
                    f"an adapter named '{name}' is already in the catalog",
                    hint="choose another --name, or pass --force to replace it",
                )
            if known.name in {a.name for a in plan.adapters}:
                raise ConflictError(f"'{name}' is one of the sources; choose another --name")
        return None

    def write(
        self,
        plan: Plan,
        name: str,
        folder: Path,
        device: str,
        workers: int | None,
        listener: Listener,
    ) -> Record:
        """Write the result of ``plan`` with all that belongs to it into an empty folder.

        Raises:
            VerificationError: It is further from its definition than its dtype allows.
        """
        from lorahub.card import render_card
        from lorahub.engine.plan import LORAHUB_VERSION
        from lorahub.engine.run import run
        from lorahub.engine.verify import verify

        weights = folder / _WEIGHTS
        done = run(plan, weights, device=device, workers=workers, listener=listener)
        digest, plan = plan.digest, done.plan
        ranks = {m.name: m.rank for m in done.modules if m.rank}
        reports = {m.name: m.report for m in done.modules if m.report}
        config = formats.peft.config_for(
            ranks,
            base_model=plan.base_model,
            task_type=plan.task_type,
            fan_in_fan_out=plan.fan_in_fan_out,
            auto_mapping=plan.auto_mapping,
        )
        (folder / formats.peft.CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        info = formats.inspect(folder)
        check = verify(
            plan, weights, info.modules, reports=reports, workers=workers, listener=listener
        )
        _require(check, name)
        packed = None
        if plan.pack:
            packed = pack_beside(folder, name, info, plan.pack, listener)
            info = formats.inspect(folder)
            ranks = {m.name: m.rank for m in info.modules}
            check = verify(plan, weights, info.modules, reports=reports, workers=workers)
            # What the method made was verified above; from here on, that nothing else changes it.
            check = replace(check, tolerance=1.001 * check.worst_error + check.tolerance)
        record = Record(
            digest=digest,
            lorahub=LORAHUB_VERSION,
            method=plan.method.name,
            parameters=plan.parameters,
            scale=plan.scale,
            normalize=bool(plan.normalize),
            allocate=plan.budget.rule if plan.budget else None,
            budget=plan.budget.parameters if plan.budget else None,
            packed=packed,
            seed=plan.seed,
            dtype=plan.dtype,
            base_model=plan.base_model,
            parents=parents_of(plan),
            modules=len(ranks),
            rank=max(ranks.values()),
            weights_sha256=info.weights_sha256,
            verification=check,
            license=plan.license,
            notes=plan.notes + warnings_of(done.modules),
            reports=reports,
        )
        (folder / FILE_NAME).write_text(record.to_json(), encoding="utf-8")
        recipe = pinned_recipe(plan, name).to_yaml()
        (folder / RECIPE_NAME).write_text(recipe, encoding="utf-8")
        card = render_card(record, info, name=name, paper=plan.method.paper, recipe=recipe)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return record

    def _catalogue(
        self,
        run_id: int,
        plan: Plan,
        name: str,
        target: Path,
        record: Record,
        replaced: Adapter | None,
    ) -> Adapter:
        info = formats.inspect(target)
        adapter = Adapter(name, Origin(Source.MERGE, target), info, method=record.method)
        parents = list(zip(record.parents, (a.id for a in plan.adapters), strict=True))
        return self._catalog.finish_run(
            run_id,
            adapter,
            parents,
            record.to_json(),
            replaces=replaced.id if replaced else None,
        )

    def verify(self, adapter: Adapter, listener: Listener) -> Verification:
        """Recompute a merged adapter; see `lorahub.workspace.Workspace.verify`."""
        from lorahub.engine.verify import verify

        record = Record.read(adapter.origin.folder)
        if record is None:
            raise UsageError(
                f"'{adapter.name}' has no lorahub.json: it is not the result of a merge",
                hint="verify works on what `lorahub merge` made",
            )
        check_unchanged(adapter)
        if record.weights_sha256 != adapter.info.weights_sha256:
            raise IntegrityError(f"the weights of '{adapter.name}' are not those of its record")
        check_pack(adapter, record)
        parents: list[Adapter] = []
        for parent in record.parents:
            parents.append(self._parent(parent, {known.name for known in parents}))
            check_unchanged(parents[-1])
        plan = plan_again(record, parents)
        check = verify(
            plan,
            adapter.weights_path,
            adapter.info.modules,
            reports=record.reports,
            listener=listener,
        )
        if record.packed:
            check = replace(check, tolerance=record.verification.tolerance)
        _require(check, adapter.name)
        return check

    def _parent(self, parent: Parent, used: set[str]) -> Adapter:
        found = with_content(self._catalog, parent.content_hash, used)
        if found is None:
            where = f"{parent.repo_id}@{parent.revision}" if parent.repo_id else parent.reference
            raise NotFoundError(
                f"source '{parent.reference}' is no longer in the catalog",
                hint=f"pull it again: `lorahub pull {where}`",
            )
        return found


def _require(check: Verification, name: str, bounds: VerifySpec | None = None) -> None:
    if not check.passed:
        raise VerificationError(
            f"'{name}' is off by {check.worst_error:.1e} in module '{check.worst_module}', "
            f"{check.tolerance:.0e} is allowed",
            hint="this is a defect of the method or of the files; please report it",
        )
    if bounds is None:
        return
    least = min(check.retained)
    for key, found, bound in (
        ("error", check.worst_error, bounds.error),
        ("truncation", check.truncation, bounds.truncation),
        ("retained", -least, None if bounds.retained is None else -bounds.retained),
    ):
        if bound is not None and found > bound:
            raise VerificationError(
                f"'{name}' has {key} {abs(found):.3g}, the recipe allows {abs(bound):g}",
                hint=f"give it a higher rank, or loosen 'verify.{key}' in the recipe",
            )
