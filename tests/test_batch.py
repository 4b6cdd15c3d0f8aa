"""Batches: order, failures, resuming, processes, kills, and the same bytes whatever the jobs."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.batch import ordered
from lorahub.cli.main import app
from lorahub.errors import (
    ConflictError,
    InvalidRecipeError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lorahub.events import Advanced, Event, PhaseStarted, Warned
from lorahub.merging import Merger
from lorahub.output import new_folder, writing
from lorahub.recipe import Recipe, make_recipe
from lorahub.reporting import markdown
from lorahub.sweep import load_sweep
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.waiting import PATIENCE

SHAPES = {"layers.0.q_proj": (24, 32, 3), "layers.1.v_proj": (16, 32, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        write_adapter(tmp_path / name, SHAPES, seed=seed)
    return tmp_path


@pytest.fixture
def workspace(home: Path, folder: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        opened.pull([str(folder / name) for name in ("one", "two")])
        yield opened


def recipe(name: str, *sources: str, weight: float = 1.0, **body: Any) -> Recipe:
    parts = [{"adapter": s, "weight": weight} for s in sources or ("one", "two")]
    return make_recipe({"method": "svd", "sources": parts, "output": {"name": name}} | body)


def states(outcomes: Any) -> dict[str, str]:
    return {o.name: o.state for o in outcomes}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_results_become_sources(workspace: Workspace) -> None:
    """What needs another's result comes after it, however they are given."""
    chain = [recipe("c", "b", "one"), recipe("b", "a", "two"), recipe("a")]
    events: list[Event] = []
    found = list(workspace.batch(chain, listener=events.append))
    assert [(o.name, o.state) for o in found] == [(n, "merged") for n in "abc"]
    assert [e for e in events if isinstance(e, PhaseStarted)] == [
        PhaseStarted("batch", 3, "merges")
    ]
    assert [e.done for e in events if isinstance(e, Advanced)] == [1, 2, 3]
    assert workspace.verify("c").passed
    assert found[0].rank == 6
    assert found[0].truncation == pytest.approx(0, abs=1e-5)
    assert states(workspace.batch(chain)) == dict.fromkeys("abc", "unchanged")


def test_a_changed_input_redoes_what_depends_on_it(workspace: Workspace) -> None:
    def chain(weight: float) -> list[Recipe]:
        return [
            recipe("a", weight=weight),
            recipe("b", "a", "two"),
            recipe("apart", "two"),
        ]

    list(workspace.batch(chain(1)))
    # Without resuming, another result in its place is a conflict.
    assert states(workspace.batch(chain(2))) == {
        "a": "failed",
        "b": "skipped",
        "apart": "unchanged",
    }
    found = list(workspace.batch(chain(2), resume=True))
    assert states(found) == {"a": "merged", "b": "merged", "apart": "unchanged"}
    assert states(workspace.batch(chain(2), resume=True)) == dict.fromkeys(
        ("a", "b", "apart"), "unchanged"
    )
    assert workspace.verify("b").passed
    assert not workspace.catalog.check()


def test_resuming_replaces_nothing_but_merges(workspace: Workspace) -> None:
    (outcome,) = workspace.batch([recipe("one", "two")], resume=True)
    assert outcome.state == "failed"
    assert isinstance(outcome.error, ConflictError)


def test_a_failure_stops_only_what_needs_it(workspace: Workspace) -> None:
    recipes = [
        recipe("bad", "nowhere"),
        recipe("needs-bad", "bad"),
        recipe("good"),
        recipe("tight", verify={"truncation": 0.0}, parameters={"rank": 1}),
    ]
    warnings: list[Event] = []
    found = {o.name: o for o in workspace.batch(recipes, listener=warnings.append)}
    assert states(found.values()) == {
        "bad": "failed",
        "needs-bad": "skipped",
        "good": "merged",
        "tight": "failed",
    }
    assert isinstance(found["bad"].error, NotFoundError)
    assert "'bad', which it needs" in str(found["needs-bad"].error)
    assert len([w for w in warnings if isinstance(w, Warned)]) == 3
    assert "| good | merged | 6 |" in markdown(list(found.values()))
    assert "- needs-bad: 'bad'" in markdown(list(found.values()))


