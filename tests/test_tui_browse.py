"""The home screen: listing, filtering, the basket, what is remembered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import insert, select
from textual.widgets import TabbedContent

from lorahub.adapter import Adapter
from lorahub.errors import UsageError
from lorahub.workspace import Workspace
from store import AdapterFilter, Catalog
from store.models import adapter_table, evaluation_table
from tests.conftest import EXAMPLES, write_adapter
from tests.terminal import NARROW, WIDE, Terminal, run
from tests.waiting import PATIENCE
from tui.actions import ACTIONS, binding_id
from tui.app import LorahubApp
from tui.query import parse, toggled
from tui.screens.browse import BrowseScreen
from tui.screens.modes import NAMES, _make
from tui.widgets.paged_table import MOST_PAGES, PAGE, PagedTable


@pytest.fixture
def filled(home: Path) -> Path:
    """A catalog of the three examples and one adapter for another base model."""
    other = write_adapter(home.parent / "other", {"layer.q": (8, 8, 2)}, base="tests/other")
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "manuals", "packages")])
        workspace.pull([str(other)])
    return home


@pytest.mark.parametrize("size", [NARROW, WIDE])
def test_first_screen_lists_the_catalog_and_says_its_command(
    filled: Path, size: tuple[int, int]
) -> None:
    async def scenario(t: Terminal) -> None:
        for name in ("languages", "manuals", "packages", "other"):
            assert name in t.screen
        assert "$ lorahub ls" in t.screen
        assert all(len(line) <= size[0] for line in t.screen.splitlines())

    run(filled, scenario, size)


def test_what_suites_found_stands_beside_an_adapter(filled: Path) -> None:
    with Workspace.open(filled) as workspace:
        chosen = workspace.get("languages")
        workspace.catalog.record_evaluation(chosen.id, "held-out", {"accuracy": 0.625})

    async def scenario(t: Terminal) -> None:
        assert "held-out" in t.screen
        assert "accuracy 0.625" in t.screen
        await t.press("5")
        assert "held-out: accuracy 0.625" in t.screen

    run(filled, scenario, (160, 60))


def test_a_suites_figure_orders_the_table_until_it_is_gone(filled: Path) -> None:
    with Workspace.open(filled) as workspace:
        for name, accuracy in (("languages", 0.5), ("packages", 0.75)):
            adapter = workspace.get(name)
            workspace.catalog.record_evaluation(adapter.id, "test", {"accuracy": accuracy})

    def first(t: Terminal) -> str:
        row = t.app.screen.query_one(PagedTable).loaded()[0][1]
        return row.value.summary.name

    async def scenario(t: Terminal) -> None:
        await t.press("s", "s", "s", "s", "s", "S")
        assert "by test.accuracy (reversed)" in t.screen
        assert t.app.command == "lorahub ls --sort test.accuracy --reverse"
        assert first(t) == "packages"
        await t.press("S")
        assert first(t) == "languages"
        shown = [re.sub(" +", " ", line) for line in t.screen.splitlines()]
        for start in ("name test.accuracy", "languages 0.5", "packages 0.75", "manuals -"):
            assert [line for line in shown if f"│ {start} " in line], start
        await t.press("space", "slash")  # what is drawn anew, and a search, keep to the columns
        assert re.search("languages +0.5 ", t.screen)
        await t.type("pack")
        assert "test.accuracy" not in t.screen.splitlines()[3]
        await t.press("escape", "escape")
        assert re.search("languages +0.5 ", t.screen)

    run(filled, scenario)
    with Workspace.open(filled) as workspace:
        workspace.remove(["languages", "packages"])

    async def later(t: Terminal) -> None:
        assert "by name" in t.screen
        assert "cannot sort by 'test.accuracy'" in t.said
        assert first(t) == "manuals"

    run(filled, later)


def test_further_pages_show_the_figure_that_orders_them(filled: Path) -> None:
    _multiply(filled, 2 * PAGE)
    with Workspace.open(filled) as workspace, workspace.catalog._write() as connection:
        for i, row in enumerate(workspace.adapters(limit=2 * PAGE + 4)[4:]):
            found = {"adapter_id": row.id, "suite": "suite", "figures": {"of.it": i / 8}}
            connection.execute(insert(evaluation_table).values(found | {"created_at": ""}))

    async def scenario(t: Terminal) -> None:
        await t.press("s", "s", "s", "s", "s", "G")
        assert re.search(r"x-00199 +24\.88 ", t.screen)
        assert re.search("other +- ", t.screen)
        await t.press("s")  # from the last figure to the first key
        assert "by name" in t.screen
        assert "suite.of.it" not in t.screen.splitlines()[3]

    run(filled, scenario)


def test_another_error_of_the_call_leaves_the_order_as_it_is(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("there is no such condition")

    async def scenario(t: Terminal) -> None:
        await t.press("s", "s")
        monkeypatch.setattr(Catalog, "facets", refuse)
        await t.press("S")
        assert "there is no such condition" in t.said
        assert "4 by rank (reversed)" in t.screen

    run(filled, scenario)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Reads of adapters wait while this is cleared."""
    gate = Event()
    gate.set()
    get = Workspace.get

    def slow(self: Workspace, reference: str) -> Adapter:
        assert gate.wait(PATIENCE)
        return get(self, reference)

    monkeypatch.setattr(Workspace, "get", slow)
    yield gate
    gate.set()


