"""What every screen of the terminal UI owes a user at 80 x 24: nothing cut off, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahub.workspace import Workspace
from tests.conftest import write_adapter
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