def test_a_full_disk_costs_only_what_did_not_fit(home: Path, tmp_path: Path) -> None:
    """No file may have more than 3 MB: the large result fails, and is made once there is room."""
    for seed, name in enumerate(("one", "two")):
        write_adapter(tmp_path / name, {"layers.0.q_proj": (2048, 2048, 160)}, seed=seed)
    recipes = [
        recipe("small", method="svd", parameters={"rank": 1}),
        recipe("large", method="cat"),
        recipe("needs-large", "large", "one", parameters={"rank": 1}),
    ]
    with Workspace.open() as workspace:
        workspace.pull([str(tmp_path / name) for name in ("one", "two")])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, hard))
        try:
            found = {o.name: o for o in workspace.batch(recipes)}
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert states(found.values()) == {
            "small": "merged", "large": "failed", "needs-large": "skipped",
        }  # fmt: skip
        error = found["large"].error
        assert isinstance(error, StorageError)
        assert ".large." in error.message
        assert "File too large" in error.message
        assert "bytes are needed" in str(error.hint)
        assert [p.name for p in workspace.config.adapters.iterdir()] == ["small"]
        assert states(workspace.batch(recipes)) == {
            "small": "unchanged", "large": "merged", "needs-large": "merged",
        }  # fmt: skip


def test_fail_fast_begins_nothing_more(workspace: Workspace) -> None:
    recipes = [recipe("first"), recipe("bad", "nowhere"), recipe("last", "two")]
    assert states(workspace.batch(recipes, fail_fast=True)) == {
        "first": "merged",
        "bad": "failed",
        "last": "skipped",
    }


def test_what_is_refused_before_anything_starts(workspace: Workspace) -> None:
    with pytest.raises(ConflictError, match="two merges of the batch have the output name 'a'"):
        workspace.batch([recipe("a"), recipe("a", "two")])
    with pytest.raises(InvalidRecipeError, match=r"in a circle: . <- . <- . <- .$"):
        workspace.batch([recipe("a", "b"), recipe("b", "c"), recipe("c", "a")])
    with pytest.raises(InvalidRecipeError, match="circle: a <- a"):
        workspace.batch([recipe("a", "a")])
    with pytest.raises(InvalidRecipeError, match="has no parameter 'rnk'"):
        workspace.batch(iter([recipe("x"), recipe("y", parameters={"rnk": 2})]))
    with pytest.raises(UsageError, match="has no place"):
        workspace.batch([make_recipe({"method": "svd", "sources": [{"adapter": "one"}]})])
    with pytest.raises(UsageError, match="0 jobs"):
        workspace.batch([recipe("a")], jobs=0)
    assert not workspace.config.adapters.exists()


def test_order_keeps_those_of_one_set_of_sources_together(tmp_path: Path) -> None:
    given = [recipe("a"), recipe("b", "two"), recipe("c"), recipe("d", "b")]
    named = [(r, str(r.output.name), tmp_path / str(r.output.name)) for r in given]
    assert [i.name for i in ordered(named)] == ["a", "c", "b", "d"]
    by_folder = [*named, (recipe("e", str(tmp_path / "d")), "e", tmp_path / "e")]
    assert [i.name for i in ordered(reversed(by_folder))][-1] == "e"


