"""A question with one line for an answer."""

from __future__ import annotations

import shlex

from textual.app import ComposeResult
from textual.widgets import Input, Static

from tui import text
from tui.screens.dialog import Dialog


class AskDialog(Dialog[str]):
    """The answer is what was typed; the command it makes is shown meanwhile."""

    def __init__(self, title: str, placeholder: str, command: str = "", value: str = "") -> None:
        super().__init__(title)
        self._placeholder, self._command, self._value = placeholder, command, value

    def body(self) -> ComposeResult:
        """The line."""
        yield Input(self._value, placeholder=self._placeholder)
        if self._command:
            yield Static(id="made", classes="command")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show the command."""
        if self._command:
            line = f"$ {self._command} {shlex.quote(event.value)}" if event.value else ""
            self.query_one("#made", Static).update(text.shown(line))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter answers."""
        self.dismiss(event.value.strip() or None)
