"""The keys of the screen in sight and of its pane, made from the registry."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Static

from tui.actions import binding_id, of_scope
from tui.screens.dialog import Dialog
from tui.screens.room import Room

SPELLED = {"question_mark": "?", "slash": "/", "plus": "+", "minus": "-", "equals_sign": "="}


class HelpDialog(Dialog[None]):
    """Focused pane first, then the screen, then what applies everywhere."""

    def __init__(self, screen: Screen[Any]) -> None:
        super().__init__("Help")
        scope = screen.scope if isinstance(screen, Room) else ""
        focused = screen.focused
        pane = getattr(focused, "scope", "")
        self._scopes = [s for s in (pane, scope, "app") if s]
        self._words = screen.help if isinstance(screen, Room) else ""

    def body(self) -> ComposeResult:
        """One table a scope."""
        if self._words:
            yield Static(Text(self._words))
        keymap = self.app._keymap  # noqa: SLF001 - textual has a setter only
        for scope in self._scopes:
            table = Table.grid(padding=(0, 2))
            for action in of_scope(scope):
                keys = keymap.get(binding_id(action), action.keys)
                spelled = " ".join(SPELLED.get(k, k) for k in keys.split(","))
                table.add_row(Text(spelled, style="bold"), Text(action.help))
            yield Static(Text(f"\n{scope.title()}", style="bold underline"))
            yield Static(table)
        yield Static(Text("\nEscape leaves anything. keymap.toml in the data folder changes keys."))
