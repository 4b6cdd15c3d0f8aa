"""Jump mode: a letter on every pane that can have the focus; typing it goes there."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Key
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Label

LETTERS = "asdfghjklqwertyuiopzxcvbnm"


class JumpDialog(ModalScreen[Widget | None]):
    """Answers the widget that was chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave")]

    def __init__(self, screen: Screen[Any]) -> None:
        super().__init__()
        seen = [w for w in screen.focus_chain if w.region.area]
        self._targets = dict(zip(LETTERS, seen, strict=False))

    def compose(self) -> ComposeResult:
        """One label a pane, in its corner."""
        for letter, widget in self._targets.items():
            label = Label(f" {letter} ", classes="jump")
            label.absolute_offset = widget.region.offset
            yield label

    def on_key(self, event: Key) -> None:
        """Go there."""
        if event.key in self._targets:
            event.stop()
            self.dismiss(self._targets[event.key])

    def action_leave(self) -> None:
        """Stay."""
        self.dismiss(None)
