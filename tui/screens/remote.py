"""Remote: adapters on the Hub, by what their headers say, and pulling them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.markup import escape
from textual.message import Message
from textual.widgets import Input

from lorahub.errors import LorahubError
from tui import text
from tui.acting import app_of
from tui.actions import bindings
from tui.job import Job
from tui.jobs import ask
from tui.query import pairs
from tui.screens.room import Room
from tui.widgets.page import Page
from tui.widgets.paged_table import Column, PagedTable, Row

COLUMNS = (
    Column("repository", 0),
    Column("base", 20, importance=5),
    Column("r", 6, importance=8, right=True),
    Column("targets", 14, importance=1),
    Column("size", 8, importance=7, right=True),
    Column("licence", 10, importance=3),
    Column("downloads", 9, importance=2, right=True),
)
OPTIONS = ("base", "task", "author", "license", "sort", "remote")
LIMIT = "50"
UPDATE = ["update"]
NONE_FOLLOWS = "Nothing in the catalog came from a Hub and follows it."
EMPTY = (
    "/ and enter ask the Hub: words, base:owner/name, task:, author:, license:, sort:likes.\n"
    "Enter on a repository pulls it. What is pulled is in Browse (1)."
)


class RemoteScreen(Room):
    """The Hub."""

    scope = "remote"
    BINDINGS = bindings("remote")
    help = "Rank, targets and size come from the files' headers: nothing is downloaded."

    class Found(Message):
        """What the Hub has, or why that is not known."""

        def __init__(self, outcome: Sequence[Mapping[str, Any]] | LorahubError) -> None:
            super().__init__()
            self.outcome = outcome

    _updates = False

    def body(self) -> ComposeResult:
        """What to look for, what was found, and the one under the cursor."""
        yield Input(placeholder="search: words, base:owner/name, sort:likes ...", id="remote-line")
        yield PagedTable(COLUMNS, id="found")
        yield Page(id="remote-detail", classes="pane")

    def on_mount(self) -> None:
        """Begin with the line."""
        self.table.empty = EMPTY
        self.table.focus()
        self.watch(app_of(self), "running", self._show_pulls)

    @property
    def table(self) -> PagedTable:
        """What was found."""
        return self.query_one("#found", PagedTable)

    @property
    def entry(self) -> Mapping[str, Any] | None:
        """The repository under the cursor."""
        row = self.table.row
        return row.value if row is not None else None

    def command(self) -> str:
        """`lorahub discover`, or `lorahub update`."""
        return shlex.join(["lorahub", *(UPDATE if self._updates else self._words())])

    def _words(self) -> list[str]:
        parts = pairs(self.query_one(Input).value)
        words = " ".join(v for k, v in parts if not k)
        asked = [w for k, v in parts if k in OPTIONS and v for w in (f"--{k}", v)]
        return ["discover", *asked, *(["--search", words] if words else []), "--limit", LIMIT]

    def on_input_changed(self) -> None:
        """The command follows."""
        self._updates = False
        self.say_command()

    def on_input_submitted(self) -> None:
        """Ask."""
        self._updates = False
        self._ask(self._words())

    def _ask(self, words: list[str]) -> None:
        self.say_command()
        self.table.empty = "asking the Hub ..."
        self.table.border_title = ""
        self.table.reset(0)
        self.table.focus()
        self._discover(words)

    @work(exclusive=True, exit_on_error=False)
    async def _discover(self, words: list[str]) -> None:
        try:
            self.post_message(self.Found(await ask(app_of(self).home, words)))
        except LorahubError as error:
            self.post_message(self.Found(error))

    def on_remote_screen_found(self, event: Found) -> None:
        """Show it, or what went wrong and what to do."""
        if isinstance(event.outcome, LorahubError):
            self.table.empty = text.spoken(event.outcome)
            self.table.reset(0)
            return
        self.table.empty = NONE_FOLLOWS if self._updates else "Nothing found."
        entries = map(_updated, event.outcome) if self._updates else event.outcome
        rows = [_row(entry) for entry in entries]
        self.table.reset(len(rows), rows)
        self.table.border_title = f"{len(rows)} repositories"

    def on_paged_table_highlighted(self) -> None:
        """Say more of it."""
        entry = self.entry
        self.query_one(Page).show(_described(entry) if entry else "")

    def on_paged_table_opened(self) -> None:
        """Enter pulls."""
        self.action_do("pull")

    def _show_pulls(self, jobs: tuple[Job, ...]) -> None:
        active = [j for j in jobs if j.active and j.verb == "pull"]
        shown = ", ".join(f"{j.title} {j.share:.0%}" for j in active[:2])
        self.query_one("#remote-detail").border_title = escape(shown)

    # Actions

    def why_not(self, name: str) -> str | None:
        """Pulling and copying need a repository."""
        if name in {"pull", "copy"} and self.entry is None:
            return "no repository is here: / asks the Hub"
        return None

    def do_filter(self) -> None:
        """To the line."""
        self.query_one(Input).focus()

    def do_update(self) -> None:
        """By `lorahub update`, in a child process."""
        self._updates = True
        self._ask(UPDATE)

    def do_back(self) -> None:
        """To what was found."""
        self.table.focus()

    def do_pull(self) -> None:
        """As a job."""
        assert self.entry is not None
        name = str(self.entry["repo_id"])
        if self._updates:
            known = str(self.entry["name"])
            app_of(self).submit([*UPDATE, known, "--pull", "--json"], f"update {known}")
            return
        remote = [w for k, v in pairs(self.query_one(Input).value) if k == "remote"
                  for w in ("--remote", v)]  # fmt: skip
        app_of(self).submit(["pull", f"hf://{name}", *remote, "--events", "jsonl"], f"pull {name}")

    def do_copy(self) -> None:
        """Its name."""
        assert self.entry is not None
        app_of(self).copy(str(self.entry["repo_id"]))


def _row(entry: Mapping[str, Any]) -> Row:
    outline = entry.get("outline") or {}
    low, high = outline.get("rank_min", 0), outline.get("rank_max", 0)
    cells = (
        str(entry["repo_id"]),
        str(entry.get("base_model") or "-").rsplit("/", 1)[-1],
        text.ranks(low, high) if high else "-",
        ",".join(outline.get("targets", ())) or "-",
        text.size(outline["weights_bytes"]) if outline else "-",
        str(entry.get("license") or "-"),
        f"{entry.get('downloads') or 0:,}",
    )
    changed = entry.get("state") == "changed"
    mark = "!" if entry.get("error") else "↑" if changed else "●" if entry.get("name") else " "
    return Row(entry, cells, mark, dim=bool(entry.get("error")))


def _updated(update: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `lorahub update` says of an adapter, as what was found."""
    return {**update["adapter"], **{k: update[k] for k in ("state", "moved_to", "error")}}


def _described(entry: Mapping[str, Any]) -> str:
    outline, error = entry.get("outline") or {}, entry.get("error") or {}
    lines = [
        ("repository", entry["repo_id"]),
        ("in the catalog", entry.get("name")),
        ("state", entry.get("state")),
        ("now", entry.get("moved_to")),
        ("problem", error.get("message")),
        ("base model", entry.get("base_model")),
        ("task", entry.get("task")),
        ("targets", ", ".join(outline.get("targets", ()))),
        ("updated", str(entry.get("modified") or "")[:10]),
        ("likes", entry.get("likes")),
        ("gated", entry.get("gated")),
    ]
    return "\n".join(f"{key:14} {value}" for key, value in lines if value)
