"""The workspace: everything lorahub does, as typed functions on one object.

The command line and the terminal UI call these and add no logic of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter, Reference
from lorahub.config import Config, load_config
from lorahub.errors import ConflictError, UsageError
from lorahub.events import Listener, ignore
from lorahub.integrity import check_unchanged
from lorahub.lookup import find, get, is_folder
from lorahub.merging import Merged, Merger, plan_for
from lorahub.output import new_folder
from lorahub.publishing import export, publishable
from lorahub.pulling import Pulled, Puller
from lorahub.record import Verification
from store import AdapterFilter, AdapterSummary, Catalog, ParentLink

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison
    from lorahub.engine.compress import Compression
    from lorahub.engine.plan import Plan
    from lorahub.hub import Hub, Pushed
    from lorahub.packing import PackInfo
    from lorahub.packs import Unpacked
    from lorahub.recipe import Recipe


class Workspace:
    """A catalog with the means to fill it, merge from it and publish from it.

    Use as a context manager, or call `close`.
    """

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self.config = config
        self.catalog = catalog
        self._puller = Puller(config, catalog)
        self._merger = Merger(config, catalog)

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
        return get(self.catalog, reference)

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
        return self._puller.pull(
            references,
            self.hub(endpoint=endpoint, token_env=token_env),
            name=name,
            all_files=all_files,
            allow_pickle=allow_pickle,
            listener=listener,
        )

    def hub(self, *, endpoint: str | None = None, token_env: str | None = None) -> Hub:
        """A client for the Hub in effect."""
        from lorahub.hub import Hub

        return Hub(endpoint or self.config.endpoint, self.config.token(token_env))

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
        from lorahub.methods.registry import get as get_method

        get_method(recipe.method).parameters(recipe.parameters)
        return plan_for(recipe, [self._source(s.adapter, listener) for s in recipe.sources])

    def _source(self, text: str, listener: Listener) -> Adapter:
        reference = Reference.parse(text)
        if not (reference.is_path or reference.pack or is_folder(reference)):
            found = find(self.catalog, reference)
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
        self._merger.target(recipe)
        return self._merger.merge(
            recipe,
            self.plan(recipe, listener=listener),
            device=device,
            workers=workers,
            force=force,
            listener=listener,
        )

    def verify(self, reference: str, *, listener: Listener = ignore) -> Verification:
        """Recompute a merged adapter from its lineage and compare.

        Raises:
            UsageError: It is not the result of a merge.
            NotFoundError: A source is no longer in the catalog.
            IntegrityError: A source or the result changed since the merge.
            VerificationError: It is further from its definition than its dtype allows.
        """
        return self._merger.verify(self.get(reference), listener)

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
            check_unchanged(source)
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

    # --- packing ---

    def pack(
        self,
        references: Sequence[str],
        out: Path,
        *,
        ratio: float | None = None,
        bytes_budget: int | None = None,
        error: float | None = None,
        protect: bool = False,
        force: bool = False,
        listener: Listener = ignore,
    ) -> PackInfo:
        """Write adapters into one pack file, in the order given; see `lorahub.packing.pack`.

        Raises:
            NotFoundError: A reference names nothing.
            LorahubError: As `lorahub.packing.pack`, and IntegrityError.
        """
        from lorahub import packs

        adapters = [self._source(r, listener) for r in references]
        for adapter in adapters:
            check_unchanged(adapter)
        found = packs.pack(
            adapters,
            out,
            ratio=ratio,
            bytes_budget=bytes_budget,
            error=error,
            protect=protect,
            force=force,
            listener=listener,
        )
        for adapter in adapters:
            self.catalog.record_export(adapter.id, found.path, "mos")
        return found

    def unpack(
        self, file: Path, name: str | None = None, folder: Path | None = None
    ) -> tuple[Unpacked, ...]:
        """Write members of a pack as folders; see `lorahub.packs.unpack`."""
        from lorahub import packs

        return packs.unpack(file, name, folder, locks=self.config.home / "locks")

    def pack_info(self, file: Path) -> PackInfo:
        """What a pack holds, its checksum verified; see `lorahub.packing.read_info`."""
        from lorahub.packing import read_info

        return read_info(file.expanduser().absolute())

    # --- giving away ---

    def export(self, reference: str, folder: Path, *, format_name: str = "peft") -> Path:
        """Copy an adapter into a new folder as PEFT reads it.

        Raises:
            UsageError: An unknown format.
            UnsupportedAdapterError: The adapter is not in PEFT's format.
            ConflictError: The folder exists and holds something else.
            IntegrityError: Its files changed since they were catalogued.
        """
        adapter = self.get(reference)
        check_unchanged(adapter)
        target = folder.expanduser().absolute()
        export(adapter, target, self.config.home / "locks", format_name=format_name)
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
        check_unchanged(adapter)
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
