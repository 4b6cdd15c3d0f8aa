"""The detail pane of one adapter: facts, modules, card, lineage, and what is similar."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import TabbedContent, TabPane

from tui.describe import Description
from tui.widgets.page import Page

TABS = ("facts", "modules", "card", "lineage")
SIMILAR = "similar"
"""The tab that is filled by a search, which is not made before somebody looks."""


class Detail(Vertical):
    """Shows a description; the tab in sight stays while the cursor moves."""

    def __init__(self) -> None:
        super().__init__(id="detail")

    def compose(self) -> ComposeResult:
        """One scrolling page a tab."""
        with TabbedContent():
            for tab in (*TABS, SIMILAR):
                with TabPane(tab.title(), id=tab):
                    yield Page(id=f"detail-{tab}", wrap=tab not in {"modules", SIMILAR})

    def show(self, description: Description | None) -> None:
        """Show another adapter, or none."""
        if description is None:
            for page in self.query(Page):
                page.show("")
            return
        first = [("name", description.name), ("problem", description.problem)]
        self._page("facts").show_facts([*first, *description.facts])
        for tab in TABS[1:]:
            self._page(tab).show(getattr(description, tab))

    @property
    def seeks_similar(self) -> bool:
        """Whether the tab of similar adapters is in sight."""
        return self.query_one(TabbedContent).active == SIMILAR

    def show_similar(self, words: str) -> None:
        """Show what is similar, or why that is not known."""
        self._page(SIMILAR).show(words)

    def _page(self, tab: str) -> Page:
        return self.query_one(f"#detail-{tab}", Page)