def test_next_key_finds_in_the_basket_what_was_just_picked(filled: Path, held: Event) -> None:
    async def scenario(t: Terminal) -> None:
        held.clear()
        await t.pilot.press("space", "c")
        await t.pilot.pause()
        assert t.app.current_mode == "compose"
        assert "Basket 1: languages" in t.screen
        held.set()
        await t.idle()
        assert t.said == ""
        assert "Basket 1: languages" in t.screen

    run(filled, scenario)


def test_what_cannot_join_after_all_leaves_the_basket_and_says_why(home: Path, held: Event) -> None:
    small = write_adapter(home.parent / "small", {"layer.q": (8, 8, 2)})
    large = write_adapter(home.parent / "large", {"layer.q": (16, 8, 2)})
    with Workspace.open(home) as workspace:
        workspace.pull([str(small), str(large)])

    async def scenario(t: Terminal) -> None:
        held.clear()
        await t.pilot.press("space", "j", "space")
        held.set()
        await t.idle()
        assert [i.adapter for i in t.app.draft.inputs] == ["large"]
        assert "have another shape in module layer.q" in t.said

    run(home, scenario)


def test_empty_catalog_says_what_to_do(home: Path) -> None:
    async def scenario(t: Terminal) -> None:
        assert "The catalog is empty." in t.screen
        assert "lorahub pull owner/name" in t.screen
        await t.press("e")
        assert "no adapter is here" in t.said

    run(home, scenario)


