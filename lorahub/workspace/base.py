"""What every part of the workspace stands on: a data folder and its catalog."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lorahub.config import Config, load_config
from lorahub.errors import UsageError
from store import Catalog

if TYPE_CHECKING:
    from lorahub.hub import Hub


class Base:
    """The configuration and the catalog, opened and closed together."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self.config = config
        self.catalog = catalog

    @classmethod
    def open(cls, home: Path | None = None) -> Self:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def hub(
        self,
        *,
        remote: str | None = None,
        endpoint: str | None = None,
        token_env: str | None = None,
    ) -> Hub:
        """A client for the Hub in effect: a configured remote, an address, or the default.

        Raises:
            UsageError: No such remote, both a remote and an address, or a token that is not set.
        """
        from lorahub.hub import Hub

        if remote is None:
            return Hub(endpoint or self.config.endpoint, self.config.token(token_env))
        if endpoint is not None:
            raise UsageError("--remote and --endpoint exclude each other")
        settings = self.config.remote(remote)
        token_env = token_env or settings.token_env
        return Hub(settings.endpoint, self.config.token(token_env) if token_env else False)

    def hub_at(self, endpoint: str) -> Hub:
        """A client for a Hub that a reference names by its address."""
        from lorahub.hub import Hub

        return Hub(endpoint, self.config.token_at(endpoint))
