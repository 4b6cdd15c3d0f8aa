"""From the basket to the exported and pushed result, with real child processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from textual.widgets import Input, TextArea

from lorahub.formats import inspect
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES, write_adapter
from tests.loopback_hub.server import LoopbackHub
from tests.terminal import NARROW, WIDE, Terminal, run
from tui.jobs import Jobs
from tui.screens.compose import ComposeScreen
from tui.screens.leave import LeaveDialog


@pytest.fixture
def filled(home: Path) -> Path:
    """A catalog of two examples."""
    with Workspace.open(home) as workspace:
        workspace.pull([str(EXAMPLES / n) for n in ("languages", "packages")])
    return home


@pytest.fixture
def large(home: Path) -> Path:
    """Two adapters whose merge takes a few seconds."""
    modules = {f"layers.{i}.q": (1024, 1024, 64) for i in range(40)}
    with Workspace.open(home) as workspace:
        for seed, name in enumerate(("one", "other")):
            folder = write_adapter(home.parent / name, modules, seed=seed)
            workspace.pull([str(folder)])
    return home


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
        assert "$ lorahub merge --name both" in t.screen
        await t.press("enter")
        await t.done("merge")
        assert t.app.running[0].state == "finished", t.app.running[0]
        await t.press("3")
        assert "verified" in t.screen
        await t.press("4")
        assert "finished" in t.screen
        assert "method: svd" in t.screen
        await t.press("1", "slash")
        await t.type("source:merge")
        await t.press("enter", "e")
        size = (filled / "adapters" / "both" / "adapter_model.safetensors").stat().st_size
        assert f"{size:,}  adapter_model.safetensors" in t.screen
        line = t.app.screen.query_one("#folder", Input)
        line.value = str(target)
        await t.idle()
        assert f"$ lorahub export both {target}"[:60] in t.screen
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


def test_cancel_pause_and_queue(large: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        for name in ("a", "b"):
            t.app.edit(t.app.draft.with_name(name))
            await t.idle()
            await t.press("m")
        await t.press("3")
        await t.until(lambda: any(j.done for j in t.app.running))
        states = {j.title: j.state for j in t.app.running}
        assert states == {"merge a": "running", "merge b": "waiting"}
        await t.press("j")
        assert "modules/s" in t.screen or "merge a" in t.screen
        await t.press("space")
        await t.until(lambda: t.app.running[1].state == "paused")
        await t.press("space")
        await t.until(lambda: t.app.running[1].state != "paused")
        await t.press("k", "x")
        await t.until(lambda: len(t.app.running) == 1)
        await t.press("x")
        await t.until(lambda: not t.app.running[0].active)
        assert t.app.running[0].state == "interrupted"
        await t.press("4")
        assert "interrupted" in t.screen

    run(large, scenario)
    assert not (large / "adapters" / "a").exists()


def test_job_outlives_the_application(large: Path) -> None:
    async def first(t: Terminal) -> None:
        await _pick_two(t)
        t.app.edit(t.app.draft.with_name("a"))
        await t.idle()
        await t.press("m")
        await t.until(lambda: any(j.done for j in t.app.running))
        await t.press("q")
        assert isinstance(t.app.screen, LeaveDialog)
        assert "merge a" in t.screen
        await t.pilot.click("#go-on")
        await t.pilot.pause()

    async def second(t: Terminal) -> None:
        assert [j.title for j in t.app.running] == ["merge a"]
        await t.done("merge")
        assert t.app.running[0].state == "finished"
        await t.press("1")
        assert "a " in t.screen

    run(large, first)
    run(large, second)


def test_killed_child_is_recorded_and_can_be_repeated(large: Path) -> None:
    async def scenario(t: Terminal) -> None:
        await _pick_two(t)
        t.app.edit(t.app.draft.with_name("a"))
        await t.idle()
        await t.press("m", "3")
        await t.until(lambda: any(j.done for j in t.app.running))
        pid = t.app.running[0].pid
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        await t.done("merge")
        assert t.app.running[0].state == "interrupted"
        await t.press("4")
        assert "interrupted" in t.screen
        await t.press("r")
        await t.done("merge")
        assert t.app.running[0].state == "finished"
        await t.press("space", "4", "j")
        assert "run 1" in t.screen
        assert "-state" in t.screen

    run(large, scenario)


def test_damaged_job_folder_is_left_alone(home: Path) -> None:
    jobs = Jobs(home)
    name = jobs.submit(["version"], "version")
    (home / "jobs" / name / "job.json").write_text("{")
    (home / "jobs" / "stray").mkdir()
    (found,) = jobs.poll()
    assert found.state in {"waiting", "running"}
    jobs.close()


def test_remote_finds_pulls_and_pushes(
    home: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.name: p.read_bytes() for p in (EXAMPLES / "packages").iterdir()}
    hub.add_repo("ann/packages", files)
    monkeypatch.setenv("HF_TOKEN", "hf_ann")

    async def scenario(t: Terminal) -> None:
        await t.press("6")
        await t.type("packages")
        await t.press("enter")
        assert "ann/packages" in t.screen
        await t.press("enter")
        await t.done("pull")
        assert t.app.running[0].state == "finished", t.app.running[0]
        await t.press("1")
        assert "ann/packages" in t.screen
        await t.press("p")
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
        await t.press("6")
        await t.type("packages")
        await t.press("enter")
        assert "Traceback" not in t.screen
        assert "offline" in t.screen.lower()

    run(home, scenario)


def test_events_reach_a_pipe_at_once(large: Path) -> None:
    """Progress is only worth something while the work goes on."""

    async def main() -> None:
        from tui.jobs import command, environment

        env = {k: v for k, v in environment(large).items() if k != "PYTHONUNBUFFERED"}
        child = await asyncio.create_subprocess_exec(
            *command(["merge", "one", "other", "--method", "cat", "--name", "x",
                      "--events", "jsonl"]),
            stdout=asyncio.subprocess.PIPE, env=env,
        )  # fmt: skip
        assert child.stdout is not None
        line = await child.stdout.readline()
        assert json.loads(line)["event"] == "phase"
        assert child.returncode is None
        os.kill(child.pid, signal.SIGSTOP)
        try:
            assert not (large / "adapters" / "x").exists()
        finally:
            os.kill(child.pid, signal.SIGKILL)
        await child.communicate()

    asyncio.run(main())
