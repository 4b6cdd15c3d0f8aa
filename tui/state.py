"""What the application remembers between two starts, and the user's own keys."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tui.actions import ACTIONS, binding_id

STATE_NAME = "tui.json"
KEYMAP_NAME = "keymap.toml"


@dataclass(frozen=True, slots=True)
class State:
    """Where the user was.

    Attributes:
        theme: Name of the theme.
        screen: Name of the screen.
        filter: The filter as it was typed.
        sort: Key the adapters are sorted by.
        descending: Whether in descending order.
        adapter: Name of the adapter under the cursor.
        facets: Whether the facets are shown.
        details: Whether the detail pane is shown.
        recipe: The recipe being composed, as plain data.
        muted: Its inputs that are left out for now, as plain data.
    """

    theme: str = "lorahub-dark"
    screen: str = "browse"
    filter: str = ""
    sort: str = "name"
    descending: bool = False
    adapter: str = ""
    facets: bool = True
    details: bool = True
    recipe: dict[str, Any] = field(default_factory=dict)
    muted: list[dict[str, Any]] = field(default_factory=list)


def load_state(home: Path) -> State:
    """The state at the last end; what is missing, unreadable or of another type has its default."""
    try:
        body = json.loads((home / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return State()
    if not isinstance(body, dict):
        return State()
    default = State()
    known = {
        f.name: body[f.name]
        for f in fields(State)
        if type(body.get(f.name)) is type(getattr(default, f.name))
    }
    return State(**known)


def save_state(home: Path, state: State) -> None:
    """Write the state whole; where that is impossible, the next start has the older one."""
    partial = home / f"{STATE_NAME}.{os.getpid()}"
    try:
        partial.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        partial.replace(home / STATE_NAME)
    except OSError:
        partial.unlink(missing_ok=True)


def load_keymap(home: Path) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The user's keys by binding id, and what is wrong with the file, in words.

    ``keymap.toml`` says ``"browse.pick" = "b"``, or several keys as ``"b,space"``.
    """
    file = home / KEYMAP_NAME
    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError) as error:
        return {}, (f"{file}: cannot be read ({error}); the usual keys are used",)
    known = {binding_id(action) for action in ACTIONS}
    keys = {k: v for k, v in body.items() if k in known and isinstance(v, str) and v}
    wrong = [k for k in body if k not in keys]
    return keys, tuple(
        f'{file}: \'{k}\' is left out; write an action of the help as "SCREEN.ACTION" = "KEY"'
        for k in wrong
    )
