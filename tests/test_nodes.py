"""Workers of a machine that shares nothing with the one that began the batch but its servers.

The other machine is a process with a data folder and a Hub cache of its own. To it, the data
folder of the batch, which leads through the working folder, is not there.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorahub.adapter import Source
from lorahub.batch import Outcome
from lorahub.errors import NotFoundError, UsageError
from lorahub.executors import Group, Hindered, Start
from lorahub.executors.ray import _make, _version
from lorahub.storage import put_folder, stored
from lorahub.workspace import Workspace
from tests.conftest import ROOT, write_adapter
from tests.postgres import Databases
from tests.test_batch import SHAPES, recipe, states


class Far:
    """An executor on that machine, with one process for every group."""

    jobs = 1
    hosts = ("far",)
    elsewhere = True

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def run(
        self, groups: Sequence[Group], hindered: Hindered, start: Start
    ) -> Generator[Outcome, None, None]:
        own = {"LORAHUB_HOME": str(self._folder / "home"), "HF_HOME": str(self._folder / "hf")}
        for group in groups:
            done = subprocess.run(
                [sys.executable, "-m", "tests.test_nodes"],
                input=pickle.dumps((start, group)),
                capture_output=True,
                cwd=self._folder,
                env=os.environ | own | {"PYTHONPATH": str(ROOT)},
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()
            yield from pickle.loads(done.stdout)


@pytest.fixture
def near(postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the machine that begins batches."""
    folder = tmp_path / "near"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LORAHUB_HOME", "/proc/self/cwd/home")
    monkeypatch.setenv("LORAHUB_DATABASE_URL", postgres.new())
    return folder


def test_sources_and_results_of_a_machine_apart(
    hub: Any, near: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write_adapter(tmp_path / "one", SHAPES, seed=0)
    hub.add_repo("ann/one", {p.name: p for p in one.iterdir()})
    two = f"file://{tmp_path}/store/two"
    put_folder(write_adapter(tmp_path / "two", SHAPES, seed=1), two)
    recipes = [
        recipe("m0", "ann/one", two),
        recipe("m1", "ann/one", two, parameters={"rank": 2}, method="lego"),
        recipe("chain", "m0", two),
    ]
    to = f"file://{tmp_path}/results"
    far = Far(tmp_path / "far")
    with Workspace.open() as workspace:
        assert all(p.error is None for p in workspace.pull(["ann/one", two]))
        # Its Hub cache is not there for the other machine either.
        (tmp_path / "hf-home").rename(tmp_path / "hf-near")
        found = list(workspace.batch(recipes, executor=far, to=to))
        assert {o.name: str(o.error) for o in found if o.error} == {}
        assert states(workspace.batch(recipes, executor=far, to=to)) == dict.fromkeys(
            ("m0", "m1", "chain"), "unchanged"
        )
        assert not list((near / "home").glob("adapters/*"))
        assert {p.name for p in (tmp_path / "far/home/adapters").iterdir()} == {
            "m0",
            "m1",
            "chain",
        }
        # Each machine fetched each source once, whatever number of processes wanted it.
        assert len(hub.log.find("GET", "adapter_model.safetensors")) == 2
        assert len(list((tmp_path / "far/home/stored").iterdir())) == 1
        chain = stored(f"{to}/chain")
        assert chain is not None
        assert chain.content_hash == workspace.get("chain").info.content_hash
        assert workspace.get("chain").origin.source is Source.MERGE
    # The same bytes as on one machine.
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "alone"))
    monkeypatch.delenv("LORAHUB_DATABASE_URL")
    with Workspace.open() as alone:
        list(alone.batch(recipes))
        assert alone.get("chain").info.content_hash == chain.content_hash


def test_one_merge_on_a_machine_apart(
    near: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no catalog in common, fetches the sources, and leaves the result here."""
    monkeypatch.delenv("LORAHUB_DATABASE_URL")
    urls = [f"file://{tmp_path}/store/{name}" for name in ("one", "two")]
    one_part = {"layers.0.q_proj": (8, 8, 2), "layers.1.q_proj": (8, 8, 2)}
    for seed, url in enumerate(urls):
        put_folder(write_adapter(tmp_path / url[-3:], one_part, seed=seed), url)
    write_adapter(near / "only", one_part)
    with Workspace.open() as workspace:
        far = workspace.merge(recipe("far", *urls), executor=Far(tmp_path / "far"))
        here = workspace.merge(recipe("here", *urls))
        assert far.adapter.info.weights_sha256 == here.adapter.info.weights_sha256
        assert len(list((tmp_path / "far/home/stored").iterdir())) == 2
        assert not list((tmp_path / "far").glob("home/adapters/*"))
        with pytest.raises(NotFoundError, match="'only' is"):
            only = recipe("none", "/proc/self/cwd/only")
            workspace.merge(only, executor=Far(tmp_path / "farther"))
        assert not (near / "home/adapters/none").exists()


def test_what_a_machine_apart_cannot_do(near: Path, tmp_path: Path) -> None:
    """Results that nobody would have, and sources that it cannot reach."""
    names = [str(write_adapter(tmp_path / n, SHAPES, seed=i)) for i, n in enumerate(("one", "two"))]
    with Workspace.open() as workspace:
        workspace.pull(names)
        (outcome,) = workspace.batch([recipe("m")], executor=Far(tmp_path / "far"))
        assert isinstance(outcome.error, UsageError)
        assert "--to URL" in str(outcome.error.hint)
        for name in names:
            Path(name).rename(f"{name}-gone")
        far = Far(tmp_path / "farther")
        (outcome,) = workspace.batch([recipe("m")], executor=far, to=f"file://{tmp_path}/results")
        assert isinstance(outcome.error, NotFoundError)
        assert "share the folder" in str(outcome.error.hint)


if __name__ == "__main__":
    sent, part = pickle.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(pickle.dumps(_make(_version(), "batch", sent, part)))
