"""What every part of the workspace stands on: a data folder and its catalog."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lorahub.config import Config, load_config
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

    def hub(self, *, endpoint: str | None = None, token_env: str | None = None) -> Hub:
        """A client for the Hub in effect."""
        from lorahub.hub import Hub

        return Hub(endpoint or self.config.endpoint, self.config.token(token_env))