def test_filter_as_you_type(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("slash")
        await t.type("rank:8.. base:MINILM")
        assert t.app.command == "lorahub ls --base MINILM --rank 8.." or (
            t.app.command == "lorahub ls --rank 8.. --base MINILM"
        )
        assert "languages" in t.screen
        assert "packages" not in t.screen
        await t.press("enter", "escape")
        assert "packages" in t.screen
        await t.press("slash")
        await t.type("nosuch:1")
        assert "no filter 'nosuch:'" in t.screen or "packages" in t.screen

    run(filled, scenario)


def test_what_words_find_stands_in_the_order_of_the_search(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("s", "slash")
        await t.type("pack")
        assert "1 best first" in t.screen
        await t.press("enter", "s")
        assert "words find the best first" in t.said
        assert t.app.state.sort == "created"
        await t.press("escape")
        assert "4 by created" in t.screen

    run(filled, scenario)


def test_facet_is_a_condition_of_the_line(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("f", "down", "enter")
        assert t.app.state.filter.startswith("base:")
        assert "--base" in t.app.command
        assert "[x]" in t.screen
        await t.press("enter")
        assert t.app.state.filter == ""

    run(filled, scenario)


def test_basket_dims_what_cannot_join_and_says_why(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("space")
        assert "Basket 1: languages" in t.screen
        assert "other  (other base)" in t.screen
        await t.press("j", "j", "space")
        assert "is for tests/other" in t.said
        assert "Basket 1: languages" in t.screen
        await t.press("k", "space")
        assert "Basket 2: languages + manuals" in t.screen
        await t.press("space")
        assert "Basket 1: languages" in t.screen

    run(filled, scenario)


def test_state_is_there_again(filled: Path) -> None:
    async def first(t: Terminal) -> None:
        await t.press("s", "s", "S", "space", "f2", "d")

    async def second(t: Terminal) -> None:
        assert "--sort rank --reverse" in t.app.command
        assert "Basket 1" in t.screen
        assert t.app.theme == "lorahub-light"
        assert "Lineage" not in t.screen

    run(filled, first)
    run(filled, second)
    (filled / "tui.json").write_text('{"theme": 3, "recipe": {"sources": "x"}, "screen": "nosuch"}')

    async def damaged(t: Terminal) -> None:
        assert "Basket empty" in t.screen
        assert t.app.theme == "lorahub-dark"

    run(filled, damaged)


def test_users_keymap(filled: Path) -> None:
    (filled / "keymap.toml").write_text('"browse.pick" = "b"\n"browse.nosuch" = "c"\n')

    async def scenario(t: Terminal) -> None:
        assert "'browse.nosuch' is left out" in t.said
        await t.press("b")
        assert "Basket 1" in t.screen

    run(filled, scenario)


def test_damaged_adapter_says_so_in_its_row(filled: Path) -> None:
    shutil.rmtree(filled.parent / "other")

    async def scenario(t: Terminal) -> None:
        row = next(line for line in t.screen.splitlines() if "other  (" in line)
        assert "files are gone" in row
        await t.press("slash")
        await t.type("base:other")
        assert "problem    files are gone" in t.screen

    run(filled, scenario)


@pytest.mark.parametrize("shorter", [True, False])
def test_corrupt_adapter_has_its_error_in_its_row(filled: Path, *, shorter: bool) -> None:
    file = filled.parent / "other" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[12] = 0xFF
    file.write_bytes(data[:40] if shorter else data)

    async def scenario(t: Terminal) -> None:
        if not shorter:  # its header is read once the cursor rests on it
            await t.press("j", "j", "k")
        await t.press("s", "s", "s")
        row = next(line for line in t.screen.splitlines() if "! other  (damaged: " in line)
        assert ("40 byt" if shorter else "has a hea") in row

    run(filled, scenario, (150, 36))


def test_similar_adapters_are_sought_once_somebody_looks(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        t.app.screen.query_one(TabbedContent).active = "similar"
        await t.idle()
        assert "$ lorahub similar languages" in t.screen
        with Workspace.open(filled) as workspace:
            found = workspace.similar("languages")
        for one in found:
            assert f"{one.delta:+.3f}" in t.screen
        await t.press("j")
        assert "$ lorahub similar manuals" in t.screen

    run(filled, scenario)


def test_ten_thousand_rows_are_paged_not_loaded(filled: Path) -> None:
    _multiply(filled, 10_000)

    async def scenario(t: Terminal) -> None:
        table = t.app.screen.query_one(PagedTable)
        assert table.count == 10_004
        await t.press("G")
        assert "x-09999" in t.screen
        for _ in range(30):
            await t.press("ctrl+u")
        assert len(table.loaded()) <= MOST_PAGES * PAGE
        await t.press("g")
        assert "languages" in t.screen

    run(filled, scenario)


def test_resize_keeps_the_cursor_in_sight(filled: Path) -> None:
    _multiply(filled, 60)

    async def scenario(t: Terminal) -> None:
        await t.press("G")
        assert "x-00059" in t.screen
        await t.pilot.resize_terminal(*NARROW)
        await t.idle()
        assert "x-00059" in t.screen

    run(filled, scenario)


def test_help_palette_and_jump(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("question_mark")
        assert "Put the adapter in, or out of, the basket." in t.screen
        await t.press("escape", "ctrl+p")
        await t.type("Export")
        assert "Copy the adapter into a folder." in t.screen
        await t.press("escape", "ctrl+o")
        dialog = t.app.screen
        letter = next(k for k, w in dialog._targets.items() if w.id == "filter")
        await t.press(letter)
        assert t.app.focused is not None
        assert t.app.focused.id == "filter"

    run(filled, scenario)


def test_palette_lists_only_what_applies(home: Path) -> None:
    async def scenario(t: Terminal) -> None:
        assert isinstance(t.app.screen, BrowseScreen)
        names = {c.title for c in t.app.get_system_commands(t.app.screen)}
        assert "Pull" in names
        assert not {"Export", "Push", "Empty basket"} & names

    run(home, scenario)


def test_mouse_marks_without_colour_and_hostile_text(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    hostile = write_adapter(filled.parent / "[red]x\x1b[31m", {"layer.q": (8, 8, 2)})
    (hostile / "README.md").write_text("---\nlicense: mit\n---\n[bold]card\x1b]0;owned\x07")
    with Workspace.open(filled) as workspace:
        workspace.pull([str(hostile)])

    async def scenario(t: Terminal) -> None:
        assert t.app.no_color
        await t.pilot.click("#adapters", offset=(6, 2))
        await t.press("space")
        assert "●" in t.screen
        assert "-" in next(line for line in t.screen.splitlines() if "(other base)" in line)
        await t.press("X", "slash")
        await t.type("license:mit")
        await t.press("enter", "space")
        assert "[red]x?[31m" in t.screen
        assert "\x1b" not in t.screen

    run(filled, scenario)


def test_removing_asks_and_names_the_command(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("x")
        assert "$ lorahub rm languages" in t.screen
        await t.press("escape")
        await t.press("x")
        await t.pilot.click("#yes")
        await t.idle()
        assert "languages" not in t.screen.split("Basket")[0]

    run(filled, scenario)
    with Workspace.open(filled) as workspace:
        assert workspace.catalog.count() == 3
    assert (EXAMPLES / "languages").is_dir()


def test_every_binding_is_an_action_and_is_answered() -> None:
    names = [binding_id(a) for a in ACTIONS]
    assert len(names) == len(set(names))
    owners = {"app": LorahubApp, "table": PagedTable}
    owners |= {name: type(_make(name)) for name in NAMES}
    for owner in owners.values():
        for binding in owner.BINDINGS:
            assert binding.id in names
    for action in ACTIONS:
        if action.name not in NAMES:
            assert callable(getattr(owners[action.scope], f"do_{action.name}")), action


def test_unforeseen_error_is_shown_and_survived(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("tui.screens.browse_reading.describe", broken)

    async def scenario(t: Terminal) -> None:
        assert "RuntimeError: unforeseen" in t.said
        await t.press("j", "space")
        assert "Basket 1" in t.screen

    run(filled, scenario, defects=True)


def test_queries() -> None:
    query = parse('rank:8..16 base:"my base" law rank')
    assert query.where == AdapterFilter(base="my base", rank=(8, 16))
    assert query.words == "law rank"
    assert parse("rank:x").problem == "rank 'x' is no range; write 8, 8..16, ..16 or 8.."
    assert parse("foo:1").problem is not None
    assert parse("base:").where == AdapterFilter()
    assert toggled("law rank:8", "rank", "4") == "law rank:4"
    assert toggled("law rank:4", "rank", "4") == "law"
    assert toggled("", "base", "my base") == 'base:"my base"'


def imported(home: Path, scenario: str, *modules: str) -> list[str]:
    """Which of some modules are there in a process that has run the lines of a scenario."""
    code = (
        "import asyncio, sys, json\n"
        "from pathlib import Path\n"
        "from tests.terminal import run\n"
        f"async def scenario(t):\n    {scenario}\n"
        f"run(Path({str(home)!r}), scenario)\n"
        f"print(json.dumps([m for m in {modules!r} if m in sys.modules]))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    return list(json.loads(out.stdout.splitlines()[-1]))


def test_no_torch_in_the_process_of_the_screen(filled: Path) -> None:
    scenario = "for key in '1234561': await t.press(key)"
    assert imported(filled, scenario, "torch", "sklearn", "peft", "transformers", "textual") == [
        "textual"
    ]


def test_first_screen_waits_for_nothing_that_it_does_not_need(filled: Path) -> None:
    late = ("alembic", "huggingface_hub", "numpy", "pydantic", "yaml", "markdown_it",
            "sqlalchemy.orm", "tui.screens.dialog", "tui.screens.compose")  # fmt: skip
    assert imported(filled, "assert 'languages' in t.screen", *late) == []


def test_click_on_a_key_of_the_last_line_presses_it(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        line = t.screen.splitlines()[-1]
        assert line.startswith(" / Filter  space Basket ")
        await t.pilot.click("#keys", offset=(line.index("Sort"), 0))
        await t.idle()
        assert t.app.state.sort == "created"
        await t.press("slash")
        assert "Sort" not in t.screen.splitlines()[-1]  # there it is a letter

    run(filled, scenario)


def _multiply(home: Path, count: int) -> None:
    """Further rows that differ from the first one in name."""
    with Workspace.open(home) as workspace, workspace.catalog._write() as connection:
        columns = [c for c in adapter_table.columns if c.name != "id"]
        row = dict(connection.execute(select(*columns).limit(1)).mappings().one())
        rows = [{**row, "name": f"x-{i:05d}"} for i in range(count)]
        connection.execute(insert(adapter_table), rows)
