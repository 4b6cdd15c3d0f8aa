"""Settings: where lorahub keeps its things and which Hubs it speaks to.

Environment variables win over ``config.toml``, which wins over the defaults. ``LORAHUB_HOME``
moves the catalog, the merged adapters and the config file together::

    endpoint = "https://huggingface.co"
    token_env = "HF_TOKEN"

    [remotes.lab]
    endpoint = "https://hub.lab.example"
    token_env = "LAB_TOKEN"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorahub.errors import UsageError

_KEYS = {"database_url", "endpoint", "token_env"}
_DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Remote:
    """A Hub beside the default one; without ``token_env`` no token is ever sent to it."""

    endpoint: str
    token_env: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """Effective settings.

    Attributes:
        home: Folder of the catalog, the merged adapters and ``config.toml``.
        database_url: SQLAlchemy URL of the catalog; None is ``catalog.db`` in the home.
        endpoint: Hub endpoint; None leaves it to huggingface_hub (``HF_ENDPOINT``).
        token_env: Environment variable that holds the Hub token; None leaves the choice to
            huggingface_hub.
        remotes: Further Hubs by name.
    """

    home: Path
    database_url: str | None = field(default=None, repr=False)  # it may hold a password
    endpoint: str | None = None
    token_env: str | None = None
    remotes: Mapping[str, Remote] = field(default_factory=dict)

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

    def remote(self, name: str) -> Remote:
        """The Hub of that name.

        Raises:
            UsageError: There is none.
        """
        if name not in self.remotes:
            known = ", ".join(sorted(self.remotes)) or "none"
            raise UsageError(
                f"there is no remote '{name}'",
                hint=f"add [remotes.{name}] with its endpoint to {self.file}; known: {known}",
            )
        return self.remotes[name]

    def token_at(self, endpoint: str) -> str | bool | None:
        """The token for a Hub named by its address: False, send none, where none is meant for it.

        Raises:
            UsageError: The variable that holds it is not set.
        """
        if endpoint.rstrip("/") == self._default_endpoint:
            return self.token()
        for remote in self.remotes.values():
            if remote.endpoint == endpoint.rstrip("/") and remote.token_env:
                return self.token(remote.token_env)
        return False

    def expand(self, reference: str) -> str:
        """A reference in which the name of a remote has become its address.

        ``lab://owner/name`` becomes ``https://hub.lab.example/owner/name``; an address at the
        default Hub becomes ``hf://owner/name``; anything else stays as it is.

        Raises:
            UsageError: There is neither such a remote nor such a kind of store.
        """
        match = re.match(r"([A-Za-z][\w-]*)://", reference)
        if match is None or match[1] == "hf":
            return reference
        if match[1] not in {"http", "https"}:
            if match[1] not in self.remotes and _is_store(match[1]):
                return reference
            return f"{self.remote(match[1]).endpoint}/{reference[match.end() :]}"
        here = f"{self._default_endpoint}/"
        if reference.startswith(here):
            return "hf://" + reference.removeprefix(here).replace("/tree/", "@", 1)
        return reference

    @property
    def _default_endpoint(self) -> str:
        given = self.endpoint or os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT
        return given.rstrip("/")


def load_config(home: Path | None = None) -> Config:
    """Read the settings in effect.

    Raises:
        UsageError: The home is no folder, or ``config.toml`` is not TOML or has an unknown or
            ill-typed key.
    """
    home = home or _default_home()
    file = home / "config.toml"
    body: dict[str, object] = {}
    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except NotADirectoryError as error:
        raise UsageError(
            f"{home}: is not a folder", hint="set LORAHUB_HOME to a folder you may write to"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})", hint="correct the file") from error
    settings: dict[str, str | None] = {}
    for key in _KEYS:
        value = os.environ.get(f"LORAHUB_{key.upper()}") or body.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{file}: '{key}' must be a string")
        body.pop(key, None)
        settings[key] = value
    remotes = _remotes(body.pop("remotes", {}), file)
    if body:
        raise UsageError(
            f"{file}: unknown key '{min(body)}'",
            hint=f"known keys: {', '.join(sorted(_KEYS | {'remotes'}))}",
        )
    return Config(home, **settings, remotes=remotes)


def _remotes(body: object, file: Path) -> dict[str, Remote]:
    if not isinstance(body, dict):
        raise UsageError(f"{file}: 'remotes' must be tables", hint="write [remotes.NAME]")
    remotes = {}
    for name, settings in body.items():
        where = f"{file}, [remotes.{name}]"
        if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) or name in {"hf", "http", "https"}:
            raise UsageError(
                f"{where}: cannot be the name of a remote",
                hint="begin with a letter, use letters, digits, '-' and '_'; hf is the default Hub",
            )
        if not isinstance(settings, dict) or not settings.keys() <= {"endpoint", "token_env"}:
            raise UsageError(f"{where}: takes endpoint and token_env only")
        endpoint, token_env = settings.get("endpoint"), settings.get("token_env")
        if not isinstance(endpoint, str) or not re.fullmatch(r"https?://[^\s@]+", endpoint):
            raise UsageError(f"{where}: 'endpoint' must be an address", hint="https://HOST")
        if token_env is not None and not isinstance(token_env, str):
            raise UsageError(f"{where}: 'token_env' must be the name of a variable")
        remotes[name] = Remote(endpoint.rstrip("/"), token_env)
    return remotes


def _default_home() -> Path:
    if home := os.environ.get("LORAHUB_HOME"):
        return Path(home).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("lorahub", appauthor=False)


def _is_store(scheme: str) -> bool:
    """Whether fsspec knows a kind of store by that name."""
    import fsspec

    return scheme.lower() in fsspec.available_protocols()
