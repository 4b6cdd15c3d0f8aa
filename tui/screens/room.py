"""What every screen has: its name in the top bar, its body, the basket and the command line."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen

from tui.acting import Acting, app_of
from tui.widgets.basket_strip import BasketStrip
from tui.widgets.command_line import CommandLine
from tui.widgets.keys_line import KeysLine
from tui.widgets.top_bar import TopBar


class Room(Acting, Screen[None]):
    """A screen of the application; subclasses give a body and the command that does the same."""

    help: str = ""

    def compose(self) -> ComposeResult:
        """Top bar, body, basket, command line, keys."""
        yield TopBar(self.scope)
        with Container(id="body"):
            yield from self.body()
        yield BasketStrip()
        yield CommandLine()
        yield KeysLine()

    def body(self) -> ComposeResult:
        """The screen's own widgets."""
        raise NotImplementedError

    def command(self) -> str:
        """The command line that does what the screen shows."""
        return "lorahub"

    def say_command(self) -> None:
        """Show the command line that does the same."""
        if self.is_current:
            app_of(self).command = self.command()

    def on_screen_resume(self) -> None:
        """The command line is the screen's own again."""
        self.say_command()
