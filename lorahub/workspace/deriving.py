"""Making one thing out of another, without merging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import ConflictError
from lorahub.events import Listener, ignore
from lorahub.extracting import Extracted, Extractor
from lorahub.extraction_plan import ExtractionPlan, Request
from lorahub.integrity import check_unchanged
from lorahub.output import new_folder
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.engine.compress import Compression


class Deriving(Pulling):
    """Compressed models, and adapters extracted from models."""

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

    def plan_extraction(self, request: Request) -> ExtractionPlan:
        """What `extract` would write, from the headers of both models alone.

        Raises:
            UsageError: There is no size.
            LorahubError: As `extract`, as far as headers tell.
        """
        return Extractor(self.config, self.catalog).plan(request)

    def extract(
        self, request: Request, *, force: bool = False, listener: Listener = ignore
    ) -> Extracted:
        """Extract a LoRA from a base model and a fine-tuned one (`lorahub.engine.extract`).

        The folder gets the weights, their config, ``extracted.json`` (the record) and a model
        card. Finished modules are kept when the extraction is stopped: the same call goes on from
        there. A repeat that would give the same result leaves what is there.

        Args:
            request: The models, the size, and where the result goes.
            force: Replace an output of the same name or folder.
            listener: Receives the phases ``hash`` and ``extract``, and a warning for what the
                adapter cannot carry.

        Raises:
            UsageError: There is no size or no output.
            InvalidRecipeError: A parameter is out of bounds.
            InvalidAdapterError: A folder is no model, or a weight holds NaN or Inf.
            IncompatibleError: The models are not of one architecture, or do not differ.
            ConflictError: The output exists and is something else.
            StorageError: The disk is full or failing.
        """
        return Extractor(self.config, self.catalog).extract(request, force=force, listener=listener)
