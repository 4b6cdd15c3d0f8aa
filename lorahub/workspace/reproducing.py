"""Making again what was published."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter, Reference
from lorahub.events import Listener, ignore
from lorahub.integrity import check_unchanged
from lorahub.lookup import find, with_content
from lorahub.merging import Merger, plan_for
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.recipe import Recipe
    from lorahub.reproducing import Published, Reproduction


class Reproducing(Pulling):
    """Whether a published merge is what its recipe says."""

    def repro(
        self,
        reference: str,
        *,
        device: str = "cpu",
        workers: int | None = None,
        remote: str | None = None,
        endpoint: str | None = None,
        token_env: str | None = None,
        listener: Listener = ignore,
    ) -> Reproduction:
        """Pull the sources that a published adapter names, merge them again, compare the bytes.

        Sources are those the recipe pins by content, from the catalog or pulled into it; the
        result itself is kept nowhere.

        Args:
            reference: An adapter: in the catalog, a folder, on a Hub; or its card or recipe.
            device: As `merge`; the same bytes are promised on a CPU only.
            workers: As `merge`.
            remote: Name of a configured Hub instead of the default one.
            endpoint: Address of a Hub instead of the default one.
            token_env: Environment variable that holds the token.
            listener: Receives progress.

        Raises:
            InvalidRecipeError: There is no recipe, or nothing to compare with.
            NotFoundError: The adapter, or a source, is neither here nor on a Hub.
            IntegrityError: A source is no longer what the recipe pins.
            LorahubError: As `merge`.
        """
        from lorahub.engine.plan import LORAHUB_VERSION
        from lorahub.reproducing import compare

        where = {"remote": remote, "endpoint": endpoint, "token_env": token_env}
        published = self._published(self.config.expand(reference), where, listener)
        plan = plan_for(published.recipe, self._sources(published.recipe, listener))
        for adapter in plan.adapters:
            check_unchanged(adapter)
        name = published.recipe.output.name or "again"
        with TemporaryDirectory(prefix="lorahub-") as folder:
            merger = Merger(self.config, self.catalog)
            merger.write(plan, name, Path(folder), device, workers, listener)
            return compare(published, Path(folder), LORAHUB_VERSION)

    def _published(self, text: str, where: dict[str, str | None], listener: Listener) -> Published:
        from lorahub.reproducing import from_hub, from_path

        reference = Reference.parse(text)
        path = Path(text).expanduser()
        if not reference.is_hub and path.exists():
            return from_path(path.absolute())
        known = find(self.catalog, reference)
        if known is not None or reference.repo_id is None:
            return from_path((known or self.get(text)).origin.folder)
        hub = self.hub(**where)
        if reference.endpoint not in {None, hub.endpoint}:
            hub = self.hub_at(str(reference.endpoint))
        return from_hub(hub, reference.repo_id, reference.revision, listener)

    def _sources(self, recipe: Recipe, listener: Listener) -> list[Adapter]:
        found: list[Adapter] = []
        for source in recipe.sources:
            used = {adapter.name for adapter in found}
            known = source.sha256 and with_content(self.catalog, source.sha256, used)
            found.append(known or self._source(source.adapter, listener))
        return found
