"""Inspect: singular values of every module, and maps of layers by module types."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.markup import escape
from textual.message import Message

from lorahub.errors import LorahubError
from tui import figures, text
from tui.acting import app_of
from tui.actions import bindings
from tui.describe import scored
from tui.jobs import ask
from tui.screens.room import Room
from tui.widgets.page import Page


class InspectScreen(Room):
    """The basket's adapters beside each other, or the one under Browse's cursor."""

    scope = "inspect"
    BINDINGS = bindings("inspect")
    help = "Shades and numbers say the same. All of it is computed from the factors alone."

    class Measured(Message):
        """The figures of some adapters, or why there are none."""

        def __init__(
            self, names: tuple[str, ...], outcome: Mapping[str, Any] | LorahubError
        ) -> None:
            super().__init__()
            self.names, self.outcome = names, outcome

    def __init__(self) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()
        self._found: Mapping[str, Any] | None = None
        self._figure = 0
        self._scored = ""

    def body(self) -> ComposeResult:
        """One scrolling page."""
        yield Page(id="figures", classes="pane", wrap=False)

    def on_screen_resume(self) -> None:
        """Measure what is looked at now, unless it is measured already."""
        if self._targets() != self._names:
            self._measure()
        super().on_screen_resume()

    def _targets(self) -> tuple[str, ...]:
        app = app_of(self)
        live = tuple(i.adapter for i in app.draft.inputs if not i.muted)
        if live:
            return live
        return (app.state.adapter,) if app.state.adapter else ()

    def command(self) -> str:
        """`lorahub compare`, or `lorahub inspect` for one adapter."""
        words = self._words() if self._targets() else ["compare", "--help"]
        return shlex.join(["lorahub", *words])

    def _words(self) -> list[str]:
        names = self._targets()
        return ["inspect" if len(names) == 1 else "compare", *names]

    def _measure(self) -> None:
        self._names, self._found = self._targets(), None
        self.query_one("#figures").border_title = escape(", ".join(self._names))
        if not self._names:
            self._say("Nothing to look into: highlight an adapter in Browse (1), or pick some.")
            return
        self._say("reading the factors ...")
        self._read(self._names, self._words())

    @work(exclusive=True, exit_on_error=False)
    async def _read(self, names: tuple[str, ...], words: list[str]) -> None:
        try:
            app = app_of(self)
            self._scored = await asyncio.to_thread(scored, app.workspace, names)
            self.post_message(self.Measured(names, await ask(app.home, words)))
        except LorahubError as error:
            self.post_message(self.Measured(names, error))

    def on_inspect_screen_measured(self, event: Measured) -> None:
        """Show them, if they are still what is looked at."""
        if event.names != self._names:
            return
        if isinstance(event.outcome, LorahubError):
            self._say(text.spoken(event.outcome))
            return
        self._found = event.outcome
        self._show()

    def _show(self) -> None:
        assert self._found is not None
        figure = list(figures.FIGURES)[self._figure]
        parts = [figures.layer_map(self._found, figure), figures.spectra(self._found)]
        if len(self._names) > 1:
            parts.append(figures.conflicts(self._found))
        parts.append(self._scored)
        self._say("\n\n".join(parts))

    def _say(self, words: str) -> None:
        self.query_one(Page).show(words)

    # Actions

    def why_not(self, name: str) -> str | None:
        """The map needs figures."""
        if name == "figure" and self._found is None:
            return "nothing is measured yet"
        return None

    def do_measure(self) -> None:
        """Again."""
        self._measure()

    def do_figure(self) -> None:
        """The next figure."""
        self._figure = (self._figure + 1) % len(figures.FIGURES)
        self._show()
