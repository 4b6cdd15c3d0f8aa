"""The detail pane of one adapter: facts, modules, card, lineage."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

from tui import text
from tui.describe import Description

TABS = ("facts", "modules", "card", "lineage")


class Detail(Vertical):
    """Shows a description; the tab in sight stays while the cursor moves."""

    def __init__(self) -> None:
        super().__init__(id="detail")
        self._shown: Description | None = None

    def compose(self) -> ComposeResult:
        """One scrolling pane a tab."""
        with TabbedContent():
            for tab in TABS:
                with TabPane(tab.title(), id=tab), VerticalScroll():
                    yield Static(id=f"detail-{tab}")

    def on_mount(self) -> None:
        """Begin empty."""
        self.show(None)

    def show(self, description: Description | None) -> None:
        """Show another adapter, or none."""
        if description == self._shown and description is not None:
            return
        self._shown = description
        for tab in TABS:
            self.query_one(f"#detail-{tab}", Static).update(self._content(tab))

    def _content(self, tab: str) -> Text | Table:
        if self._shown is None:
            return Text("")
        if tab == "facts":
            description = self._shown
            first = [("name", description.name), ("damaged", description.problem)]
            return text.facts([*first, *description.facts])
        if tab == "modules":
            return text.shown(self._shown.modules, wrap=False)
        return text.shown(self._shown.card if tab == "card" else self._shown.lineage)
