"""Bringing adapters in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter, Reference
from lorahub.events import Listener, ignore
from lorahub.lookup import find, is_folder
from lorahub.pulling import Pulled, Puller
from lorahub.workspace.finding import Finding

if TYPE_CHECKING:
    from lorahub.hub import Hub


class Pulling(Finding):
    """Adapters from Hubs, storage URLs, folders and packs."""

    def pull(
        self,
        references: Sequence[str],
        *,
        name: str | None = None,
        all_files: bool = False,
        allow_pickle: bool = False,
        remote: str | None = None,
        endpoint: str | None = None,
        token_env: str | None = None,
        listener: Listener = ignore,
    ) -> tuple[Pulled, ...]:
        """Bring adapters into the catalog, several at a time.

        What is at a storage URL is asked for anew each time, and downloaded where it changed.

        Args:
            references: Hub repositories, storage URLs or folders. What the catalog holds at
                the very commit asked for needs no Hub.
            name: Catalog name; only for a single reference.
            all_files: Fetch every file of a repository, not only the adapter's.
            allow_pickle: Read ``.bin`` weights (plain tensors only) and convert them.
            remote: Name of a configured Hub instead of the default one.
            endpoint: Address of a Hub instead of the default one.
            token_env: Environment variable that holds the token.
            listener: Receives progress.

        Returns:
            One outcome per reference, in order; failures of single references do not raise.

        Raises:
            UsageError: No reference, a name for several, or no such remote.
        """
        return Puller(self.config, self.catalog).pull(
            [self.config.expand(reference) for reference in references],
            self.hub(remote=remote, endpoint=endpoint, token_env=token_env),
            self.hub_at,
            name=name,
            all_files=all_files,
            allow_pickle=allow_pickle,
            listener=listener,
        )

    def _brought(self, adapter: Adapter, url: str | None = None) -> Adapter:
        """`Puller.brought`, with the Hubs that are configured."""

        def hub_at(endpoint: str | None) -> Hub:
            return self.hub_at(endpoint) if endpoint else self.hub()

        return Puller(self.config, self.catalog).brought(adapter, hub_at, url)

    def _source(self, text: str, listener: Listener) -> Adapter:
        reference = Reference.parse(self.config.expand(text))
        if reference.is_url and (known := find(self.catalog, reference)):
            return known
        if not (reference.is_path or reference.pack or reference.is_url):
            found = find(self.catalog, reference)
            here = Path(reference.text).absolute() if is_folder(reference) else None
            # What came from the folder of that name may have changed since: it is looked at anew.
            if found is not None and found.origin.folder != here:
                return found
            if reference.repo_id is None and here is None:
                return self.get(text)
        (pulled,) = self.pull([text], listener=listener)
        if pulled.error is not None:
            raise pulled.error
        assert pulled.adapter is not None
        return pulled.adapter
