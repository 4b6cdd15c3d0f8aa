"""A question before what cannot be undone; it names the objects and the command."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Button, Static

from tui import text
from tui.screens.dialog import Dialog


class ConfirmDialog(Dialog[bool]):
    """True is the answer of who says yes; the first button is no."""

    def __init__(self, title: str, consequence: str, command: str) -> None:
        super().__init__(title)
        self._consequence, self._command = consequence, command

    def body(self) -> ComposeResult:
        """What will happen, and the choice."""
        yield Static(text.shown(self._consequence))
        yield Static(text.shown(f"$ {self._command}"), classes="command")
        with Horizontal(classes="buttons"):
            yield Button("No", id="no")
            yield Button("Yes", id="yes", variant="error")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(event.button.id == "yes")
