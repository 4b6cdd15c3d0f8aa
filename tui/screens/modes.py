"""The screens by name; each is imported when it is first shown, so that the first comes fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from textual.screen import Screen

NAMES = ("browse", "compose", "run", "history", "inspect", "remote")


def _make(name: str) -> Screen[Any]:
    module = import_module(f"tui.screens.{name}")
    screen: Screen[Any] = getattr(module, f"{name.title()}Screen")()
    return screen


MODES: dict[str, str | Callable[[], Screen[Any]]] = {n: partial(_make, n) for n in NAMES}
