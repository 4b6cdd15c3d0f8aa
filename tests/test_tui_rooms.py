"""What every screen of the terminal UI owes a user at 80 x 24: nothing cut off, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import TabbedContent, TextArea

from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES, write_adapter
from tests.terminal import NARROW, Terminal, run
from tui.widgets.paged_table import PagedTable

LONG = "an-adapter-whose-name-is-longer-than-its-column"


@pytest.mark.parametrize(
    ("key", "end"),
    [("1", "owner/name"), ("2", "or write the recipe."), ("6", "is in Browse (1).")],
)
def test_empty_tables_say_all_of_what_to_do(home: Path, key: str, end: str) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press(key)
        table = t.app.screen.query_one(PagedTable)
        assert end in t.screen
        # Words may go to another line, none may be missing.
        seen = t.screen.replace("│", " ").split()
        assert set(table.empty.split()) <= set(seen)

    run(home, scenario, NARROW)


def test_columns_stand_apart(home: Path) -> None:
    folder = write_adapter(home.parent / LONG, {"layer.q": (8, 8, 2)}, base="tests/base")
    with Workspace.open(home) as workspace:
        workspace.pull([str(folder)])

    async def scenario(t: Terminal) -> None:
        line = next(s for s in t.screen.splitlines() if "an-adapter" in s and "base" in s)
        assert "…  base " in line

    run(home, scenario, NARROW)


def test_leaving_jump_mode_stays_where_one_was(home: Path) -> None:
    async def scenario(t: Terminal) -> None:
        before = t.app.screen.focused
        assert isinstance(before, PagedTable)
        await t.press("ctrl+o", "escape")
        assert t.app.screen.focused is before

    run(home, scenario, NARROW)


def test_a_recipe_that_cannot_be_read_says_so_beside_it_and_undo_gives_it_back(home: Path) -> None:
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "manuals")])

    async def scenario(t: Terminal) -> None:
        await t.press("space", "j", "space", "c")
        screen = t.app.screen
        screen.query_one("#compose-right", TabbedContent).active = "recipe-tab"
        area = screen.query_one(TextArea)
        before, text = t.app.draft, area.text
        area.text = "- 1"
        await t.idle()
        assert "recipe: is no map" in t.screen
        await t.press("u")
        assert (t.app.draft, area.text) == (before, text)
        assert "recipe: is no map" not in t.screen
        await t.press("u")
        assert len(t.app.draft.inputs) == 1

    run(home, scenario, NARROW)
