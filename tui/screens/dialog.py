"""What every dialog has: a frame, a title, and escape to leave it."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui import text
from tui.acting import Working

Answer = TypeVar("Answer")


class Dialog(Working, ModalScreen[Answer | None], Generic[Answer]):
    """A question over the screen; None is the answer of who leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave")]

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        """The frame around the dialog's own widgets."""
        with VerticalScroll(id="dialog", can_focus=False):
            yield Static(text.shown(self._title), classes="dialog-title")
            yield from self.body()

    def body(self) -> ComposeResult:
        """The dialog's own widgets."""
        raise NotImplementedError

    def action_leave(self) -> None:
        """No answer."""
        self.dismiss(None)
