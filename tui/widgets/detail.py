"""The detail pane of one adapter: facts, modules, card, lineage."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

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
            return _facts(self._shown)
        if tab == "modules":
            return Text(self._shown.modules, no_wrap=True)
        return Text(self._shown.card if tab == "card" else self._shown.lineage)


def _facts(description: Description) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("name", Text(description.name))
    if description.problem:
        table.add_row("damaged", Text(description.problem))
    for key, value in description.facts:
        table.add_row(key, Text(value))
    return table
