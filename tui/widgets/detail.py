"""The detail pane of one adapter: facts, modules, card, lineage."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import TabbedContent, TabPane

from tui.describe import Description
from tui.widgets.page import Page

TABS = ("facts", "modules", "card", "lineage")


class Detail(Vertical):
    """Shows a description; the tab in sight stays while the cursor moves."""

    def __init__(self) -> None:
        super().__init__(id="detail")

    def compose(self) -> ComposeResult:
        """One scrolling page a tab."""
        with TabbedContent():
            for tab in TABS:
                with TabPane(tab.title(), id=tab):
                    yield Page(id=f"detail-{tab}", wrap=tab != "modules")

    def show(self, description: Description | None) -> None:
        """Show another adapter, or none."""
        if description is None:
            for page in self.query(Page):
                page.show("")
            return
        first = [("name", description.name), ("damaged", description.problem)]
        self._page("facts").show_facts([*first, *description.facts])
        for tab in TABS[1:]:
            self._page(tab).show(getattr(description, tab))

    def _page(self, tab: str) -> Page:
        return self.query_one(f"#detail-{tab}", Page)
