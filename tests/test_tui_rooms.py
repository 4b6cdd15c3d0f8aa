"""What every screen of the terminal UI owes a user at 80 x 24: nothing cut off, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import TabbedContent, TextArea

from docs.make_screenshots import _asked
from lorahub.engine.sizes import peak_memory
from lorahub.lineage import drawn
from lorahub.recipe import make_recipe
from lorahub.workspace import Workspace
from tests.commands import needs_peak, peak_of
from tests.conftest import EXAMPLES, write_adapter
from tests.loopback_hub.server import LoopbackHub
from tests.terminal import NARROW, WIDE, Terminal, run
from tui.describe import describe
from tui.screens.modes import NAMES
from tui.screens.remote import _row
from tui.widgets.paged_table import PagedTable


@pytest.fixture
def examples_pulled(home: Path) -> Path:
    """A catalog of two examples."""
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "manuals")])
    return home


@pytest.mark.parametrize("size", [NARROW, WIDE])
@pytest.mark.parametrize("colours", [True, False])
def test_every_screen_has_all_of_its_frame(
    examples_pulled: Path,
    size: tuple[int, int],
    colours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tui.screens.inspect.ask", _asked)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")

    async def scenario(t: Terminal) -> None:
        assert t.app.no_color is not colours
        await t.press("space", "j", "space")
        for number, name in enumerate(NAMES, 1):
            await t.press(str(number))
            lines = t.screen.splitlines()
            assert len(lines) == size[1]
            assert all(len(line) <= size[0] for line in lines)
            assert f"[{number} {name.title()}]" in lines[0]
            assert "Basket 2: languages + manuals" in lines[-3]
            assert lines[-2].startswith(" $ lorahub ")
            assert lines[-1].rstrip().endswith("? Help  ^p Palette")

    run(examples_pulled, scenario, size)


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


def test_a_recipe_that_cannot_be_read_says_so_and_undo_gives_it_back(
    examples_pulled: Path,
) -> None:
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

    run(examples_pulled, scenario, NARROW)


def test_a_command_longer_than_the_line_is_cut_and_says_so(home: Path) -> None:
    async def scenario(t: Terminal) -> None:
        t.app.command = f"lorahub merge /a/{'folder/' * 20}recipe.yaml"
        await t.idle()
        line = t.screen.splitlines()[-2]
        assert line.startswith(" $ lorahub merge /a/folder/")
        assert line.rstrip().endswith("…")

    run(home, scenario, NARROW)


def _merged(workspace: Workspace, first: str, second: str, name: str) -> None:
    sources = [{"adapter": first}, {"adapter": second}]
    workspace.merge(make_recipe({"method": "cat", "sources": sources, "output": {"name": name}}))


def test_export_of_a_merge_shows_its_buttons(examples_pulled: Path) -> None:
    with Workspace.open(examples_pulled) as workspace:
        _merged(workspace, "languages", "manuals", "a-merge")

    async def scenario(t: Terminal) -> None:
        await t.press("e")
        assert "recipe.yaml" in t.screen
        assert "bytes in all" in t.screen
        assert "Cancel" in t.screen

    run(examples_pulled, scenario, NARROW)


def test_a_name_that_cannot_be_stands_in_the_way_of_a_merge(examples_pulled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await t.press("space", "j", "space", "c", "m")
        await t.type("a/b")
        await t.press("enter")
        assert not t.app.running
        assert "'a/b' cannot be a name" in t.said

    run(examples_pulled, scenario, NARROW)


def test_a_run_is_opened_edited_repeated_and_pushed(
    examples_pulled: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    with Workspace.open(examples_pulled) as workspace:
        _merged(workspace, "languages", "manuals", "a-merge")
    opened: list[str] = []

    async def scenario(t: Terminal) -> None:
        monkeypatch.setattr(t.app, "open_url", opened.append)
        await t.press("4", "o")
        assert opened == [(examples_pulled / "adapters" / "a-merge").as_uri()]
        assert "copied: " in t.said
        await t.press("p")
        await t.type("ann/pushed")
        await t.press("enter")
        await t.pilot.click("#yes")
        await t.done("push")
        assert t.app.running[0].state == "finished", t.app.running[0]
        await t.press("e")
        assert t.app.command == "lorahub merge languages manuals --method cat"
        await t.press("plus", "m")
        await t.type("louder")
        await t.press("enter")
        await t.done("merge")
        assert t.app.running[0].state == "finished", t.app.running[0]
        await t.press("4", "space", "j")
        assert "+parent       languages weight 1" in t.screen or "-parent" in t.screen

    run(examples_pulled, scenario)
    assert "adapter_model.safetensors" in hub.files("ann/pushed")
    with Workspace.open(examples_pulled) as workspace:
        (parent, _) = workspace.parents(workspace.get("louder"))
        assert parent.weight == 1.05


def test_lineage_shows_all_generations_both_ways(examples_pulled: Path) -> None:
    with Workspace.open(examples_pulled) as workspace:
        _merged(workspace, "languages", "manuals", "once")
        _merged(workspace, "once", "manuals", "twice")
        down = describe(workspace, "languages").lineage
        up = describe(workspace, "twice").lineage
        assert "\n".join(drawn(workspace.impact("languages"))[1:]) in down
        assert "twice" in down
        assert "\n".join(drawn(workspace.lineage("twice"))) in up
        assert "languages" in up


def test_remote_shows_what_changed_since_and_pulls_it(
    home: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.name: p.read_bytes() for p in (EXAMPLES / "packages").iterdir()}
    other = (EXAMPLES / "manuals" / "adapter_model.safetensors").read_bytes()
    hub.add_repo("ann/packages", files)
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    with Workspace.open(home) as workspace:
        workspace.pull(["ann/packages"])
    commit = hub.commit("ann/packages", {"adapter_model.safetensors": other})

    async def scenario(t: Terminal) -> None:
        await t.press("6", "U")
        assert t.app.command == "lorahub update"
        assert "↑ ann/packages" in t.screen
        assert "state          changed" in t.screen
        await t.press("enter")
        await t.done("update")
        assert t.app.running[0].state == "finished", t.app.running[0]
        assert commit in {a.revision for a in t.app.workspace.catalog.hub_adapters()}

    run(home, scenario, NARROW)


def test_a_catalogued_repository_with_an_error_shows_the_error_first() -> None:
    entry = {"repo_id": "ann/packages", "name": "packages", "error": {"message": "gone"}}
    assert _row(entry).mark == "!"
    assert _row({**entry, "error": None}).mark == "●"
    assert _row({**entry, "error": None, "state": "changed"}).mark == "↑"


@needs_peak
@pytest.mark.parametrize("method", ["svd", "ties"])
def test_memory_of_the_plan_is_about_what_a_merge_takes(home: Path, method: str) -> None:
    modules = {f"layers.{i}.q": (2048, 2048, 16) for i in range(6)}
    with Workspace.open(home) as workspace:
        for seed, name in enumerate(("one", "other")):
            workspace.pull([str(write_adapter(home.parent / name, modules, seed=seed))])
        sources = [{"adapter": "one"}, {"adapter": "other"}]
        plan = workspace.plan(make_recipe({"method": method, "sources": sources}))
    words = f"merge one other --method {method} --name x --workers 1 --json".split()
    taken = peak_of(f"from lorahub.cli.main import app; app({words!r}, standalone_mode=False)")
    assert 0.6 * taken < peak_memory(plan.modules, plan.method, 1) < 1.6 * taken
