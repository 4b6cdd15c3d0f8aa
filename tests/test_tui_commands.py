"""Every command line that the terminal UI shows can be run, and does the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from textual.widgets import Input, Static
from typer.testing import CliRunner

from docs.make_screenshots import _asked
from lorahub.cli.main import app as commands
from lorahub.formats import inspect
from lorahub.methods.registry import methods
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES
from tests.loopback_hub.server import LoopbackHub
from tests.terminal import NARROW, Terminal, run
from tui.draft import Draft
from tui.draft import Input as Source
from tui.forms import OPTIONS
from tui.query import parse
from tui.screens.modes import NAMES
from tui.widgets.paged_table import PagedTable


@pytest.fixture
def examples_pulled(home: Path) -> Path:
    """A catalog of the three examples."""
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "manuals", "packages")])
    return home


def parsed(line: str) -> None:
    """Let the command line's own parser read it, without running it."""
    words = shlex.split(line)
    assert words[0] == "lorahub", line
    command: Any = typer.main.get_command(commands)
    name, rest = words[0], words[1:]
    context = None
    while hasattr(command, "commands"):
        context = command.context_class(command, info_name=name, parent=context)
        name, command, rest = command.resolve_command(context, rest)
    if rest == ["--help"]:
        return
    command.make_context(name, list(rest), parent=context)


def answer(line: str) -> Any:
    """What a command line prints with --json."""
    done = CliRunner().invoke(commands, [*shlex.split(line)[1:], "--json"])
    assert done.exit_code == 0, (line, done.output)
    return json.loads(done.stdout)


def shown(t: Terminal) -> Iterator[str]:
    """The command lines in sight: the screen's own, and that of an open dialog."""
    yield t.app.command
    for static in t.app.screen.query(".command").results(Static):
        text = str(static.content).removeprefix("$ ")
        if text:
            yield text


def test_a_line_that_makes_no_sense_is_found() -> None:
    for line in ("lorahub nosuch", "lorahub merge", "lorahub ls --nosuch 1", "lorahub export x"):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parsed(line)


def test_every_line_that_a_screen_or_dialog_shows_is_a_command(
    home: Path, hub: LoopbackHub, examples_pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.screens.inspect.ask", _asked)
    hub.add_repo("ann/x", {p.name: p.read_bytes() for p in (EXAMPLES / "packages").iterdir()})
    seen: list[str] = []

    async def look(t: Terminal, *keys: str) -> None:
        for key in keys:
            await t.press(key)
            seen.extend(shown(t))

    async def everywhere(t: Terminal) -> None:
        for number in range(1, len(NAMES) + 1):
            await look(t, str(number))

    async def scenario(t: Terminal) -> None:
        await everywhere(t)
        await look(t, "1", "s", "S", "x", "escape", "e", "escape", "p")
        await look(t, "escape", "L", "a", "escape")
        # The order has changed: the rows are read anew meanwhile, and the cursor stays on its
        # adapter, which may be the last row now.
        await t.until(lambda: t.app.screen.row is not None)
        await look(t, "g")
        first = t.app.screen.chosen
        await look(t, "space", "j")
        await t.until(lambda: t.app.screen.row is not None and t.app.screen.chosen != first)
        await look(t, "space")
        await t.until(lambda: len(t.app.draft.inputs) == 2)
        await look(t, "2", "plus", "n", "e", "space", "space", "m", "x", "y", "escape")
        t.app.edit(t.app.draft.with_name("both"))
        await t.idle()
        await look(t, "m")
        await t.done("merge")
        await look(t, "3", "d", "5", "4", "6", "slash")
        await t.type("packages base:x sort:likes")
        await look(t, "enter", "U")
        t.app.edit(t.app.draft.with_adapters(()))
        await everywhere(t)

    run(home, scenario)
    assert {shlex.split(line)[1] for line in seen} >= {
        "ls", "rm", "export", "push", "pull", "merge", "inspect", "compare", "discover", "update",
    }  # fmt: skip
    for line in dict.fromkeys(seen):
        parsed(line)


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_line_of_every_method_and_option_is_a_command(name: str) -> None:
    draft = Draft((Source({"adapter": "a"}), Source({"adapter": "b", "weight": -0.5})))
    draft = draft.with_method(name).with_name("x")
    given = {"scale": 0.5, "normalize": False, "budget": "rank 8", "allocate": "energy",
             "pack": "8", "dtype": "F16", "seed": 3, "base": "owner/name"}  # fmt: skip
    assert given.keys() == OPTIONS.keys()
    for field, schema in methods()[name].schema.model_fields.items():
        draft = draft.with_parameter(field, schema.default)
    parsed(draft.command())
    for option, value in given.items():
        parsed(draft.with_rest(**{option: value}).command())


@pytest.mark.parametrize(
    "line", ["", "rank:4", "lang", "lang rank:8..", "base:minilm law rank:..4", "target:query"]
)
def test_the_line_of_a_filter_lists_the_same(examples_pulled: Path, line: str) -> None:
    async def scenario(t: Terminal) -> None:
        if line:
            await t.press("slash")
            await t.type(line)
        table = t.app.screen.query_one(PagedTable)
        listed = [row.value.summary.name for _, row in table.loaded()]
        assert t.app.command == parse(line).command("name", descending=False)
        assert [row["name"] for row in answer(t.app.command)] == listed

    run(examples_pulled, scenario, NARROW)


def test_the_line_of_a_recipe_merges_the_same(examples_pulled: Path) -> None:
    line = ""

    async def scenario(t: Terminal) -> None:
        nonlocal line
        await t.press("space", "j", "space", "c", "plus", "j", "n")
        t.app.screen.query_one("#parameter-rank", Input).value = "5"
        t.app.screen.query_one("#option-dtype", Input).value = "F16"
        await t.idle()
        t.app.edit(t.app.draft.with_name("here"))
        await t.idle()
        line = t.app.command
        await t.press("m")
        await t.done("merge")
        assert t.app.running[0].state == "finished", t.app.running[0]

    run(examples_pulled, scenario)
    answer(line.replace("--name here", "--name there"))
    folders = [examples_pulled / "adapters" / name for name in ("here", "there")]
    one, other = (inspect(folder).content_hash for folder in folders)
    assert one == other
