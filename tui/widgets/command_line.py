"""The line that teaches: the command that does what the screen does."""

from __future__ import annotations

from textual.widgets import Static

from tui import text
from tui.acting import app_of


class CommandLine(Static):
    """Shows the application's present command."""

    def __init__(self) -> None:
        super().__init__(id="command-line")

    def on_mount(self) -> None:
        """Follow the command."""
        self.watch(app_of(self), "command", self._show)

    def _show(self, command: str) -> None:
        self.update(text.shown(f"$ {command}", wrap=False), layout=False)
