"""What there is elsewhere, and what changed there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorahub.errors import UsageError
from lorahub.events import Listener, ignore
from lorahub.workspace.pulling import Pulling

if TYPE_CHECKING:
    from lorahub.discovering import Discovered
    from lorahub.hub import Hub, Query
    from lorahub.pulling import Pulled
    from lorahub.updating import Update


class Discovering(Pulling):
    """Looking at Hubs without taking anything."""

    def discover(
        self,
        query: Query,
        *,
        headers: bool = True,
        remote: str | None = None,
        endpoint: str | None = None,
        token_env: str | None = None,
        listener: Listener = ignore,
    ) -> tuple[Discovered, ...]:
        """Adapters on a Hub that answer to a query, each with what its weights' header says.

        Headers are read by Range requests, several at a time, and kept in the catalog; weights
        are not downloaded. One that cannot be read does not raise.

        Args:
            query: What to look for.
            headers: Whether to read headers at all.
            remote: Name of a configured Hub instead of the default one.
            endpoint: Address of a Hub instead of the default one.
            token_env: Environment variable that holds the token.
            listener: Receives progress.

        Raises:
            UsageError: An unknown sort key or remote.
            OfflineError: There is no connection to the Hub.
            NetworkError: The Hub does not answer.
        """
        from lorahub.discovering import discover

        hub = self.hub(remote=remote, endpoint=endpoint, token_env=token_env)
        return discover(query, hub, self.catalog, headers=headers, listener=listener)

    def update(
        self,
        references: Sequence[str] = (),
        *,
        token_env: str | None = None,
        listener: Listener = ignore,
    ) -> tuple[Update, ...]:
        """How pulled adapters stand to their repositories; nothing is changed.

        Args:
            references: Adapters that came from a Hub; none for all that follow a branch or tag.
            token_env: Environment variable that holds the token for the default Hub.
            listener: Receives progress.

        Raises:
            NotFoundError: A reference names nothing.
            UsageError: One did not come from a Hub.
        """
        from lorahub.updating import check, followed

        known = self.catalog.hub_adapters()
        if references:
            by_id = {adapter.id: adapter for adapter in known}
            asked = [self.get(reference) for reference in references]
            for adapter in asked:
                if adapter.id not in by_id:
                    raise UsageError(f"'{adapter.name}' did not come from a Hub")
            wanted = [by_id[adapter.id] for adapter in asked]
        else:
            wanted = followed(known)
        default = self.hub(token_env=token_env)

        def hub_at(endpoint: str | None) -> Hub:
            return default if endpoint in {None, default.endpoint} else self.hub_at(str(endpoint))

        return check(wanted, hub_at, listener)

    def take(
        self,
        updates: Sequence[Update],
        *,
        token_env: str | None = None,
        listener: Listener = ignore,
    ) -> tuple[Pulled, ...]:
        """Pull what `update` found changed; runs, records and lineage keep what they had."""
        from lorahub.updating import reference

        changed = [reference(u.adapter) for u in updates if u.state == "changed"]
        return self.pull(changed, token_env=token_env, listener=listener) if changed else ()
