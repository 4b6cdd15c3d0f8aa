"""Groups handed to workers: what they need comes first, what is lost begins again, all of it once.

The workers here are a table of what shall become of each group, so that every order and every
loss can be had; `tests/test_batch.py` and `tests/test_ray.py` have real ones.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub.batch import Item, Outcome, groups
from lorahub.config import Config
from lorahub.errors import PartialError, ResourceError, UsageError
from lorahub.executors import Group, Here, Processes, Ray, choose
from lorahub.executors import ray as on_ray
from lorahub.executors.spreading import LostError, spread
from lorahub.recipe import make_recipe
from lorahub.workspace import Workspace


def item(name: str, sources: Sequence[str], needs: Sequence[str] = ()) -> Item:
    body = {"method": "svd", "sources": [{"adapter": s} for s in sources]}
    return Item(make_recipe(body), name, Path(name), frozenset(needs))


class Table:
    """A pool that loses each item as often as is said, and ends its groups in a drawn order."""

    def __init__(self, jobs: int, losses: dict[str, int], draw: Any, made: set[str]) -> None:
        self.jobs, self._losses, self._draw = jobs, dict(losses), draw
        self._made = made
        self._handles: dict[int, Group] = {}
        self.sizes: Counter[str] = Counter()
        self.closed = False

    def submit(self, group: Group) -> int:
        for one in group:
            assert one.needs <= self._made, "it was begun before what it needs"
            self.sizes[one.name] += 1
        handle = sum(self.sizes.values()) * 100 + len(group)
        self._handles[handle] = group
        assert len(self._handles) <= 2 * self.jobs
        return handle

    def wait(self, handles: Collection[int]) -> list[int]:
        assert set(handles) == set(self._handles)
        return [self._draw(st.sampled_from(sorted(handles)))]

    def result(self, handle: int) -> list[Outcome]:
        group = self._handles.pop(handle)
        for one in group:
            if self._losses.get(one.name, 0):
                self._losses[one.name] -= 1
                raise LostError("killed")
        self._made |= {one.name for one in group}
        return [Outcome(one.name, "merged", one.target) for one in group]

    def close(self) -> None:
        self.closed = True


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_item_has_one_outcome(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    items: list[Item] = []
    for i in range(count):
        earlier = [one.name for one in items]
        needs = data.draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        source = data.draw(st.sampled_from("xy"))
        items.append(item(f"m{i}", [source, *needs], needs))
    losses = data.draw(st.dictionaries(st.sampled_from([i.name for i in items]), st.integers(0, 3)))
    made: set[str] = set()
    missing: set[str] = set()

    def hindered(one: Item) -> Outcome | None:
        return Outcome(one.name, "skipped", one.target) if one.needs & missing else None

    pool = Table(data.draw(st.integers(1, 3)), losses, data.draw, made)
    parts = groups(items, data.draw(st.integers(1, 4)))
    assert [one for part in parts for one in part] == items
    found: dict[str, Outcome] = {}
    for outcome in spread(parts, hindered, pool):
        assert outcome.name not in found
        found[outcome.name] = outcome
        if outcome.state != "merged":
            missing.add(outcome.name)
        if outcome.state == "failed":
            assert isinstance(outcome.error, ResourceError)
            assert "twice" in str(outcome.error)
    assert found.keys() == {one.name for one in items}
    assert pool.closed
    for one in items:
        state = found[one.name].state
        assert pool.sizes[one.name] <= 2
        if state == "merged":
            assert losses.get(one.name, 0) < 2
        if state == "skipped":
            assert one.needs & missing


def test_one_that_kills_its_process_takes_no_other_with_it() -> None:
    parts = [tuple(item(f"m{i}", "x") for i in range(4))]
    pool = Table(1, {"m2": 2}, lambda strategy: strategy.elements[0], set())
    states = {o.name: o.state for o in spread(parts, lambda _: None, pool)}
    assert states == {"m0": "merged", "m1": "merged", "m2": "failed", "m3": "merged"}


def test_what_has_ended_meanwhile_comes_in_the_order_it_was_begun() -> None:
    class Together(Table):
        def wait(self, handles: Collection[int]) -> list[int]:
            return sorted(handles, reverse=True)

    parts = [(item(f"m{i}", "x"),) for i in range(6)]
    pool = Together(2, {"m1": 1}, None, set())
    found = [outcome.name for outcome in spread(parts, lambda _: None, pool)]
    assert found == ["m0", "m2", "m3", "m1", "m4", "m5"]


def test_closing_closes_the_pool() -> None:
    pool = Table(1, {}, lambda strategy: strategy.elements[0], set())
    outcomes = spread([(item("a", "x"),), (item("b", "x"),)], lambda _: None, pool)
    assert next(outcomes).name == "a"
    outcomes.close()
    assert pool.closed


def test_here_skips_what_is_hindered() -> None:
    skipped = Outcome("b", "skipped", Path("b"), error=PartialError("not begun"))
    begun: list[Group] = []

    def start(_: object) -> Any:
        def worker(group: Group) -> list[Outcome]:
            begun.append(group)
            return [Outcome(one.name, "merged", one.target) for one in group]

        return worker

    parts = [(item("a", "x"), item("b", "x"), item("c", "x")), (item("b", "y"),)]
    found = list(Here().run(parts, lambda one: skipped if one.name == "b" else None, start))
    assert sorted(o.name for o in found) == ["a", "b", "b", "c"]
    assert [[one.name for one in group] for group in begun] == [["a", "c"]]


CHILD = """\
import os, signal
from types import SimpleNamespace
if __name__ != "__main__":  # the spawned process reads this file before anything else
    os.kill(os.getpid(), signal.SIGINT)
