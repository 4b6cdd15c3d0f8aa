"""Batches on a real Ray cluster: the same bytes, lost workers, a lost driver, no answer.

The cluster is one machine with two workers that pretend to have a GPU each.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.batch import Outcome
from lorahub.cli.main import app
from lorahub.errors import NetworkError, ResourceError
from lorahub.events import Listener
from lorahub.executors import Executor, Group, Here, Hindered, Processes, Ray, Start, Worker
from lorahub.executors import ray as on_ray
from lorahub.storage import stored
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.postgres import Databases
from tests.ray_cluster import SETTINGS, cluster
from tests.s3 import s3_server
from tests.test_batch import SHAPES, contents, numbered, recipe, states
from tests.test_parts import LAYERS, RECIPES, merge, merged_by, nothing_left
from tests.waiting import until

ray = pytest.importorskip("ray", reason="ray is not installed")

os.environ.update(SETTINGS)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Path]]:
    """A cluster whose workers know an S3 server, as theirs on machines apart would."""
    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "results"), cluster(2) as found:
        yield found
        ray.shutdown()


@pytest.fixture
def joined(running: tuple[str, Path]) -> str:
    """A cluster that this process has joined, so that its workers stay from test to test."""
    if not ray.is_initialized():  # the first one, or after those that want to be apart
        ray.init(running[0], log_to_driver=False, logging_level="error")
    return running[0]


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    names = [str(tmp_path / name) for name in ("one", "two")]
    for seed, name in enumerate(names):
        write_adapter(Path(name), SHAPES, seed=seed)
    return names


@pytest.fixture
def workspace(home: Path, sources: list[str]) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        opened.pull(sources)
        yield opened


def mixed() -> list[Any]:
    """Merges that draw numbers, that share sources, and that need each other."""
    return [
        *numbered(4),
        recipe("lego", method="lego", parameters={"rank": 2}, seed=1),
        recipe("dare", method="dare_ties", seed=2),
        recipe("chain", "m0", "two"),
        recipe("end", "chain", "lego", parameters={"rank": 3}),
    ]


def test_the_same_bytes_everywhere(
    joined: str, workspace: Workspace, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[tuple[str, Executor, int | None]] = [
        ("here", Here(), 1),  # bytes per batch: one module
        ("again", Here(), 64 << 20),
        ("four", Processes(4), None),
        ("ray", Ray(), None),
    ]
    found = {}
    for name, executor, batch_bytes in places:
        with Workspace.open(workspace.config.home / name) as other, monkeypatch.context() as patch:
            if batch_bytes:
                patch.setattr("lorahub.engine.batches.CPU_BATCH_BYTES", batch_bytes)
            other.pull(sources)
            outcomes = list(other.batch(mixed(), executor=executor))
            assert {o.state for o in outcomes} == {"merged"}, name
            assert not other.catalog.check()
            found[name] = contents(other.config.adapters)
    assert len(found["here"]) == 8 * 5
    assert all(files == found["here"] for files in found.values())
    assert ray.is_initialized()  # who had joined stays joined


class Meddling(Ray):
    """Ray, with something done to the workers first."""

    def __init__(self, address: str, meddle: Callable[[], None], *, gpus: bool = True) -> None:
        super().__init__(address, gpus=gpus)
        self._meddle = meddle

    def run(
        self, groups: Sequence[Group], hindered: Hindered, start: Start
    ) -> Generator[Outcome, None, None]:
        yield from super().run(groups, hindered, partial(_meddled, self._meddle, start))


def _meddled(meddle: Callable[[], None], start: Start, listener: Listener) -> Worker:
    meddle()
    return start(listener)


def _within_merges(folder: Path, do: Callable[[], None]) -> None:
    """Do something within every group of merges into a folder: when the weights are written."""
    from lorahub.engine import verify as module

    whole = module.verify_all

    def meddled(results: Sequence[Any], **options: Any) -> Any:
        if results[0].weights_path.is_relative_to(folder):
            do()
        return whole(results, **options)

    module.verify_all = meddled


def _die_once(mark: Path) -> None:
    def die() -> None:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    _within_merges(mark.parent, die)


def _forever() -> None:
    """Until Ray interrupts the task, which Python sees between two steps, never within one."""
    while True:
        time.sleep(0.05)


def _hang(mark: Path) -> None:
    def hang() -> None:
        if not mark.with_suffix(".over").exists():
            mark.touch()
            _forever()

    _within_merges(mark.parent, hang)


def test_a_killed_worker(joined: str, workspace: Workspace, tmp_path: Path) -> None:
    """Nothing is lost, nothing is there twice, nothing is left over."""
    executor = Meddling(joined, partial(_die_once, tmp_path / "mark"))
    outcomes = list(workspace.batch(numbered(8), executor=executor))
    assert (tmp_path / "mark").exists()
    assert sorted(o.name for o in outcomes) == [f"m{i}" for i in range(8)]
    assert set(states(outcomes).values()) <= {"merged", "unchanged"}
    assert not list(workspace.config.adapters.glob(".*"))
    assert not workspace.catalog.check()
    assert len(workspace.adapters(limit=100)) == 10
    workspace.catalog.sweep_dead_runs()
    ended = [run.state for run in workspace.catalog.runs(limit=100)]
    assert sorted(set(ended)) == ["finished", "interrupted"]
    assert ended.count("interrupted") == 2  # a group of two
    with Workspace.open(tmp_path / "whole") as whole:
        whole.pull([str(tmp_path / name) for name in ("one", "two")])
        list(whole.batch(numbered(8)))
        assert contents(whole.config.adapters) == contents(workspace.config.adapters)


def test_a_merge_that_kills_its_worker(joined: str) -> None:
    found = {o.name: o for o in Ray(joined).run([tuple(_items(3))], lambda _: None, _dying)}
    assert states(found.values()) == {"m0": "merged", "m1": "failed", "m2": "merged"}
    assert isinstance(found["m1"].error, ResourceError)


def _dying(_: Listener) -> Worker:
    def worker(group: Group) -> list[Outcome]:
        if any(one.name == "m1" for one in group):
            os.kill(os.getpid(), signal.SIGKILL)
        return [Outcome(one.name, "merged", one.target) for one in group]

    return worker


def test_an_interrupted_batch(joined: str, workspace: Workspace, tmp_path: Path) -> None:
    """What Ctrl-C does: tasks that are under way end, and leave nothing."""
    mark = tmp_path / "mark"
    outcomes = workspace.batch(numbered(8), executor=Meddling(joined, partial(_hang, mark)))
    threading.Thread(target=_interrupt_when, args=(mark,), daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(outcomes)
    finally:
        signal.signal(signal.SIGINT, before)
    mark.with_suffix(".over").touch()
    assert not list(workspace.config.adapters.glob(".*"))
    assert {run.state for run in workspace.catalog.runs()} == {"interrupted"}
    assert set(states(workspace.batch(numbered(8), executor=Ray(joined))).values()) == {"merged"}


def _interrupt_when(mark: Path) -> None:
    until(mark.exists)
    os.kill(os.getpid(), signal.SIGINT)


def _within_parts(do: Callable[[], None]) -> None:
    """Do something when a worker begins the first part of a merge."""
    from lorahub.engine import parts as module

    whole = module.for_each

    def meddled(tasks: Sequence[Any], one: Any) -> Any:
        if tasks[0].plan.modules[0].name == next(iter(LAYERS)):
            do()
        return whole(tasks, one)

    module.for_each = meddled


def _die_in_part(mark: Path, times: int) -> None:
    def die() -> None:
        marks = len(list(mark.parent.glob("died*")))
        if marks < times:
            (mark.parent / f"died{marks}").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    _within_parts(die)


def _hang_in_part(mark: Path) -> None:
    def hang() -> None:
        mark.touch()
        _forever()

    _within_parts(hang)


def test_one_merge_in_parts(
    joined: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a merge here, with a worker killed too; killed again, or by Ctrl-C, nothing."""
    monkeypatch.setattr("lorahub.engine.batches.CPU_BATCH_BYTES", 1)
    sources = [str(tmp_path / "sources" / name) for name in ("one", "two")]
    for seed, name in enumerate(sources):
        write_adapter(Path(name), LAYERS, seed=seed)
    here = merged_by(tmp_path / "here", sources, list(RECIPES), None)
    assert merged_by(tmp_path / "ray", sources, list(RECIPES), Ray(gpus=False)) == here
    mark = tmp_path / "mark"
    once = Meddling(joined, partial(_die_in_part, mark, 1), gpus=False)
    assert merged_by(tmp_path / "once", sources, ["welore"], once).items() <= here.items()
    assert (tmp_path / "died0").exists()
    with Workspace.open(tmp_path / "none") as other:
        other.pull(sources)
        with pytest.raises(ResourceError, match="lost, twice"):
            merge(other, "svd", Meddling(joined, partial(_die_in_part, mark, 3), gpus=False))
        assert nothing_left(other)
        assert not list(other.config.home.rglob("shared-*"))
        threading.Thread(target=_interrupt_when, args=(mark,), daemon=True).start()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                merge(other, "svd", Meddling(joined, partial(_hang_in_part, mark), gpus=False))
        finally:
            signal.signal(signal.SIGINT, before)
        assert nothing_left(other)
        assert [run.state for run in other.catalog.runs()] == ["interrupted", "failed"]


