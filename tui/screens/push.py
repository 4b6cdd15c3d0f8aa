"""Publish an adapter on the Hub: a dry run first, which shows what would be done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Button, Checkbox, Input, Static
from textual.worker import get_current_worker

from lorahub.errors import LorahubError
from tui import text
from tui.acting import app_of
from tui.jobs import ask
from tui.screens.dialog import Dialog
from tui.widgets.tick import Tick

PLACEHOLDER = "owner/name"


class PushDialog(Dialog[bool]):
    """True once the job is asked for."""

    class Tried(Message):
        """What the dry run said, or why it failed."""

        def __init__(self, outcome: Mapping[str, Any] | LorahubError) -> None:
            super().__init__()
            self.outcome = outcome

    def __init__(self, name: str) -> None:
        super().__init__(f"Push {name} to the Hub")
        self._adapter = name

    def body(self) -> ComposeResult:
        """Where to, how, the dry run and the command."""
        yield Input(placeholder=PLACEHOLDER, id="repository")
        with Horizontal(classes="choices"):
            yield Tick("private", True, id="private")
            yield Tick("as a pull request", False, id="create-pr")
        yield Static("Dry run shows what would be uploaded.", id="outcome")
        yield Static(id="made", classes="command")
        with Horizontal(classes="buttons"):
            yield Button("Cancel", id="no")
            yield Button("Dry run", id="try", variant="primary")
            yield Button("Push", id="yes", variant="warning", disabled=True)

    def on_mount(self) -> None:
        """Show the command."""
        self._changed()

    def _words(self) -> list[str]:
        words = ["push", self._adapter, self.query_one("#repository", Input).value.strip()]
        options = ("private", "create-pr")
        chosen = [o for o in options if self.query_one(f"#{o}", Checkbox).value]
        return words + [f"--{option}" for option in chosen]

    def _changed(self) -> None:
        push, name, repository, *options = self._words()
        line = f"$ lorahub {shlex.join([push, name, repository or PLACEHOLDER, *options])}"
        self.query_one("#made", Static).update(text.shown(line))
        self.query_one("#yes", Button).disabled = True

    def on_input_changed(self) -> None:
        """What was tried is not what would be done now."""
        self._changed()

    def on_checkbox_changed(self) -> None:
        """Likewise."""
        self._changed()

    def on_input_submitted(self) -> None:
        """Enter tries."""
        self._try()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Cancel, try, or push."""
        if event.button.id == "try":
            self._try()
        elif event.button.id == "yes":
            title = f"push {self._adapter} to {self._words()[2]}"
            app_of(self).submit([*self._words(), "--json"], title)
            self.dismiss(True)
        else:
            self.dismiss(None)

    def _try(self) -> None:
        if not self._words()[2]:
            self._say("name a repository as owner/name")
            return
        self._say("asking the Hub ...")
        self._dry_run([*self._words(), "--dry-run"])

    @work(exclusive=True, exit_on_error=False)
    async def _dry_run(self, words: list[str]) -> None:
        try:
            outcome = await ask(app_of(self).home, words)
        except LorahubError as error:
            outcome = error
        if not get_current_worker().is_cancelled:
            self.post_message(self.Tried(outcome))

    def on_push_dialog_tried(self, event: Tried) -> None:
        """Show the outcome; a push can follow a dry run that went well."""
        if isinstance(event.outcome, LorahubError):
            self._say(text.spoken(event.outcome))
            return
        self._say("\n".join(f"{k}: {_plain(v)}" for k, v in event.outcome.items() if v))
        self.query_one("#yes", Button).disabled = False

    def _say(self, words: str) -> None:
        self.query_one("#outcome", Static).update(text.shown(words))


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "".join(f"\n  {_plain(v)}" for v in value)
    return value if isinstance(value, str) else json.dumps(value)
