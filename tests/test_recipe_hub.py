"""Recipes whose sources are on a Hub, or whose results go to one: locked, published, repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorahub.errors import AuthError, IntegrityError
from lorahub.recipe_file import load_recipe, lock_path
from lorahub.sweep import load_sweep
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.loopback_hub import LoopbackHub

WEIGHTS = "adapter_model.safetensors"
SHAPES = {"layers.0.q_proj": (24, 32, 3)}
RECIPE = """\
# What the team agreed on.
method: svd
sources:
  - adapter: ann/one  # the newest
  - {adapter: ./two, weight: 0.5}
output:
  name: both
"""


@pytest.fixture
def recipe(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a repository and of a folder beside it."""
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    hub.add_repo("ann/one", folder=write_adapter(tmp_path / "one", SHAPES, seed=1))
    write_adapter(tmp_path / "recipes" / "two", SHAPES, seed=2)
    path = tmp_path / "recipes" / "both.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        yield opened


def moved_on(hub: LoopbackHub, tmp_path: Path, seed: int = 9) -> None:
    newer = write_adapter(tmp_path / f"newer{seed}", SHAPES, seed=seed)
    hub.commit("ann/one", {WEIGHTS: newer / WEIGHTS})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_locked_recipe_merges_the_same_bytes_after_the_hub_moved(
    hub: LoopbackHub, recipe: Path, workspace: Workspace, tmp_path: Path
) -> None:
    before = hub.repo("ann/one").sha
    lock = workspace.lock(recipe)
    assert lock.sources["ann/one"].reference.endswith(f"ann/one@{before}")
    assert recipe.read_text() == RECIPE  # nothing but the lock is written, comments stay
    first = contents(workspace.merge(load_recipe(recipe)).adapter.origin.folder)
    moved_on(hub, tmp_path)
    with Workspace.open(tmp_path / "stranger") as stranger:
        merged = stranger.merge(load_recipe(recipe))
        assert contents(merged.adapter.origin.folder) == first
        assert merged.record.parents[0].revision == before
        # Without the lock, the same file means what is there now; a lock made anew says so.
        lock_path(recipe).unlink()
    with Workspace.open(tmp_path / "third") as third:
        newer = third.merge(load_recipe(recipe))
        assert newer.record.parents[0].revision == hub.repo("ann/one").sha != before
        assert contents(newer.adapter.origin.folder)[WEIGHTS] != first[WEIGHTS]
        assert third.lock(recipe).sources["ann/one"].reference.endswith(hub.repo("ann/one").sha)


def test_a_lock_holds_for_every_merge_of_a_sweep(
    hub: LoopbackHub, recipe: Path, workspace: Workspace, tmp_path: Path
) -> None:
    recipe.write_text(RECIPE.replace("both", "m{rank}") + "matrix: {parameters.rank: [1, 2]}\n")
    before = hub.repo("ann/one").sha
    workspace.lock(recipe)
    moved_on(hub, tmp_path)
    (recipe.parent / "two" / "adapter_config.json").write_text("{}")
    found = list(workspace.batch(load_sweep(recipe).recipes()))
    assert [type(o.error) for o in found] == [IntegrityError] * 2  # the folder is not what it was
    write_adapter(recipe.parent / "two", SHAPES, seed=2)
    found = list(workspace.batch(load_sweep(recipe).recipes()))
    assert [(o.state, o.error) for o in found] == [("merged", None)] * 2
    assert {p.revision for p in workspace.parents(workspace.get("m1"))} == {before, None}


def test_a_result_is_published_as_its_recipe_says(
    hub: LoopbackHub, recipe: Path, workspace: Workspace
) -> None:
    recipe.write_text(RECIPE + "  push: {repo: ann/both, private: true}\n")
    merged = workspace.merge(load_recipe(recipe))
    assert hub.repo("ann/both").private
    held = hub.files("ann/both")
    local = contents(merged.adapter.origin.folder)
    for name in (WEIGHTS, "adapter_config.json", "lorahub.json", "recipe.yaml"):
        assert held[name] == local[name]
    assert b"ann/both" in held["README.md"]
    commit = hub.repo("ann/both").sha
    assert workspace.merge(load_recipe(recipe)).state == "unchanged"
    assert hub.repo("ann/both").sha == commit  # nothing to publish again
    (push,) = workspace.catalog.pushes(merged.adapter.id)
    assert (push.repo_id, push.revision) == ("ann/both", commit)


def test_what_could_not_be_published_is_when_it_is_repeated(
    hub: LoopbackHub, recipe: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(RECIPE + "  push: {repo: ann/both}\n")
    workspace.pull(["ann/one"])
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    (found,) = workspace.batch([load_recipe(recipe)])
    assert (found.state, type(found.error)) == ("failed", AuthError)
    assert workspace.get("both").origin.folder == found.folder  # the merge itself is there
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    (found,) = workspace.batch([load_recipe(recipe)])
    assert (found.state, found.error) == ("unchanged", None)
    assert WEIGHTS in hub.files("ann/both")
