"""Browse: the adapters of the catalog, filtered as you type, and what each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.markup import escape
from textual.widgets import Input

from store import AdapterSummary
from store.listing import SORTS
from tui import listing
from tui.acting import app_of
from tui.actions import bindings
from tui.basket import why_not_row
from tui.listing import Entry
from tui.query import Query, parse, toggled
from tui.screens.browse_deeds import BrowseDeeds
from tui.screens.browse_reading import BrowseReading
from tui.widgets.detail import Detail
from tui.widgets.facets import Facets
from tui.widgets.paged_table import PagedTable, Row

OF_A_ROW = {"pick", "export", "push", "remove", "copy", "look", "verify"}


class BrowseScreen(BrowseDeeds):
    """The home screen."""

    scope = "browse"
    BINDINGS = bindings("browse")
    help = "Type / and words, or conditions such as rank:8..16 base:llama source:merge."

    def __init__(self) -> None:
        super().__init__()
        self.filter = Query()
        self._restoring = True
        self._problems: dict[str, str] = {}
        self._figures: tuple[str, ...] = ()
        self._figure: str | None = None

    def body(self) -> ComposeResult:
        """Facets, the filter over the table, details."""
        yield Input(placeholder="filter: words, rank:8..16, base:llama ...", id="filter")
        with Horizontal(id="browse"):
            yield Facets()
            with Vertical(id="browse-main"):
                yield PagedTable(listing.COLUMNS, id="adapters")
                yield Detail()

    def on_mount(self) -> None:
        """Show what was shown at the last end."""
        state = app_of(self).state
        self.query_one(Facets).set_class(not state.facets, "-hidden")
        self.query_one(Detail).set_class(not state.details, "-hidden")
        line = self.query_one("#filter", Input)
        with line.prevent(Input.Changed):
            line.value = state.filter
        self.filter = parse(state.filter)
        self.table.focus()
        self.watch(app_of(self), "basket", self._mark, init=False)
        self.watch(app_of(self), "draft", self._mark, init=False)
        self.load()

    @property
    def table(self) -> PagedTable:
        """The adapters."""
        return self.query_one("#adapters", PagedTable)

    @property
    def row(self) -> AdapterSummary | None:
        """The adapter under the cursor."""
        row = self.table.row
        return row.value.summary if row is not None else None

    def load(self) -> None:
        """Read the first page anew."""
        state = app_of(self).state
        self.read_list(self.filter, state.sort, descending=state.descending)
        self.say_command()

    def command(self) -> str:
        """`lorahub ls` or `lorahub search`."""
        state = app_of(self).state
        return self.filter.command(state.sort, descending=state.descending)

    def on_browse_reading_listed(self, event: BrowseReading.Listed) -> None:
        """Show the first page and the counts."""
        state = app_of(self).state
        if (event.query, event.sort) != (self.filter, state.sort):
            return
        self.table.empty = listing.NONE_MATCH if event.query.text else listing.EMPTY
        names = [entry.summary.name for entry in event.rows]
        wanted = state.adapter if self._restoring or not self.row else self.row.name
        self._restoring = False
        cursor = names.index(wanted) if wanted in names else 0
        self._figure = listing.figure_shown(event.query, event.sort)
        shown = listing.columns(self._figure)
        self.table.reset(event.count, self._rows(event.rows), cursor=cursor, columns=shown)
        order = f"by {state.sort}{' (reversed)' if state.descending else ''}"
        order = "best first" if event.query.words else order
        self.table.border_title = escape(f"{event.count:,} {order}")
        problem = event.query.problem
        self.table.border_subtitle = escape(problem) if problem else None
        self.query_one("#filter", Input).set_class(problem is not None, "-invalid")

    def on_browse_reading_counted(self, event: BrowseReading.Counted) -> None:
        """Show the facets."""
        self._figures = tuple(event.figures)
        if event.query == self.filter:
            self.query_one(Facets).show(event.facets, event.query.text)

    def on_browse_reading_paged(self, event: BrowseReading.Paged) -> None:
        """Put a page into the table."""
        self.table.put(event.first, self._rows(event.rows), event.generation)

    def on_browse_reading_described(self, event: BrowseReading.Described) -> None:
        """Show the details, if the cursor is still there; a damaged adapter says so in its row."""
        name, problem = event.description.name, event.description.problem
        if self._problems.get(name, "") != problem:
            self._problems[name] = problem
            self._mark()
        if self.row is None or self.row.name != name:
            return
        detail = self.query_one(Detail)
        detail.show(event.description)
        self._seek_similar()

    def on_tabbed_content_tab_activated(self) -> None:
        """What is similar is sought once somebody looks."""
        self._seek_similar()

    def _seek_similar(self) -> None:
        detail = self.query_one(Detail)
        if self.row is not None and detail.seeks_similar:
            detail.show_similar(f"$ lorahub similar {self.row.name}\n\ncomparing ...")
            self.read_similar(self.row.name)

    def on_browse_reading_resembled(self, event: BrowseReading.Resembled) -> None:
        """Show what is similar, if the cursor is still there."""
        if self.row is not None and self.row.name == event.name:
            shown = f"$ lorahub similar {event.name}\n\n{event.words}"
            self.query_one(Detail).show_similar(shown)

    def on_browse_reading_refused(self, event: BrowseReading.Refused) -> None:
        """Say why it cannot be in the basket, and take it out again."""
        app_of(self).notify(event.reason, severity="warning", timeout=6, markup=False)
        self._take_out(event.name)

    def on_catalog_changed(self) -> None:
        """Read again."""
        self.load()

    def _rows(self, rows: Sequence[Entry]) -> list[Row]:
        basket, named = app_of(self).basket, set(self._basket())
        known = self._problems
        return [
            listing.row(
                replace(r, problem=r.problem or known.get(r.summary.name, "")),
                basket,
                picked=r.summary.name in named,
                figure=self._figure is not None,
            )
            for r in rows
        ]

    def _basket(self) -> list[str]:
        return [i.adapter for i in app_of(self).draft.inputs]

    def _take_out(self, name: str) -> None:
        app = app_of(self)
        app.edit(app.draft.with_adapters(n for n in self._basket() if n != name))

    def _mark(self) -> None:
        """Draw marks and reasons anew after the basket changed."""
        for index, row in self.table.loaded():
            self.table.update(index, self._rows([row.value])[0])

    def on_paged_table_wanted(self, event: PagedTable.Wanted) -> None:
        """Read the page."""
        self.read_page(self.filter, event.first, event.generation)

    def on_paged_table_highlighted(self, event: PagedTable.Highlighted) -> None:
        """Describe the adapter."""
        if event.row is not None:
            app = app_of(self)
            app.state = replace(app.state, adapter=event.row.value.summary.name)
            self.read_description(event.row.value.summary.name)
        else:
            self.query_one(Detail).show(None)

    def on_paged_table_opened(self) -> None:
        """Enter goes to the details."""
        self.query_one(Detail).remove_class("-hidden").query_one("Tabs").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as you type."""
        self.filter = parse(event.value)
        app_of(self).remember(filter=event.value)
        self.load()

    def on_input_submitted(self) -> None:
        """Enter in the filter goes to the table."""
        self.table.focus()

    def on_facets_chosen(self, event: Facets.Chosen) -> None:
        """A facet is a condition of the filter line."""
        line = self.query_one("#filter", Input)
        line.value = toggled(line.value, event.key, event.value)

    def on_browse_reading_removed(self) -> None:
        """Read again, here and elsewhere."""
        app_of(self).announce_change()

    def why_not(self, name: str) -> str | None:
        """Most actions need an adapter under the cursor."""
        if name in OF_A_ROW and self.row is None:
            return "no adapter is here: pull one (L), or clear the filter (escape)"
        if name in {"sort", "reverse"} and self.filter.words:
            return "words find the best first: clear them (escape) to sort"
        if name in {"use", "empty"} and not self._basket():
            return "the basket is empty: space puts an adapter in"
        if name == "verify" and self.row is not None and self.row.source != "merge":
            return f"{self.row.name} is not the result of a merge: there is nothing to verify"
        return None

    def do_filter(self) -> None:
        """To the filter line."""
        self.query_one("#filter", Input).focus()

    def do_clear_filter(self) -> None:
        """An empty filter, or only back to the table from elsewhere."""
        if self.table.has_focus or self.query_one("#filter").has_focus:
            self.query_one("#filter", Input).value = ""
        self.table.focus()

    def do_pick(self) -> None:
        """Into the basket, or out of it."""
        app, name, basket = app_of(self), self.chosen, self._basket()
        if name in basket:
            self._take_out(name)
            return
        # It is there before the next key comes; what its row does not tell is found out after.
        if self.row is not None and why_not_row(self.row, app.basket) is None:
            app.edit(app.draft.with_adapters([*basket, name]))
        self.check_pick(name, basket)

    def do_use(self) -> None:
        """To Compose."""
        app_of(self).action_do("compose")

    def do_empty(self) -> None:
        """Nothing in the basket."""
        app_of(self).edit(app_of(self).draft.with_adapters(()))

    def do_sort(self) -> None:
        """By the next key."""
        keys, app = [*SORTS, *self._figures], app_of(self)
        at = keys.index(app.state.sort) if app.state.sort in keys else -1
        app.remember(sort=keys[(at + 1) % len(keys)])
        self.load()

    def do_reverse(self) -> None:
        """The other way round."""
        app_of(self).remember(descending=not app_of(self).state.descending)
        self.load()

    def do_facets(self) -> None:
        """To the facets; from there, away with them."""
        facets = self.query_one(Facets)
        showing = not facets.has_focus
        facets.set_class(not showing, "-hidden")
        facets.set_class(showing, "-forced")
        (facets if showing else self.table).focus()
        app_of(self).remember(facets=showing)

    def do_details(self) -> None:
        """Show or hide the details."""
        detail = self.query_one(Detail)
        detail.toggle_class("-hidden")
        app_of(self).remember(details=not detail.has_class("-hidden"))
