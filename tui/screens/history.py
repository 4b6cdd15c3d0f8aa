"""History: every merge with its recipe, its result and how well it was verified."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message

from lorahub.errors import LorahubError
from store import Run
from tui import text
from tui.acting import app_of
from tui.actions import bindings
from tui.draft import from_body
from tui.messages import Complaint
from tui.runs import described, difference, record_of, span_of
from tui.screens.push import PushDialog
from tui.screens.room import Room
from tui.widgets.page import Page
from tui.widgets.paged_table import PAGE, Column, PagedTable, Row

COLUMNS = (
    Column("result", 0),
    Column("method", 14, importance=5),
    Column("state", 11, importance=8),
    Column("started", 16, importance=3),
    Column("took", 9, importance=2, right=True),
    Column("error", 8, importance=6, right=True),
)
EMPTY = "No merge has been made yet.\nCompose (2) makes one from the basket."


class HistoryScreen(Room):
    """The runs of the catalog, newest first."""

    scope = "history"
    BINDINGS = bindings("history")
    help = "space marks a run; space on another one shows how the two differ."

    class Read(Message):
        """A page of runs."""

        def __init__(self, first: int, count: int, runs: Sequence[Run], generation: int) -> None:
            super().__init__()
            self.first, self.count, self.runs, self.generation = first, count, runs, generation

    def __init__(self) -> None:
        super().__init__()
        self._marked: Run | None = None

    def body(self) -> ComposeResult:
        """The runs and the one under the cursor."""
        with Horizontal(id="history"):
            yield PagedTable(COLUMNS, id="runs")
            yield Page(id="run-detail", classes="pane")

    def on_mount(self) -> None:
        """Read them."""
        self.runs.empty = EMPTY
        self.runs.focus()
        self._read(0, -1)

    @property
    def runs(self) -> PagedTable:
        """The table of runs."""
        return self.query_one("#runs", PagedTable)

    @property
    def run(self) -> Run | None:
        """The run under the cursor."""
        row = self.runs.row
        return row.value if row is not None else None

    def command(self) -> str:
        """The merge of the recipe beside the result, or of a copy where there is no result."""
        run = self.run
        if run is None:
            return "lorahub merge --help"
        folder = Path(run.target) if run.state == "finished" else Path()
        return shlex.join(["lorahub", "merge", str(folder / "recipe.yaml")])

    @work(thread=True, exit_on_error=False)
    def _read(self, first: int, generation: int) -> None:
        catalog = app_of(self).workspace.catalog
        try:
            catalog.sweep_dead_runs()
            runs = catalog.runs(limit=PAGE, offset=first)
            count = catalog.count_runs()
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        self.post_message(self.Read(first, count, runs, generation))

    def on_history_screen_read(self, event: Read) -> None:
        """Show them."""
        rows = [self._row(run) for run in event.runs]
        if event.generation < 0:
            self.runs.reset(event.count, rows, cursor=self.runs.cursor)
            self.runs.border_title = text.plural(event.count, "run")
        else:
            self.runs.put(event.first, rows, event.generation)

    def _row(self, run: Run) -> Row:
        check = record_of(run).get("verification") or {}
        cells = (
            Path(run.target).name,
            run.method,
            run.state,
            run.started_at[:16].replace("T", " "),
            span_of(run),
            f"{check['worst_error']:.0e}" if check else "-",
        )
        marked = self._marked is not None and self._marked.id == run.id
        mark = "●" if marked else " " if run.state in {"finished", "running"} else "!"
        return Row(run, cells, mark, dim=run.state in {"failed", "interrupted"})

    def on_catalog_changed(self) -> None:
        """Read again."""
        self._read(0, -1)

    def on_screen_resume(self) -> None:
        """Runs may have ended meanwhile."""
        super().on_screen_resume()
        self._read(0, -1)

    def on_paged_table_wanted(self, event: PagedTable.Wanted) -> None:
        """Older runs."""
        self._read(event.first, event.generation)

    def on_paged_table_highlighted(self) -> None:
        """Describe another one, or how it differs from the marked one."""
        run = self.run
        shown = ""
        if run is not None:
            compared = self._marked is not None and self._marked.id != run.id
            shown = difference(self._marked, run) if compared and self._marked else described(run)
        self.query_one(Page).show(shown)
        self.say_command()

    # Actions

    def why_not(self, name: str) -> str | None:
        """Actions need a run, most of them its recipe."""
        run = self.run
        if run is None:
            return "there is no run"
        if name in {"again", "edit", "copy"} and not run.recipe:
            return "its recipe was not kept: see recipe.yaml in the result's folder"
        if name in {"push", "open_folder"} and run.state != "finished":
            return f"it is {run.state}: there is no result"
        return None

    def do_diff(self) -> None:
        """Mark it, or take the mark away."""
        run = self.run
        same = self._marked is not None and run is not None and self._marked.id == run.id
        self._marked = None if same else run
        for index, row in self.runs.loaded():
            self.runs.update(index, self._row(row.value))
        self.on_paged_table_highlighted()

    def do_again(self) -> None:
        """As a job; the same inputs give the same bytes."""
        assert self.run is not None
        name = Path(self.run.target).name
        words = ["merge", "RECIPE", "--events", "jsonl"]
        app_of(self).submit(words, f"merge {name}", self.run.recipe)

    def do_edit(self) -> None:
        """Into Compose; what was there can be had back by undo."""
        assert self.run is not None
        try:
            draft = from_body(yaml.safe_load(self.run.recipe))
        except (LorahubError, yaml.YAMLError) as error:
            self.app.notify(f"the recipe cannot be read: {error}", severity="error", markup=False)
            return
        app_of(self).edit(draft.with_name(""))
        app_of(self).action_do("compose")

    def do_push(self) -> None:
        """Ask where to."""
        assert self.run is not None
        self.app.push_screen(PushDialog(Path(self.run.target).name))

    def do_open_folder(self) -> None:
        """In the desktop's own way; its path goes to the clipboard, for where there is none."""
        assert self.run is not None
        app_of(self).copy(self.run.target)
        self.app.open_url(Path(self.run.target).as_uri())

    def do_copy(self) -> None:
        """The recipe."""
        assert self.run is not None
        app_of(self).copy(self.run.recipe)
