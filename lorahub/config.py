"""Settings: where lorahub keeps its things and which Hub it speaks to.

Environment variables win over ``config.toml``, which wins over the defaults. ``LORAHUB_HOME``
moves the catalog, the merged adapters and the config file together.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lorahub.errors import UsageError

_KEYS = {"database_url", "endpoint", "token_env"}


@dataclass(frozen=True, slots=True)
class Config:
    """Effective settings.

    Attributes:
        home: Folder of the catalog, the merged adapters and ``config.toml``.
        database_url: SQLAlchemy URL of the catalog; None is ``catalog.db`` in the home.
        endpoint: Hub endpoint; None leaves it to huggingface_hub (``HF_ENDPOINT``).
        token_env: Environment variable that holds the Hub token; None leaves the choice to
            huggingface_hub.
    """

    home: Path
    database_url: str | None = None
    endpoint: str | None = None
    token_env: str | None = None

    @property
    def file(self) -> Path:
        """Path of the config file, whether or not it exists."""
        return self.home / "config.toml"

    @property
    def database(self) -> str | Path:
        """What the catalog opens: the URL, or the SQLite file in the home."""
        return self.database_url or self.home / "catalog.db"

    @property
    def adapters(self) -> Path:
        """Folder of merged and converted adapters."""
        return self.home / "adapters"

    def token(self, token_env: str | None = None) -> str | None:
        """The token in the named (or configured) environment variable, or None without one.

        Raises:
            UsageError: The variable is named but not set.
        """
        name = token_env or self.token_env
        if name is None:
            return None
        value = os.environ.get(name)
        if not value:
            raise UsageError(
                f"environment variable {name} (the Hub token) is not set",
                hint=f"export {name}=hf_..., or drop --token-env to use the stored login",
            )
        return value


def load_config(home: Path | None = None) -> Config:
    """Read the settings in effect.

    Raises:
        UsageError: ``config.toml`` is not TOML, or has an unknown or ill-typed key.
    """
    home = home or _default_home()
    file = home / "config.toml"
    body: dict[str, object] = {}
    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})", hint="correct the file") from error
    settings: dict[str, str | None] = {}
    for key in _KEYS:
        value = os.environ.get(f"LORAHUB_{key.upper()}") or body.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{file}: '{key}' must be a string")
        body.pop(key, None)
        settings[key] = value
    if body:
        raise UsageError(
            f"{file}: unknown key '{min(body)}'", hint=f"known keys: {', '.join(sorted(_KEYS))}"
        )
    return Config(home, **settings)


def _default_home() -> Path:
    if home := os.environ.get("LORAHUB_HOME"):
        return Path(home).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("lorahub", appauthor=False)