def test_a_killed_driver(joined: str, workspace: Workspace, tmp_path: Path) -> None:
    """Its tasks die with it, in the middle of merges; the next batch does what is missing."""
    list(workspace.batch(numbered(3)))
    words = [sys.executable, "-m", "tests.test_ray", joined, str(tmp_path / "mark")]
    child = subprocess.run(words, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    (tmp_path / "mark.over").touch()
    until(lambda: not any(run.alive for run in workspace.catalog.open_runs()))
    outcomes = states(workspace.batch(numbered(8), resume=True, executor=Ray(joined)))
    assert sorted(outcomes.values()) == ["merged"] * 5 + ["unchanged"] * 3
    assert not list(workspace.config.adapters.glob(".*"))
    assert not workspace.catalog.check()
    assert {run.state for run in workspace.catalog.runs(limit=100)} == {"finished", "interrupted"}
    assert len(workspace.adapters(limit=100)) == 10


def test_two_batches_on_the_same_outputs(joined: str, workspace: Workspace) -> None:
    on_cluster = workspace.batch(numbered(8), executor=Ray(joined))
    first = next(on_cluster)
    here = list(workspace.batch(numbered(8)))
    both = [first, *here, *on_cluster]
    odd = [str(o.error) for o in both if o.state not in {"merged", "unchanged"}]
    # A merge that met the other's lock is an honest conflict, and the only kind of failure.
    assert all("right now" in why for why in odd), odd
    assert len(both) == 16
    assert set(states(workspace.batch(numbered(8))).values()) == {"unchanged"}
    assert not workspace.catalog.check()
    assert len(workspace.adapters(limit=100)) == 10


def test_a_catalog_of_its_own_server(
    running: tuple[str, Path],
    joined: str,
    postgres: Databases,
    home: Path,
    sources: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = postgres.new().replace("//tests@", "//tests:hidden-word@")
    monkeypatch.setenv("LORAHUB_DATABASE_URL", url)
    with Workspace.open() as workspace:
        workspace.pull(sources)
        outcomes = list(workspace.batch(numbered(4), executor=Ray(joined)))
        assert set(states(outcomes).values()) == {"merged"}
        assert len(workspace.adapters(limit=100)) == 6
    logs = [path for path in running[1].rglob("*") if path.is_file()]
    assert len(logs) > 5
    assert not [path for path in logs if b"hidden-word" in path.read_bytes()]


def test_results_in_a_store(joined: str, workspace: Workspace, tmp_path: Path) -> None:
    url = f"s3://results/{tmp_path.name}"
    recipes = [*numbered(3), recipe("chain", "m0", "two")]
    outcomes = list(workspace.batch(recipes, executor=Ray(joined), to=url))
    assert {o.name: str(o.error) for o in outcomes if o.error} == {}
    for name, state in states(outcomes).items():
        kept = stored(f"{url}/{name}")
        assert state == "merged"
        assert kept is not None
        assert kept.content_hash == workspace.get(name).info.content_hash
    again = workspace.batch(recipes, executor=Ray(joined), to=url)
    assert set(states(again).values()) == {"unchanged"}


def test_a_gpu_each(joined: str) -> None:
    def seen(executor: Ray) -> list[str]:
        groups = [(one,) for one in _items(4)]
        found = executor.run(groups, lambda _: None, _visible)
        return sorted({str(outcome.folder) for outcome in found})

    assert Ray(joined).jobs == 2
    assert seen(Ray(joined)) in (["0", "1"], ["0"], ["1"])
    assert seen(Ray(joined, gpus=False)) == ["."]


def _items(count: int) -> list[Any]:
    from tests.test_executors import item

    return [item(f"m{i}", "x") for i in range(count)]


def _visible(_: Listener) -> Worker:
    def worker(group: Group) -> list[Outcome]:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return [Outcome(one.name, "merged", Path(gpu)) for one in group]

    return worker


def test_another_version_on_the_cluster(joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_version", lambda: "0.0.1")
    (outcome,) = Ray(joined).run([tuple(_items(1))], lambda _: None, _visible)
    assert "the batch is of 0.0.1" in str(outcome.error)


def test_the_command(joined: str, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "method: svd\nsources: [{adapter: one}, {adapter: two}]\n"
        "matrix: {seed: [0, 1]}\noutput: {name: 'm{n}'}\n"
    )
    words = ["batch", str(path), "--executor", "ray", "--address", joined, "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert [m["state"] for m in json.loads(done.stdout)["result"]] == ["merged"] * 2


# --- addresses that do not answer; nobody may have joined a cluster ---


@pytest.fixture
def apart() -> None:
    ray.shutdown()


def test_nobody_listens(apart: None, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: svd\nsources: [{adapter: one}]\noutput: {name: a}\n")
    with socket.socket() as taken:  # nor can anybody while the test runs
        taken.bind(("127.0.0.1", 0))
        for scheme in ("", "ray://"):
            address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
            for verb in ("batch", "merge"):
                words = [verb, str(path), "--executor", "ray", "--address", address]
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 7
                assert f"no Ray cluster answers at {address}" in done.stderr
                assert "ray start --head" in done.stderr
    assert not workspace.config.adapters.exists()


def test_something_else_answers(apart: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(NetworkError, match=r"timed out"):
            _ = Ray().jobs
        monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 10)

        def talk() -> None:
            line, _ = silent.accept()
            line.recv(100)
            line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            line.close()

        silent.accept()[0].close()  # the one that timed out
        other = threading.Thread(target=talk)
        other.start()
        with pytest.raises(NetworkError, match="something else answers"):
            _ = Ray().jobs
        other.join()


def main(address: str, mark: str) -> None:
    """Run a batch whose workers hang within a merge, and be killed when one does."""

    def kill() -> None:
        until(Path(mark).exists)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with Workspace.open() as workspace:
        list(workspace.batch(numbered(8), executor=Meddling(address, partial(_hang, Path(mark)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
