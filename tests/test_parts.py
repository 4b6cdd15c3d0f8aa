"""One merge in parts: the same bytes wherever and in whatever order they are made."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lorahub.cli.main import app
from lorahub.engine.batches import Batches, pick_device
from lorahub.engine.parts import AHEAD_PER_JOB, cut
from lorahub.engine.plan import Plan
from lorahub.engine.work import Task
from lorahub.errors import InvalidAdapterError, InvalidRecipeError
from lorahub.events import Advanced, ignore
from lorahub.executors import Executor, Group, Hindered, Processes, Start
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.test_batch import contents, recipe

LAYERS = {f"layers.{i}.q_proj": (24, 32, 3) for i in range(5)} | {
    f"layers.{i}.v_proj": (16, 32, 2 + i % 2) for i in range(4)
}
RECIPES: dict[str, dict[str, Any]] = {
    "svd": {"parameters": {"rank": 3}, "normalize": True},
    "dare_ties": {"seed": 3},
    "welore": {"budget": "60%"},
}


class Pickled:
    """A machine apart in this process: all that goes there and comes back is pickled."""

    hosts = ("far",)
    elsewhere = True

    def __init__(self, jobs: int = 2, order: Callable[[list[Any]], list[Any]] = list) -> None:
        self.jobs, self._order = jobs, order
        self.parts = 0

    def run(
        self, groups: Sequence[Group], hindered: Hindered, start: Start
    ) -> Generator[Any, None, None]:
        self.parts += len(groups)
        worker = pickle.loads(pickle.dumps(start))(ignore)
        for group in self._order(list(groups)):
            yield from pickle.loads(pickle.dumps(list(worker(pickle.loads(pickle.dumps(group))))))


@pytest.fixture
def sources(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two adapters, every module of which is a batch of its own."""
    monkeypatch.setattr("lorahub.engine.batches.CPU_BATCH_BYTES", 1)
    names = [str(tmp_path / name) for name in ("one", "two")]
    for seed, name in enumerate(names):
        write_adapter(Path(name), LAYERS, seed=seed)
    return names


@pytest.fixture
def workspace(sources: list[str]) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        opened.pull(sources)
        yield opened


def merged_by(
    home: Path, sources: Sequence[str], methods: Sequence[str], executor: Executor | None
) -> dict[str, str]:
    """All files of the merges of a new data folder, by their hashes."""
    with Workspace.open(home) as workspace:
        workspace.pull(sources)
        for method in methods:
            merge(workspace, method, executor)
        assert not workspace.catalog.check()
        return contents(workspace.config.adapters)


def merge(workspace: Workspace, method: str, executor: Executor | None = None, **more: Any) -> None:
    body = {"method": method, **RECIPES[method]}
    assert workspace.merge(recipe(method, **body), executor=executor, **more).state == "merged"


def nothing_left(workspace: Workspace) -> bool:
    adapters = workspace.config.adapters
    return not (adapters.exists() and list(adapters.iterdir()))


def test_the_same_bytes_in_any_order(sources: list[str], tmp_path: Path) -> None:
    here = merged_by(tmp_path / "here", sources, list(RECIPES), None)
    assert len(here) == 5 * len(RECIPES)
    backwards = Pickled(order=lambda groups: groups[::-1])
    assert merged_by(tmp_path / "backwards", sources, list(RECIPES), backwards) == here
    assert backwards.parts > 2 * len(RECIPES)
    assert merged_by(tmp_path / "one", sources, ["welore"], Processes(1)).items() < here.items()
    assert (
        merged_by(tmp_path / "three", sources, ["dare_ties"], Processes(3)).items() < here.items()
    )


def test_the_same_events(workspace: Workspace) -> None:
    found = []
    for executor in (None, Pickled()):
        events: list[Any] = []
        merge(workspace, "welore", executor, force=True, listener=events.append)
        found.append(events)
        assert sum(isinstance(e, Advanced) and e.phase == "merge" for e in events) == len(LAYERS)
    assert found[0] == found[1]


def test_a_part_that_fails(workspace: Workspace, tmp_path: Path) -> None:
    """The error is that of a merge here, and nothing is left of it."""
    tensors = load_file(tmp_path / "one" / "adapter_model.safetensors")
    bad = "base_model.model.layers.3.q_proj.lora_A.weight"
    tensors[bad][0, 0] = float("nan")
    write_adapter(tmp_path / "bad", LAYERS)
    save_file(tensors, tmp_path / "bad" / "adapter_model.safetensors", metadata={"format": "pt"})
    body = recipe("m", str(tmp_path / "bad"), "two", normalize=False)
    with pytest.raises(InvalidAdapterError, match=bad.replace(".", r"\.")):
        workspace.merge(body, executor=Pickled())
    assert nothing_left(workspace)
    assert [run.state for run in workspace.catalog.runs()] == ["failed"]


def test_a_budget_that_fails_begins_no_part(workspace: Workspace) -> None:
    executor = Pickled()
    body = recipe("m", budget="1 params", allocate="prune")
    with pytest.raises(InvalidRecipeError, match="leaves no rank"):
        workspace.merge(body, executor=executor)
    assert executor.parts == 0
    assert nothing_left(workspace)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of forty modules of many ranks."""
    folder = tmp_path_factory.mktemp("long")
    shapes = {f"layers.{i}.q_proj": (8, 8, 1 + i * i % 37) for i in range(40)}
    write_adapter(folder / "one", shapes)
    with Workspace.open(folder / "home") as workspace:
        return workspace.plan(recipe("m", str(folder / "one")))


@settings(max_examples=100, deadline=None)
@given(
    jobs=st.integers(1, 6), limit=st.integers(1, 30_000), share=st.integers(100, 10_000),
    modules=st.lists(st.integers(0, 39), min_size=1),
)  # fmt: skip
def test_how_it_is_cut(long: Plan, jobs: int, limit: int, share: int, modules: list[int]) -> None:
    """Every module once, in order, no batch in two parts, and no part too far ahead."""
    plan = replace(long, modules=tuple(long.modules[i] for i in modules))
    with (
        pytest.MonkeyPatch.context() as patch,
        Batches(plan, device=pick_device("cpu"), batch_bytes=limit) as batches,
    ):
        patch.setattr("lorahub.engine.parts.PART_BYTES", share)
        parts = cut(Task(plan), batches, jobs)
        whole = list(batches.of(plan))
    assert [m for part in parts for m in part.plan.modules] == list(plan.modules)
    ends = set(accumulate(map(len, whole)))
    assert set(accumulate(len(part.plan.modules) for part in parts)) <= ends
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    most = max(sum(m.rank * 16 * 4 for m in batch) for batch in whole)
    for i, part in enumerate(parts):
        assert part.needs == set(names[: max(0, i - AHEAD_PER_JOB * jobs)])
        assert sum(m.rank * 16 * 4 for m in part.plan.modules) <= max(share, most)


def test_the_command(workspace: Workspace) -> None:
    words = ["merge", "one", "two", "--method", "svd", "--name", "m", "--jobs", "1", "--json"]
    done = CliRunner().invoke(app, [*words, "--executor", "processes"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["result"]["state"] == "merged"
    for options, why in (
        (["--address", "auto"], "--executor ray"),
        (["--executor", "here", "--jobs", "2"], "one after the other"),
    ):
        done = CliRunner().invoke(app, ["merge", "one", "--method", "svd", "--name", "n", *options])
        assert done.exit_code == 2
        assert why in done.stderr
