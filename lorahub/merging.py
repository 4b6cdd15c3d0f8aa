"""Executing a recipe and checking its result: plan, write, verify, record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorahub import formats
from lorahub.adapter import Adapter, AdapterInfo, Origin, Source
from lorahub.config import Config
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    LorahubError,
    NotFoundError,
    UsageError,
)
from lorahub.events import Listener, Warned
from lorahub.integrity import check_unchanged, file_sha256
from lorahub.lockstep import Lockstep
from lorahub.lookup import with_content
from lorahub.making import WEIGHTS, Steps, folder_of, make_all, require
from lorahub.output import check_name, new_folder, writing
from lorahub.packed import check_pack
from lorahub.provenance import is_result_of, plan_again
from lorahub.record import (
    Parent,
    Record,
    Verification,
)
from store import Catalog, RunDraft

if TYPE_CHECKING:
    from lorahub.engine.parts import Elsewhere
    from lorahub.engine.plan import Plan
    from lorahub.recipe import Recipe


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
    except SystemExit:  # as Ray ends workers whose batch is gone
        catalog.end_run(run_id, "interrupted", "the process was told to end")
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
        raise UsageError(
            "the result has no place",
            hint="give --name NAME, or -o FOLDER, or both; in a recipe, output.name or .folder",
        )
    name = name or (folder.name if folder else "")
    check_name(name)
    return name, (folder or config.adapters / name).expanduser().absolute()


def _found(target: Path, plan: Plan) -> Record | None:
    """The record of the result of this very plan, if one stands there."""
    record = Record.read(target) if target.is_dir() else None
    return record if record is not None and is_result_of(record, plan) else None


def _whole(target: Path, plan: Plan) -> Record | None:
    """As `_found`, where the weights that it tells of stand there too."""
    record = _found(target, plan)
    if record is None or file_sha256(target / WEIGHTS) != record.weights_sha256:
        return None
    return record


class Merger:
    """Merges into one data folder and its catalog."""

    def __init__(
        self, config: Config, catalog: Catalog, elsewhere: Elsewhere | None = None
    ) -> None:
        """Take where results go, and who makes the parts of a merge that is alone."""
        self._config = config
        self._elsewhere = elsewhere
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
        (merged,) = self.merge_all(
            [(recipe, plan)], device=device, workers=workers, force=force, listener=listener
        )
        if isinstance(merged, LorahubError):
            raise merged
        return merged

    def merge_all(
        self,
        wanted: Sequence[tuple[Recipe, Plan]],
        *,
        device: str,
        workers: int | None,
        force: bool,
        listener: Listener,
    ) -> list[Merged | LorahubError]:
        """Execute plans of one `Plan.layout` together, each of which succeeds or fails by itself.

        All are begun before the first is finished, and every result is what `merge` makes.
        """
        self._catalog.sweep_dead_runs()
        steps = Lockstep(self._merging(*each, force=force, listener=listener) for each in wanted)
        return make_all(
            steps,
            device=device,
            workers=workers,
            listener=listener,
            elsewhere=self._elsewhere,
        )

    def _merging(
        self, recipe: Recipe, plan: Plan, *, force: bool, listener: Listener
    ) -> Steps[Merged]:
        name, target = self.target(recipe)
        for warning in plan.warnings:
            listener(Warned(warning))
        for adapter in plan.adapters:
            self.check_unchanged(adapter)
        merged = None if force else self._unchanged_at(target, plan, self._catalog.by_name(name))
        if merged is None:
            # Until it is catalogued: another process that found it would catalogue it too.
            with writing(target, self._config.home / "locks"):
                merged = yield from self._making(recipe, plan, force=force, listener=listener)
        require(merged.record.verification, name, recipe.verify)
        return merged

    def _making(
        self, recipe: Recipe, plan: Plan, *, force: bool, listener: Listener
    ) -> Steps[Merged]:
        """As `_merging`, where nobody else writes the result."""
        name, target = self.target(recipe)
        known = self._catalog.by_name(name)
        done = self._already_there(name, target, plan, known, force=force)
        if done is not None:
            return done
        run_id = self._catalog.begin_run(
            RunDraft(plan.digest, recipe.to_yaml(), plan.method.name, str(target))
        )
        with closing_run(self._catalog, run_id):
            with new_folder(target, replace=force) as partial:
                record, info = yield from folder_of(plan, name, partial, listener)
                require(record.verification, name, recipe.verify)
            adapter = self._catalogue(run_id, plan, name, target, record, info, known)
            return Merged(adapter, record, "merged")

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
        steps = Lockstep([folder_of(plan, name, folder, listener)])
        (made,) = make_all(steps, device=device, workers=workers, listener=listener)
        if isinstance(made, LorahubError):
            raise made
        return made[0]

    def target(self, recipe: Recipe) -> tuple[str, Path]:
        """Name and folder of the result.

        Raises:
            UsageError: The recipe names neither, or a name that cannot be one.
        """
        return output_of(recipe.output.name, recipe.output.folder, self._config)

    def check_unchanged(self, adapter: Adapter) -> None:
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
        return _found(self.target(recipe)[1], plan) is not None

    def _unchanged_at(self, target: Path, plan: Plan, known: Adapter | None) -> Merged | None:
        """The same result, if the catalog knows it and it stands there."""
        if known is None or known.origin.folder != target:
            return None
        record = _whole(target, plan)
        return Merged(known, record, "unchanged") if record is not None else None

    def _already_there(
        self, name: str, target: Path, plan: Plan, known: Adapter | None, *, force: bool
    ) -> Merged | None:
        """The same result if it stands there already; room for it otherwise.

        A folder with the right record that the catalog does not know was finished by a process
        that was killed before it could say so: it is taken over.
        """
        if not force:
            if known is not None:
                done = self._unchanged_at(target, plan, known)
                if done is not None:
                    return done
            elif (record := _whole(target, plan)) is not None:
                run_id = self._catalog.begin_run(
                    RunDraft(plan.digest, "", plan.method.name, str(target))
                )
                info = formats.inspect(target)
                adapter = self._catalogue(run_id, plan, name, target, record, info, None)
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

    def _catalogue(
        self,
        run_id: int,
        plan: Plan,
        name: str,
        target: Path,
        record: Record,
        info: AdapterInfo,
        replaced: Adapter | None,
    ) -> Adapter:
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
        require(check, adapter.name)
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