def test_the_same_bytes_whatever_jobs_and_order(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [
        recipe(f"{method}-{seed}", method=method, seed=seed, parameters=parameters)
        for method, parameters in (("svd", {"rank": 2}), ("lego", {"rank": 2}), ("dare_ties", {}))
        for seed in (0, 1)
    ]
    list(workspace.batch(recipes))
    here = contents(workspace.config.adapters)
    with Workspace.open(tmp_path / "others") as others:
        others.pull([str(tmp_path / name) for name in ("one", "two")])
        begun = others.batch(recipes[::-1], jobs=2)
        next(begun)
        begun.close()  # as Ctrl-C does: what is under way is interrupted, and leaves nothing
        assert not list(others.config.adapters.glob(".*"))
        assert {run.state for run in others.catalog.runs()} <= {"finished", "interrupted"}
        assert set(states(others.batch(recipes[::-1], jobs=2)).values()) == {"merged", "unchanged"}
        assert contents(others.config.adapters) == here
    monkeypatch.setattr("lorahub.engine.batches.CPU_BATCH_BYTES", 1)
    with Workspace.open(tmp_path / "small") as small:
        small.pull([str(tmp_path / name) for name in ("one", "two")])
        list(small.batch(recipes))
        assert contents(small.config.adapters) == here


def test_two_batches_on_the_same_outputs(workspace: Workspace) -> None:
    """One that finds a result being written says so; one that finds it written takes it."""
    target = workspace.config.adapters / "a"
    with new_folder(target, workspace.config.home / "locks") as partial:
        (partial / "x").write_text("x")
        (outcome,) = workspace.batch([recipe("a")], resume=True)
        assert outcome.state == "failed"
        assert "is writing it right now" in str(outcome.error)
        partial.joinpath("x").unlink()
    target.rmdir()
    words = [sys.executable, "-m", "tests.test_batch", "6"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for child in both:
        out, _ = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0
        done = json.loads(out)
        # A merge that met the other's lock is an honest conflict, and the only kind of failure.
        odd = [why for state, why in done if state not in {"merged", "unchanged"}]
        assert all("right now" in why for why in odd), odd
    assert set(states(workspace.batch(numbered(6))).values()) == {"unchanged"}
    assert not workspace.catalog.check()


def test_a_result_that_comes_while_it_is_looked_for(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process ends its merge between two looks: what it made is taken, not replaced."""
    other_writes, looked = ExitStack(), Merger.is_there
    target, locks = workspace.config.adapters / "a", workspace.config.home / "locks"
    other_writes.enter_context(writing(target, locks))

    def end_meanwhile(self: Merger, *words: Any) -> bool:
        found = looked(self, *words)
        monkeypatch.setattr(Merger, "is_there", looked)
        other_writes.close()
        with Workspace.open(workspace.config.home) as other:
            assert states(other.batch([recipe("a")])) == {"a": "merged"}
        return found

    monkeypatch.setattr(Merger, "is_there", end_meanwhile)
    assert states(workspace.batch([recipe("a")], resume=True)) == {"a": "unchanged"}
    assert [run.state for run in workspace.catalog.runs()] == ["finished"]


def test_a_result_in_its_place_is_catalogued_by_who_made_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that both did would each find the other's name taken."""
    met: list[Any] = []
    catalogue = Merger._catalogue

    def met_by_another(self: Merger, *words: Any) -> Any:
        monkeypatch.setattr(Merger, "_catalogue", catalogue)
        with Workspace.open(workspace.config.home) as other:
            met.extend(other.batch([recipe("a")], resume=True))
        return catalogue(self, *words)

    monkeypatch.setattr(Merger, "_catalogue", met_by_another)
    assert states(workspace.batch([recipe("a")])) == {"a": "merged"}
    assert "is writing it right now" in str(met[0].error)
    assert [run.state for run in workspace.catalog.runs()] == ["finished"]


def numbered(count: int) -> list[Recipe]:
    return [recipe(f"m{i}", weight=1 + i, parameters={"rank": 2}) for i in range(count)]


KILLS = (
    ("lorahub.engine.verify", "verify_all", 1),  # all weights are written, nothing else
    ("lorahub.output", "_move", 9),  # one is written, but not in its place
    ("lorahub.merging", "Merger._catalogue", 11),  # one is in its place, but not catalogued
)


def test_killed_and_resumed(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL within a merge, thrice: the rest is the same, and nothing is left over."""
    references = [str(folder / name) for name in ("one", "two")]
    with Workspace.open() as workspace:
        workspace.pull(references)
        list(workspace.batch(numbered(40)))
        whole = contents(workspace.config.adapters)
    monkeypatch.setenv("LORAHUB_HOME", str(folder / "killed"))
    with Workspace.open() as workspace:
        workspace.pull(references)
    for kill in KILLS:
        words = [sys.executable, "-m", "tests.test_batch", "40", *map(str, kill)]
        done = subprocess.run(words, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    with Workspace.open() as workspace:
        found = states(workspace.batch(numbered(40), resume=True))
        assert set(found.values()) == {"merged", "unchanged"}
        # All forty are under way together, and finished one by one.
        assert list(found.values()).count("unchanged") == 0 + 8 + 11
        assert contents(workspace.config.adapters) == whole
        assert not list(workspace.config.adapters.glob(".*"))
        assert not workspace.catalog.check()
        runs = [run.state for run in workspace.catalog.runs(limit=1000)]
        assert runs.count("interrupted") == 40 + 32 + 22
        assert set(runs) == {"finished", "interrupted"}
        assert len(workspace.adapters(limit=1000)) == 42


def test_what_a_killed_worker_was_doing_begins_again(workspace: Workspace) -> None:
    recipes = numbered(6)
    failing = [recipe("needs-bad", "bad"), recipe("bad", "nowhere")]
    outcomes = workspace.batch(recipes + failing, jobs=2)
    first = next(outcomes)
    assert first.state == "merged"
    for child in _children():
        os.kill(child, signal.SIGKILL)
    rest = list(outcomes)
    failed = {o.name: o for o in rest if o.error is not None}
    assert states(failed.values()) == {"bad": "failed", "needs-bad": "skipped"}
    assert isinstance(failed["bad"].error, NotFoundError)
    assert {o.name for o in rest} | {first.name} == {f"m{i}" for i in range(6)} | set(failed)
    assert set(states(workspace.batch(recipes)).values()) == {"unchanged"}
    assert not workspace.catalog.check()


def _children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid]


# --- the command ---

SWEEP = """\
method: svd
sources: [{adapter: one}, {adapter: two}]
matrix: {parameters.rank: [1, 2], sources.weight: [[1, 0.5], [0.3, 0.7]]}
output: {name: 'm-{rank}-{weight}'}
"""


def command(*words: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, ["batch", *words])
    return done.exit_code, done


def test_the_command(workspace: Workspace, folder: Path) -> None:
    recipes = folder / "recipes"
    recipes.mkdir()
    (recipes / "sweep.yaml").write_text(SWEEP)
    (recipes / "more.yml").write_text(
        "method: cat\nsources: [{adapter: m-1-1_0.5}, {adapter: one}]\noutput: {name: more}\n"
    )
    (recipes / "sweep.lock.yaml").write_text("not: read as a recipe\n")
    code, done = command(str(recipes), "--json")
    assert code == 5
    assert "sweep.lock.yaml" in done.stderr
    (recipes / "sweep.lock.yaml").unlink()
    assert workspace.lock(recipes / "sweep.yaml").sources.keys() == {"one", "two"}
    code, done = command(str(recipes), "--dry-run", "--json")
    forecast = json.loads(done.stdout)["result"]
    assert (code, forecast["merges"], forecast["unknown"]) == (0, 5, 1)
    # Four merges of both adapters in float32, to ranks 1 and 2.
    assert forecast["input_bytes"] == 4 * 2 * 3 * (24 + 32 + 16 + 32) * 4
    assert forecast["output_bytes"] == 2 * (1 + 2) * (24 + 32 + 16 + 32) * 4
    report = folder / "report.md"
    code, done = command(str(recipes), "--json", "--report", str(report))
    body = json.loads(done.stdout)
    assert (code, body["status"], len(body["result"])) == (0, "ok", 5)
    assert report.read_text().count("| merged |") == 5
    code, done = command(str(recipes), "--dry-run", "--json")
    assert json.loads(done.stdout)["result"]["unchanged"] == 4
    code, done = command(str(recipes), "--events", "jsonl")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["phase", *["advance"] * 5, "finished"]


def test_a_failure_says_what_to_do_as_a_single_merge_does(
    workspace: Workspace, folder: Path
) -> None:
    file = folder / "r.yaml"
    file.write_text("method: svd\nsources: [{adapter: onne}]\noutput: {name: y}\n")
    error, hint = CliRunner().invoke(app, ["merge", str(file)]).stderr.splitlines()
    assert hint.startswith("hint: ")
    warning, remedy, _ = command(str(file))[1].stderr.splitlines()
    assert (warning, remedy) == (error.replace("error: ", "warning: y: "), hint)
    _, done = command(str(file), "--events", "jsonl")
    (event,) = [e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "warning"]
    assert event["hint"] == hint.removeprefix("hint: ")


def test_a_partial_batch_exits_with_8(workspace: Workspace, folder: Path) -> None:
    (folder / "r.yaml").write_text("method: svd\nsources: [{adapter: x}]\noutput: {name: y}\n")
    (folder / "s.yaml").write_text(SWEEP)
    code, done = command(str(folder / "r.yaml"), str(folder / "s.yaml"), "--json")
    body = json.loads(done.stdout)
    assert (code, body["status"]) == (8, "partial")
    assert body["result"][0]["error"]["code"] == "not_found"


def test_a_matrix_of_a_million_asks(workspace: Workspace, folder: Path) -> None:
    numbers = list(range(100))
    path = folder / "s.yaml"
    path.write_text(
        "method: svd\nsources: [{adapter: one}]\noutput: {name: 'm{n}'}\n"
        f"matrix: {{seed: {numbers}, scale: {numbers}, weights.x: {numbers}}}\n"
    )
    code, done = command(str(path))
    assert code == 2
    assert "these are 1000000 merges" in done.stderr
    assert "--yes" in done.stderr
    done = CliRunner().invoke(app, ["recipes", "check", str(path)])
    assert done.exit_code == 2
    assert "these are 1000000 merges" in done.stderr


def test_a_folder_is_checked_as_it_is_merged(folder: Path) -> None:
    recipes = folder / "recipes"
    recipes.mkdir()
    (recipes / "a.yaml").write_text(SWEEP)
    (recipes / "b.yml").write_text("method: svd\nsources: [{adapter: x}]\n")
    done = CliRunner().invoke(app, ["recipes", "check", str(recipes)])
    assert (done.exit_code, done.stdout.count("\n")) == (0, 3)
    (recipes / "b.yml").write_text("method: svd\n")
    done = CliRunner().invoke(app, ["recipes", "check", str(recipes)])
    assert done.exit_code == 5
    assert "b.yml, key 'sources'" in done.stderr


def test_folders_and_files_that_hold_nothing(workspace: Workspace, folder: Path) -> None:
    (folder / "empty").mkdir()
    code, done = command(str(folder / "empty"))
    assert code == 3
    assert "holds no recipes" in done.stderr
    code, _ = command(str(folder / "nothing.yaml"))
    assert code == 3
    (folder / "same.yaml").write_text(SWEEP.replace("m-{rank}-{weight}", "m-{rank}"))
    code, done = command(str(folder / "same.yaml"))
    assert code == 6
    assert "{n}" in done.stderr
    assert sum(1 for _ in load_sweep(folder / "same.yaml").recipes()) == 4


def main(count: int, module: str = "", function: str = "", call: str = "0") -> None:
    """Run a batch in this process, which kills itself at a call of a function, if one is given."""
    if function:
        *owners, name = function.split(".")
        owner: Any = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        whole, calls = getattr(owner, name), []

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == int(call):
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*args, **kwargs)

        setattr(owner, name, deadly)
    with Workspace.open() as workspace:
        found = [(o.state, str(o.error)) for o in workspace.batch(numbered(count), resume=True)]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
