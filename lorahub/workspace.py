"""The workspace: everything lorahub does, as typed functions on one object.

The command line and the terminal UI call these and add no logic of their own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Reference, Source
from lorahub.config import Config, load_config
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidRecipeError,
    LorahubError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from lorahub.events import Listener, Warned, ignore
from lorahub.output import check_name, new_folder
from lorahub.parallel import each
from lorahub.record import FILE_NAME, Parent, Record, Verification
from store import AdapterFilter, AdapterSummary, Catalog, ParentLink, RunDraft

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison
    from lorahub.engine.compress import Compression
    from lorahub.engine.plan import Plan
    from lorahub.engine.run import MergedModule
    from lorahub.hub import Hub, Pushed
    from lorahub.recipe import Recipe

RECIPE_NAME = "recipe.yaml"
PULL_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Pulled:
    """Outcome of pulling one reference.

    ``state`` is ``added``, ``up to date`` or ``failed``; exactly one of adapter and error is set.
    """

    reference: str
    state: Literal["added", "up to date", "failed"]
    adapter: Adapter | None
    error: LorahubError | None


@dataclass(frozen=True, slots=True)
class Merged:
    """Outcome of a merge; ``state`` is ``unchanged`` when the same result was already there."""

    adapter: Adapter
    record: Record
    state: Literal["merged", "unchanged"]


class Workspace:
    """A catalog with the means to fill it, merge from it and publish from it.

    Use as a context manager, or call `close`.
    """

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self.config = config
        self.catalog = catalog
        self._writing = Lock()

    @classmethod
    def open(cls, home: Path | None = None) -> Workspace:
        """Open the workspace in ``home`` (default: ``LORAHUB_HOME``, or the user's data folder).

        Raises:
            UsageError: The config file is wrong.
            CatalogError: The catalog cannot be used.
            StorageError: The folder cannot be written.
        """
        config = load_config(home)
        return cls(config, Catalog.open(config.database))

    def close(self) -> None:
        """Release the catalog."""
        self.catalog.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- finding ---

    def get(self, reference: str) -> Adapter:
        """The catalogued adapter a reference means: name, id, folder or repository.

        Raises:
            NotFoundError: Nothing in the catalog goes by it.
            ConflictError: An id prefix that means several.
        """
        found = self._find(Reference.parse(reference))
        if found is None:
            close = self.catalog.names_like(reference)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise NotFoundError(
                f"'{reference}' is not in the catalog",
                hint=f"{hint}see `lorahub ls`, or `lorahub pull {reference}`",
            )
        return found

    def _find(self, reference: Reference) -> Adapter | None:
        if reference.is_path:
            return self.catalog.by_folder(Path(reference.text).expanduser().absolute())
        if not reference.is_hub and (named := self.catalog.by_name(reference.text)):
            return named
        if reference.repo_id is not None and (
            pulled := self.catalog.by_repo(reference.repo_id, reference.revision)
        ):
            return pulled[0]
        if _is_folder(reference):
            return self.catalog.by_folder(Path(reference.text).absolute())
        if len(reference.text) >= 6 and set(reference.text) <= set("0123456789abcdef"):
            found = self.catalog.by_hash(reference.text)
            if len({a.info.content_hash for a in found}) > 1:
                raise ConflictError(
                    f"'{reference.text}' means {', '.join(a.name for a in found)}",
                    hint="give more of the id",
                )
            return found[0] if found else None
        return None

    def adapters(
        self,
        where: AdapterFilter | None = None,
        *,
        sort: str = "name",
        descending: bool = False,
        limit: int = 50,
        offset: int = 0,
    ) -> list[AdapterSummary]:
        """One page of the catalog."""
        return self.catalog.adapters(
            where, sort=sort, descending=descending, limit=limit, offset=offset
        )

    def search(self, words: str, *, limit: int = 50) -> list[AdapterSummary]:
        """Full-text search, best first."""
        return self.catalog.search(words, limit=limit)

    def parents(self, adapter: Adapter) -> tuple[ParentLink, ...]:
        """What a merged adapter came from, in recipe order."""
        return self.catalog.parents(adapter.id)

    # --- pulling ---

    def pull(
        self,
        references: Sequence[str],
        *,
        name: str | None = None,
        all_files: bool = False,
        allow_pickle: bool = False,
        endpoint: str | None = None,
        token_env: str | None = None,
        listener: Listener = ignore,
    ) -> tuple[Pulled, ...]:
        """Bring adapters into the catalog, several at a time.

        Args:
            references: Hub repositories or folders.
            name: Catalog name; only for a single reference.
            all_files: Fetch every file of a repository, not only the adapter's.
            allow_pickle: Read ``.bin`` weights (plain tensors only) and convert them.
            endpoint: Hub endpoint instead of the configured one.
            token_env: Environment variable that holds the token.
            listener: Receives progress.

        Returns:
            One outcome per reference, in order; failures of single references do not raise.

        Raises:
            UsageError: No reference, or a name for several.
        """
        if not references:
            raise UsageError("nothing to pull", hint="name a Hub repository or a folder")
        if name is not None:
            check_name(name)
            if len(references) > 1:
                raise UsageError("--name goes with one reference")
        hub = self.hub(endpoint=endpoint, token_env=token_env)

        stopped = Event()

        def pull_one(text: str) -> Pulled:
            try:
                origin = self._fetch(text, hub, all_files, allow_pickle, listener)
                adapter, added = self._register(
                    origin, name, allow_pickle=allow_pickle, stopped=stopped
                )
                return Pulled(text, "added" if added else "up to date", adapter, None)
            except LorahubError as error:
                return Pulled(text, "failed", None, error)

        try:
            return each(pull_one, references, PULL_WORKERS)
        except BaseException:
            # What a thread is writing is finished, and nothing is begun after the interruption.
            with self._writing:
                stopped.set()
            raise

    def hub(self, *, endpoint: str | None = None, token_env: str | None = None) -> Hub:
        """A client for the Hub in effect."""
        from lorahub.hub import Hub

        return Hub(endpoint or self.config.endpoint, self.config.token(token_env))

    def _fetch(
        self, text: str, hub: Hub, all_files: bool, allow_pickle: bool, listener: Listener
    ) -> Origin:
        reference = Reference.parse(text)
        if reference.is_path or _is_folder(reference):
            folder = Path(text).expanduser().absolute()
            if not folder.is_dir():
                raise NotFoundError(f"there is no folder {folder}")
            merged = folder.is_relative_to(self.config.adapters) and Record.read(folder)
            return Origin(Source.MERGE if merged else Source.FOLDER, folder)
        if reference.repo_id is None:
            raise NotFoundError(
                f"'{text}' is neither a folder nor a Hub repository",
                hint="a repository is owner/name[@revision]; start a folder with ./ or /",
            )
        snapshot = hub.resolve(reference.repo_id, reference.revision)
        folder = hub.fetch(
            snapshot, all_files=all_files, allow_pickle=allow_pickle, listener=listener
        )
        return Origin(
            Source.HUB,
            folder,
            snapshot.repo_id,
            snapshot.revision,
            reference.revision,
            hub.endpoint,
        )

    def _register(
        self, origin: Origin, name: str | None, *, allow_pickle: bool, stopped: Event
    ) -> tuple[Adapter, bool]:
        """The catalogued adapter for an origin, and whether it is new."""
        if allow_pickle and (pickled := formats.find_pickle(origin.folder)):
            with self._unless(stopped):
                origin = self._converted(origin, pickled)
        info = formats.inspect(origin.folder)
        with self._unless(stopped):
            for known in self._same_place(origin):
                if known.info.content_hash == info.content_hash and name in {None, known.name}:
                    return known, False
            default = origin.repo_id or origin.folder.name
            wanted = name or default
            taken = self.catalog.by_name(wanted)
            rename_older = None
            if taken is not None and name is None:
                if _same_line(taken.origin, origin) and origin.requested_revision is None:
                    # The plain name follows the newest revision of the same place.
                    rename_older = f"{wanted}@{_short(taken)}"
                else:
                    wanted = f"{wanted}@{(origin.revision or info.content_hash)[:8]}"
            record = Record.read(origin.folder)
            adapter = Adapter(wanted, origin, info, method=record.method if record else None)
            return self.catalog.add(adapter, rename_older=rename_older), True

    @contextmanager
    def _unless(self, stopped: Event) -> Iterator[None]:
        """One thread at a time writes, and none once ``stopped`` is set."""
        with self._writing:
            if stopped.is_set():
                raise LorahubError("the pull was interrupted")
            yield

    def _same_place(self, origin: Origin) -> list[Adapter]:
        if origin.repo_id is not None:
            found = self.catalog.by_repo(origin.repo_id, origin.revision)
            return [a for a in found if a.origin.endpoint == origin.endpoint]
        known = self.catalog.by_folder(origin.folder)
        return [known] if known else []

    def _converted(self, origin: Origin, pickled: Path) -> Origin:
        """A safetensors copy, in the data folder, of an adapter whose weights are a pickle."""
        key = _sha256(pickled)[:16]
        target = self.config.home / "converted" / key / origin.folder.name
        if not target.exists():
            with new_folder(target, self.config.home / "locks") as partial:
                formats.convert_pickle(origin.folder, partial)
        return replace(origin, folder=target)

    # --- merging ---

    def plan(self, recipe: Recipe, *, listener: Listener = ignore) -> Plan:
        """Resolve a recipe's references (pulling what is missing) and check that it can work.

        Raises:
            InvalidRecipeError: The recipe, its method or a parameter is wrong.
            IncompatibleError: The adapters do not fit together.
            UnsupportedAdapterError: One of them cannot be merged.
            NotFoundError: A reference names nothing.
            IntegrityError: A source is not what the recipe pinned.
        """
        from lorahub.engine.plan import make_plan
        from lorahub.methods.registry import get

        method = get(recipe.method)
        method.parameters(recipe.parameters)
        adapters = []
        for source in recipe.sources:
            adapter = self._source(source.adapter, listener)
            if source.sha256 not in {None, adapter.info.content_hash}:
                raise IntegrityError(
                    f"'{source.adapter}' has content {adapter.info.content_hash}, the recipe "
                    f"pins {source.sha256}",
                    hint="pull the revision that was pinned, or drop sha256 from the recipe",
                )
            adapters.append(adapter)
        return make_plan(
            adapters,
            [source.weight for source in recipe.sources],
            method,
            recipe.parameters,
            scale=recipe.scale,
            normalize=recipe.normalize,
            allocate=recipe.allocate,
            budget=recipe.budget,
            dtype=recipe.dtype,
            seed=recipe.seed,
            base_model=recipe.base,
        )

    def _source(self, text: str, listener: Listener) -> Adapter:
        reference = Reference.parse(text)
        if not (reference.is_path or _is_folder(reference)):
            found = self._find(reference)
            if found is not None:
                return found
            if reference.repo_id is None:
                return self.get(text)
        (pulled,) = self.pull([text], listener=listener)
        if pulled.error is not None:
            raise pulled.error
        assert pulled.adapter is not None
        return pulled.adapter

    def merge(
        self,
        recipe: Recipe,
        *,
        device: str = "auto",
        workers: int | None = None,
        force: bool = False,
        listener: Listener = ignore,
    ) -> Merged:
        """Execute a recipe: the merged adapter is written whole, verified and catalogued.

        The folder gets the weights, their config, ``lorahub.json`` (the record),
        ``recipe.yaml`` (sources pinned) and a model card. A repeat that would give the same
        result leaves what is there.

        Args:
            recipe: What to merge; its output must name a catalog name or a folder.
            device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
            workers: Threads; None takes the CPUs this process may use, at most 8.
            force: Replace an output of the same name or folder.
            listener: Receives progress.

        Raises:
            ConflictError: The output exists and is something else.
            VerificationError: The result is further from its definition than its dtype allows;
                nothing is written.
            LorahubError: As `plan`, and StorageError.
        """
        name, target = self._target(recipe)
        plan = self.plan(recipe, listener=listener)
        for warning in plan.warnings:
            listener(Warned(warning))
        for adapter in plan.adapters:
            self._check_unchanged(adapter)
        done = self._already_there(name, target, plan, force=force)
        if done is not None:
            return done
        self.catalog.sweep_dead_runs()
        run_id = self.catalog.begin_run(
            RunDraft(plan.digest, recipe.to_yaml(), plan.method.name, str(target))
        )
        with self._closing_run(run_id):
            with new_folder(target, self.config.home / "locks", replace=force) as partial:
                record = self._write(plan, name, partial, device, workers, listener)
            return Merged(self._catalogue(run_id, plan, name, target, record), record, "merged")

    def _target(self, recipe: Recipe) -> tuple[str, Path]:
        output = recipe.output
        if output.name is None and output.folder is None:
            raise UsageError(
                "the merge has no output", hint="give --name NAME, or -o FOLDER, or both"
            )
        name = output.name or (output.folder.name if output.folder else "")
        check_name(name)
        return name, (output.folder or self.config.adapters / name).expanduser().absolute()

    def _already_there(self, name: str, target: Path, plan: Plan, *, force: bool) -> Merged | None:
        """The same result if it stands there already; room for it otherwise.

        A folder with the right record that the catalog does not know was finished by a process
        that was killed before it could say so: it is taken over.
        """
        known = self.catalog.by_name(name)
        record = Record.read(target) if target.is_dir() and not force else None
        same = record is not None and record.digest == plan.digest
        if record is not None and same and _sha256(target / _WEIGHTS) == record.weights_sha256:
            if known is not None and known.origin.folder == target:
                return Merged(known, record, "unchanged")
            if known is None:
                run_id = self.catalog.begin_run(
                    RunDraft(plan.digest, "", plan.method.name, str(target))
                )
                adapter = self._catalogue(run_id, plan, name, target, record)
                return Merged(adapter, record, "unchanged")
        if known is not None:
            if not force:
                raise ConflictError(
                    f"an adapter named '{name}' is already in the catalog",
                    hint="choose another --name, or pass --force to replace it",
                )
            if known.name in {a.name for a in plan.adapters}:
                raise ConflictError(f"'{name}' is one of the sources; choose another --name")
            self.catalog.remove(known.id)
        return None

    @contextmanager
    def _closing_run(self, run_id: int) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.catalog.end_run(run_id, "interrupted", "interrupted by the user")
            raise
        except BaseException as error:
            self.catalog.end_run(run_id, "failed", str(error))
            raise

    def _write(
        self,
        plan: Plan,
        name: str,
        folder: Path,
        device: str,
        workers: int | None,
        listener: Listener,
    ) -> Record:
        from lorahub.card import render_card
        from lorahub.engine.plan import LORAHUB_VERSION
        from lorahub.engine.run import run
        from lorahub.engine.verify import verify

        weights = folder / _WEIGHTS
        done = run(plan, weights, device=device, workers=workers, listener=listener)
        plan = done.plan
        ranks = {m.name: m.rank for m in done.modules}
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
        record = Record(
            digest=plan.digest,
            lorahub=LORAHUB_VERSION,
            method=plan.method.name,
            parameters=plan.parameters,
            scale=plan.scale,
            normalize=bool(plan.normalize),
            allocate=plan.budget.rule if plan.budget else None,
            budget=plan.budget.parameters if plan.budget else None,
            seed=plan.seed,
            dtype=plan.dtype,
            base_model=plan.base_model,
            parents=_parents(plan),
            modules=len(ranks),
            rank=max(ranks.values()),
            weights_sha256=info.weights_sha256,
            verification=check,
            notes=plan.notes + _warnings_of(done.modules),
            reports=reports,
        )
        (folder / FILE_NAME).write_text(record.to_json(), encoding="utf-8")
        (folder / RECIPE_NAME).write_text(_pinned(plan, name).to_yaml(), encoding="utf-8")
        card = render_card(record, name=name, targets=info.targets, paper=plan.method.paper)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return record

    def _catalogue(
        self, run_id: int, plan: Plan, name: str, target: Path, record: Record
    ) -> Adapter:
        info = formats.inspect(target)
        adapter = Adapter(name, Origin(Source.MERGE, target), info, method=record.method)
        parents = list(zip(record.parents, (a.id for a in plan.adapters), strict=True))
        return self.catalog.finish_run(run_id, adapter, parents, record.to_json())

    def _check_unchanged(self, adapter: Adapter) -> None:
        """Raise IntegrityError unless the adapter's files are still those catalogued."""
        try:
            found = _sha256(adapter.weights_path)
            _, config = formats.peft.read_config(adapter.origin.folder)
        except OSError as error:
            raise IntegrityError(
                f"the files of '{adapter.name}' are gone from {adapter.origin.folder}",
                hint="pull it again, or remove it with `lorahub rm`",
            ) from error
        if found != adapter.info.weights_sha256 or config != adapter.info.config_sha256:
            raise IntegrityError(
                f"the files of '{adapter.name}' in {adapter.origin.folder} changed since they "
                "were catalogued",
                hint="pull it again to take the new content",
            )

    def verify(self, reference: str, *, listener: Listener = ignore) -> Verification:
        """Recompute a merged adapter from its lineage and compare.

        Raises:
            UsageError: It is not the result of a merge.
            NotFoundError: A source is no longer in the catalog.
            IntegrityError: A source or the result changed since the merge.
            VerificationError: It is further from its definition than its dtype allows.
        """
        from lorahub.engine.plan import make_plan
        from lorahub.engine.verify import verify
        from lorahub.methods.registry import get

        adapter = self.get(reference)
        record = Record.read(adapter.origin.folder)
        if record is None:
            raise UsageError(
                f"'{adapter.name}' has no lorahub.json: it is not the result of a merge",
                hint="verify works on what `lorahub merge` made",
            )
        self._check_unchanged(adapter)
        if record.weights_sha256 != adapter.info.weights_sha256:
            raise IntegrityError(f"the weights of '{adapter.name}' are not those of its record")
        parents = [self._parent(parent) for parent in record.parents]
        for parent in parents:
            self._check_unchanged(parent)
        method = get(record.method)
        plan = make_plan(
            parents,
            [p.weight for p in record.parents],
            method,
            record.parameters,
            scale=record.scale,
            normalize=record.normalize,
            allocate=record.allocate,  # type: ignore[arg-type]  # make_plan wrote it
            budget=record.budget,
            dtype=record.dtype,
            seed=record.seed,
            base_model=record.base_model,
        ).with_factors([p.factor for p in record.parents])
        check = verify(
            plan,
            adapter.weights_path,
            adapter.info.modules,
            reports=record.reports,
            listener=listener,
        )
        _require(check, adapter.name)
        return check

    def _parent(self, parent: Parent) -> Adapter:
        found = self.catalog.by_hash(parent.content_hash)
        if not found:
            where = f"{parent.repo_id}@{parent.revision}" if parent.repo_id else parent.reference
            raise NotFoundError(
                f"source '{parent.reference}' is no longer in the catalog",
                hint=f"pull it again: `lorahub pull {where}`",
            )
        return found[0]

    # --- comparing ---

    def compare(self, references: Sequence[str], *, listener: Listener = ignore) -> Comparison:
        """Norms, cosines, subspace overlap, sign conflict and effective rank, from factors.

        Raises:
            UsageError: Fewer than two adapters.
            IncompatibleError: They share no module of one shape.
        """
        from lorahub.engine.compare import compare

        if len(references) < 2:
            raise UsageError("compare needs at least two adapters")
        return compare([self._source(r, listener) for r in references], listener=listener)

    # --- compressing ---

    def compress(
        self,
        model: Path,
        folder: Path,
        *,
        reduction: float,
        adapter: str | None = None,
        keep_adapter: bool = False,
        force: bool = False,
        listener: Listener = ignore,
    ) -> Compression:
        """Compress a model's linear weights into a new folder (`lorahub.engine.compress`).

        Raises:
            ConflictError: The folder exists.
            NotFoundError: The adapter's reference names nothing.
            LorahubError: What `lorahub.engine.compress.compress` raises.
        """
        from lorahub.engine.compress import compress

        target = folder.expanduser().absolute()
        if target.exists():  # force is about the reduction: it never replaces a folder
            raise ConflictError(f"{target}: already exists", hint="choose another folder")
        source = self._source(adapter, listener) if adapter is not None else None
        if source is not None:
            self._check_unchanged(source)
        with new_folder(target, self.config.home / "locks") as partial:
            return compress(
                model.expanduser(),
                partial,
                reduction=reduction,
                adapter=source,
                keep_adapter=keep_adapter,
                force=force,
                listener=listener,
            )

    # --- giving away ---

    def export(self, reference: str, folder: Path, *, format_name: str = "peft") -> Path:
        """Copy an adapter into a new folder as PEFT reads it.

        Raises:
            UsageError: An unknown format.
            UnsupportedAdapterError: The adapter is not in PEFT's format.
            ConflictError: The folder exists and holds something else.
            IntegrityError: Its files changed since they were catalogued.
        """
        if format_name != "peft":
            raise UsageError(f"there is no export format '{format_name}'", hint="known: peft")
        adapter = self.get(reference)
        self._check_unchanged(adapter)
        if adapter.info.format != "peft":
            raise InvalidRecipeError(f"'{adapter.name}' is {adapter.info.format}, not PEFT")
        target = folder.expanduser().absolute()
        files = publishable(adapter)
        # The same export again is done already: its process may have been stopped right after it.
        if not _holds_just(target, files):
            with new_folder(target, self.config.home / "locks") as partial:
                for file in files:
                    shutil.copyfile(file, partial / file.name)
        self.catalog.record_export(adapter.id, target, format_name)
        return target

    def push(
        self,
        reference: str,
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        message: str | None = None,
        dry_run: bool = False,
        endpoint: str | None = None,
        token_env: str | None = None,
    ) -> Pushed:
        """Publish an adapter on the Hub in one commit.

        Raises:
            AuthError: No token, or one that may not write there.
            ConflictError: The repository is public where a private one was asked for.
            NetworkError: The Hub does not answer.
            IntegrityError: Its files changed since they were catalogued.
        """
        adapter = self.get(reference)
        self._check_unchanged(adapter)
        hub = self.hub(endpoint=endpoint, token_env=token_env)
        pushed = hub.push(
            publishable(adapter),
            repo_id,
            private=private,
            create_pr=create_pr,
            message=message or f"Upload {adapter.name}",
            dry_run=dry_run,
        )
        if pushed.changed and not dry_run:
            self.catalog.record_push(
                adapter.id, repo_id, hub.endpoint, pushed.revision or "", pushed.url
            )
        return pushed

    def remove(self, references: Sequence[str], *, files: bool = False) -> tuple[Adapter, ...]:
        """Take adapters out of the catalog; with ``files``, also delete merged folders.

        Files of the Hub's cache and of the user's own folders are never deleted.

        Raises:
            NotFoundError: A reference names nothing; then none is removed.
        """
        adapters = tuple(self.get(reference) for reference in references)
        for adapter in adapters:
            self.catalog.remove(adapter.id)
            ours = adapter.origin.folder.is_relative_to(self.config.home)
            if files and ours:
                shutil.rmtree(adapter.origin.folder, ignore_errors=True)
        return adapters


_WEIGHTS = "adapter_model.safetensors"


def publishable(adapter: Adapter) -> tuple[Path, ...]:
    """The files of an adapter worth handing on: weights, config, card, record, recipe."""
    names = (
        adapter.info.weights_file,
        formats.peft.CONFIG_NAME,
        "README.md",
        FILE_NAME,
        RECIPE_NAME,
    )
    return tuple(p for n in names if (p := adapter.origin.folder / n).is_file())


def _parents(plan: Plan) -> tuple[Parent, ...]:
    return tuple(
        Parent(
            reference=(f"{a.origin.repo_id}@{a.origin.revision}" if a.origin.repo_id else a.name),
            content_hash=a.info.content_hash,
            weight=weight,
            factor=factor,
            repo_id=a.origin.repo_id,
            revision=a.origin.revision,
            endpoint=a.origin.endpoint,
            license=a.info.license,
        )
        for a, weight, factor in zip(
            plan.adapters, plan.weights, plan.factors or [1.0] * len(plan.adapters), strict=True
        )
    )


def _warnings_of(modules: Sequence[MergedModule]) -> tuple[str, ...]:
    """What the method warned of in its reports, each once with the number of modules."""
    counts = Counter(m.report["warning"] for m in modules if "warning" in m.report)
    return tuple(f"{count} of {len(modules)} modules: {text}" for text, count in counts.items())


def _pinned(plan: Plan, name: str) -> Recipe:
    """The recipe that makes the same result again, every source pinned by content."""
    from lorahub.recipe import OutputSpec, Recipe, SourceSpec

    return Recipe(
        method=plan.method.name,
        parameters={k: v for k, v in plan.parameters.items() if v is not None},
        sources=tuple(
            SourceSpec(adapter=p.reference, weight=p.weight, sha256=p.content_hash)
            for p in _parents(plan)
        ),
        scale=plan.scale,
        normalize=plan.normalize,
        allocate=plan.budget.rule if plan.budget else None,
        budget=plan.budget.parameters if plan.budget else None,
        dtype=plan.dtype,  # type: ignore[arg-type]  # one of the three by construction
        seed=plan.seed,
        base=plan.base_model,
        output=OutputSpec(name=name),
    )


def _require(check: Verification, name: str) -> None:
    if not check.passed:
        raise VerificationError(
            f"'{name}' is off by {check.worst_error:.1e} in module '{check.worst_module}', "
            f"{check.tolerance:.0e} is allowed",
            hint="this is a defect of the method or of the files; please report it",
        )


def _holds_just(folder: Path, files: Sequence[Path]) -> bool:
    """Whether ``folder`` is there with copies of ``files`` and nothing else."""
    if not folder.is_dir() or {p.name for p in folder.iterdir()} != {f.name for f in files}:
        return False
    return all(_sha256(folder / f.name) == _sha256(f) for f in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(reference: Reference) -> bool:
    """Whether a text that is no explicit path names an existing folder all the same."""
    return not reference.is_hub and Path(reference.text).is_dir()


def _same_line(one: Origin, other: Origin) -> bool:
    """Whether two origins are revisions of one place."""
    if one.repo_id is not None or other.repo_id is not None:
        return one.repo_id == other.repo_id and one.endpoint == other.endpoint
    return one.folder == other.folder


def _short(adapter: Adapter) -> str:
    return (adapter.origin.revision or adapter.info.content_hash)[:8]