from lorahub.executors import Processes

def start(listener):
    return lambda group: list(group)

if __name__ == "__main__":
    item = SimpleNamespace(name="a", needs=frozenset())
    made = Processes(1).run([(item,)], lambda _: None, start)
    print([outcome.name for outcome in made])
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no masks")
def test_ctrl_c_does_not_reach_a_process_that_only_begins(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CHILD)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("['a']\n", "")


def test_which_executor() -> None:
    assert isinstance(choose(None), Here)
    assert isinstance(choose("here", jobs=1), Here)
    assert choose(None, jobs=3).jobs == 3
    assert isinstance(choose("processes"), Processes)
    for kind, options, why in (
        (None, {"jobs": 0}, "0 jobs"),
        ("here", {"jobs": 2}, "one after the other"),
        ("processes", {"address": "auto"}, "--executor ray"),
    ):
        with pytest.raises(UsageError, match=why):
            choose(kind, **options)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        choose("ray")
    assert caught.value.hint == on_ray.INSTALL


def test_what_is_about_to_end_on_a_cluster_is_not_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray aborts this process where both meet; and what waits is cancelled before what runs."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ended, cancelled = {"soon over"}, []

    def wait(handles: list[str], *, num_returns: int, timeout: float) -> tuple[Any, Any]:
        assert num_returns == len(handles)
        assert timeout > 0
        return [h for h in handles if h in ended], [h for h in handles if h not in ended]

    def cancel(handle: str, *, force: bool) -> None:
        cancelled.append((handle, force))
        if force or handle != "deaf":
            ended.add(handle)

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "cancel", cancel)
    pool: Any = object.__new__(on_ray._Pool)
    pool._running = ["deaf", "soon over", "running", "waiting"]
    pool.close()
    one_by_one = [("waiting", False), ("running", False), ("deaf", False), ("deaf", True)]
    assert cancelled == one_by_one


def test_a_file_is_no_catalog_for_other_machines(home: Path) -> None:
    class Far(Here):
        hosts = ("far",)

    recipe = make_recipe({"method": "svd", "sources": [{"adapter": "x"}], "output": {"name": "a"}})
    with Workspace.open() as workspace, pytest.raises(UsageError, match="far cannot write") as why:
        list(workspace.batch([recipe], executor=Far()))
    assert "LORAHUB_DATABASE_URL" in str(why.value.hint)


def test_settings_do_not_show_passwords() -> None:
    assert "secret" not in repr(Config(Path("home"), "postgresql://me:secret@db/catalog"))


# --- addresses ---


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "host:x", "ray://host"])
def test_what_is_no_address(address: str) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(UsageError, match="no address"):
        _ = Ray(address).jobs
