"""From the basket to the exported and pushed result, with real child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from textual.widgets import Input, Select, TabbedContent, TextArea

from lorahub.events import Warned, to_json
from lorahub.formats import inspect
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES, write_adapter
from tests.loopback_hub.server import LoopbackHub
from tests.terminal import NARROW, WIDE, Terminal, run
from tui import heed_interrupts
from tui.job import Progress
from tui.jobs import NICENESS, Jobs, command, environment
from tui.screens.compose import ComposeScreen
from tui.screens.leave import LeaveDialog
from tui.widgets.paged_table import PagedTable


@pytest.fixture
def filled(home: Path) -> Path:
    """A catalog of two examples."""
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "packages")])
    return home


@pytest.fixture
def slow(home: Path) -> Path:
    """Two adapters whose merge by TIES takes seconds."""
    return _two_adapters(home, 120)


@pytest.fixture
def endless(home: Path) -> Path:
    """Two adapters whose merge by TIES takes longer than anything a test does meanwhile."""
    return _two_adapters(home, 600)


def _two_adapters(home: Path, layers: int) -> Path:
    modules = {f"layers.{i}.q": (1024, 1024, 8) for i in range(layers)}
    with Workspace.open(home) as workspace:
        for seed, name in enumerate(("one", "other")):
            folder = write_adapter(home.parent / name, modules, seed=seed)
            workspace.pull([str(folder)])
    return home


async def _merge_slowly(t: Terminal, *names: str) -> None:
    """Ask for merges of the two, and wait until the first is under way."""
    await _pick_two(t)
    for name in names:
        t.app.edit(t.app.draft.with_method("ties").with_name(name))
        await t.idle()
        await t.press("m")
    await t.until(lambda: any(j.done for j in t.app.running))


async def _pick_two(t: Terminal) -> None:
    await t.press("space", "j", "space", "c")


def test_browse_compose_run_history_export(filled: Path) -> None:
    target = filled.parent / "exported"

    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        assert "Plan" in t.screen
        assert "36" in t.screen
        await t.press("m")
        await t.type("both")
        assert "--method svd --name both" in t.screen
        await t.press("enter")
        await t.done("merge")
        assert t.app.running[0].state == "finished", t.app.running[0]
        await t.press("3")
        assert "verified" in t.screen
        await t.press("4")
        assert "finished" in t.screen
        assert "method: svd" in t.screen
        await t.press("1")
        table = t.app.screen.query_one(PagedTable)
        assert {r.value.summary.name: r.value.children for _, r in table.loaded()} == {
            "both": 0, "languages": 1, "packages": 1,
        }  # fmt: skip
        await t.press("slash")
        await t.type("source:merge")
        await t.press("enter", "e")
        size = (filled / "adapters" / "both" / "adapter_model.safetensors").stat().st_size
        assert f"{size:,}  adapter_model.safetensors" in t.screen
        line = t.app.screen.query_one("#folder", Input)
        line.value = str(target)
        await t.idle()
        assert "$ lorahub export both" in t.screen
        await t.press("enter")
        await t.done("export")
        assert t.app.running[0].state == "finished", t.app.running[0]

    run(filled, scenario)
    assert inspect(target).content_hash


def test_weights_form_yaml_and_undo_are_one_recipe(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        screen = t.app.screen
        assert isinstance(screen, ComposeScreen)
        await t.press("plus", "n", "j", "space")
        assert t.app.command.startswith("lorahub merge languages:-1.05 --method svd")
        assert "(packages)" in t.screen
        await t.press("space", "k", "e")
        assert "languages:0.5 packages:0.5" in t.app.command
        await t.press("w")
        t.app.screen.query_one(Input).value = "0.7"
        await t.press("enter")
        assert "languages:0.7" in t.app.command
        screen.query_one("#parameter-rank", Input).value = "8"
        await t.idle()
        assert "--rank 8" in t.app.command
        area = screen.query_one("#recipe", TextArea)
        assert "rank: 8" in area.text
        area.text = area.text.replace("rank: 8", "rank: 6")
        await t.idle()
        assert screen.query_one("#parameter-rank", Input).value == "6"
        assert "--rank 6" in t.app.command
        area.text = "method: ["
        await t.idle()
        assert "is not YAML" in t.screen
        assert "--rank 6" in t.app.command
        screen.query_one("#parameter-rank", Input).value = "100000"
        await t.idle()
        assert "above the largest possible rank" in t.screen
        await t.press("m")
        assert "above the largest possible rank" in t.said
        t.app.screen.query_one("#method", Select).value = "cat"
        await t.idle()
        assert "--rank" not in t.app.command
        while t.app.edits.past:
            await t.press("u")
        assert t.app.draft.inputs == ()
        await t.press("U", "U")
        assert len(t.app.draft.inputs) == 2

    run(filled, scenario)


@pytest.mark.parametrize("size", [NARROW, WIDE])
def test_every_method_has_a_form(filled: Path, size: tuple[int, int]) -> None:
    from lorahub.methods.registry import methods
    from tui.forms import fields_of

    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        for name in ("lego", "ties", "svd"):
            t.app.edit(t.app.draft.with_method(name))
            await t.idle()
            for field in fields_of(methods()[name]):
                assert t.app.screen.query_one(f"#parameter-{field.name}")
            assert t.app.screen.query_one("#plan")

    run(filled, scenario, size)
    for method in methods().values():
        assert [f.name for f in fields_of(method)] == list(method.schema.model_fields)


def test_conflict_and_figures_come_from_a_child(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        await t.press("o")
        assert "Sign conflict" in t.screen
        await t.press("tab", "end")
        assert "100.0%" in t.screen
        t.app.screen.query_one(TabbedContent).active = "plan-tab"
        await t.idle()
        kept = f"100.0% of the plain sum's energy at rank {t.app.draft.parameters.get('rank', 12)}"
        assert kept in t.screen
        assert "memory     about 3" in t.screen
        await t.press("escape", "S")
        assert t.app.draft.method != "svd"
        figures = [t.app.draft.rest["scale"], *(i.weight for i in t.app.draft.inputs)]
        assert figures == [float(f"{figure:.4g}") for figure in figures]
        assert f"--method {t.app.draft.method}" in t.app.command
        assert t.app.draft.method in t.said
        await t.press("u")
        assert "--method svd" in t.app.command
        await t.press("5")
        assert "languages" in t.screen

    run(filled, scenario)


def test_failed_merge_says_what_to_do(filled: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        t.app.edit(t.app.draft.with_name("languages"))
        await t.idle()
        assert "is there already" in t.screen
        await t.press("m")
        await t.done("merge")
        await t.press("3")
        assert "already in the catalog" in t.screen
        assert "what to do" in t.screen

    run(filled, scenario)


def test_resize_cancel_pause_and_queue(endless: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await _merge_slowly(t, "a", "b")
        await t.press("3")
        pid = t.app.running[1].pid
        assert pid is not None
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, mine + NICENESS)
        states = {j.title: j.state for j in t.app.running}
        assert states == {"merge a": "running", "merge b": "waiting"}
        for size in (NARROW, (60, 18), WIDE):
            await t.pilot.resize_terminal(*size)
            await t.idle()
            assert "running" in t.screen
            assert all(len(line) <= size[0] for line in t.screen.splitlines())
        await t.press("j", "space")
        await t.until(lambda: t.app.running[1].state == "paused")
        assert "paused" in t.screen
        assert "of 600 modules" in t.screen
        await t.press("k", "x")
        await t.until(lambda: len(t.app.running) == 1)
        await t.press("x")
        await t.until(lambda: not t.app.running[0].active)
        assert t.app.running[0].state == "interrupted"
        await t.press("4")
        assert "interrupted" in t.screen

    run(endless, scenario)
    assert not (endless / "adapters" / "a").exists()


def test_what_a_job_warns_of_says_what_to_do(tmp_path: Path) -> None:
    heard = (Warned("a: 'onne' is not in the catalog", "did you mean one?"), Warned("moved"))
    (tmp_path / "events.jsonl").write_text("".join(f"{to_json(event)}\n" for event in heard))
    progress = Progress()
    progress.read(tmp_path / "events.jsonl")
    job = progress.job("j", {"words": ["batch"], "pid": 1}, alive=True)
    assert job.warnings == ("a: 'onne' is not in the catalog\ndid you mean one?", "moved")


def test_jobs_can_be_cancelled_though_a_shell_ignores_interrupts() -> None:
    asked = [sys.executable, "-c", "import signal; print(repr(signal.getsignal(signal.SIGINT)))"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ignored = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        heed_interrupts()
        heeded = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    finally:
        signal.signal(signal.SIGINT, before)
    assert "SIG_IGN" in ignored
    assert "default_int_handler" in heeded


def test_killed_job_is_repeated_and_outlives_the_application(slow: Path) -> None:
    async def first(t: Terminal) -> None:
        await _merge_slowly(t, "a")
        pid = t.app.running[0].pid
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        await t.done("merge")
        assert t.app.running[0].state == "interrupted"
        await t.press("4")
        assert "interrupted" in t.screen
        await t.press("r")
        await t.until(lambda: len(t.app.running) == 2 and t.app.running[0].pid is not None)
        await t.press("q")
        assert isinstance(t.app.screen, LeaveDialog)
        assert "merge a" in t.screen
        await t.pilot.click("#go-on")
        await t.pilot.pause()

    async def second(t: Terminal) -> None:
        await t.until(lambda: [j.title for j in t.app.running] == ["merge a", "merge a"])
        await t.done("merge")
        assert t.app.running[0].state == "finished"
        await t.press("4", "space", "j")
        assert "run 1" in t.screen
        assert "-state" in t.screen

    run(slow, first)
    run(slow, second)


def test_damaged_job_folder_is_left_alone(home: Path) -> None:
    jobs = Jobs(home)
    name = jobs.submit(["pull", "x"], "pull x")
    (home / "jobs" / name / "job.json").write_text("{")
    (home / "jobs" / "stray").mkdir()
    (found,) = jobs.poll()
    assert (found.state, found.hint) == ("failed", "forget it (d)")
    jobs.forget(found)
    assert jobs.poll() == ()


def test_remote_finds_pulls_and_pushes(
    home: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.name: p.read_bytes() for p in (EXAMPLES / "packages").iterdir()}
    hub.add_repo("ann/packages", files)
    monkeypatch.setenv("HF_TOKEN", "hf_ann")

    async def scenario(t: Terminal) -> None:
        await t.press("6", "slash")
        await t.type("packages")
        await t.press("enter")
        assert "ann/packages" in t.screen
        await t.press("enter")
        await t.done("pull")
        assert t.app.running[0].state == "finished", t.app.running[0]
        await t.press("1")
        assert "ann/packages" in t.screen
        await t.press("p")
        assert "$ lorahub push ann/packages owner/name --private" in t.screen
        await t.type("ann/copy")
        await t.press("enter")
        assert "adapter_model.safetensors" in t.screen
        await t.pilot.click("#yes")
        await t.done("push")
        assert t.app.running[0].state == "finished", t.app.running[0]

    run(home, scenario)
    assert hub.repos["ann/copy"].private


def test_no_network_is_a_state(home: Path, hf_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    async def scenario(t: Terminal) -> None:
        await t.press("6", "slash")
        await t.type("packages")
        await t.press("enter")
        assert "Traceback" not in t.screen
        assert "offline" in t.screen.lower()

    run(home, scenario)


def test_events_reach_a_pipe_at_once(endless: Path) -> None:
    """Progress is only worth something while the work goes on."""
    env = {k: v for k, v in environment(endless).items() if k != "PYTHONUNBUFFERED"}
    words = ["merge", "one", "other", "--method", "ties", "--name", "x", "--events", "jsonl"]
    with subprocess.Popen(command(words), stdout=subprocess.PIPE, env=env) as child:
        assert child.stdout is not None
        events = (json.loads(line)["event"] for line in child.stdout)
        assert "advance" in events
        assert child.poll() is None
        child.kill()
