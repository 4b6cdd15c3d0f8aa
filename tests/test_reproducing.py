"""Published merges made again from their recipe, their folder, or their card alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorahub.card import read_remake
from lorahub.cli.main import app
from lorahub.errors import (
    ExitCode,
    IntegrityError,
    InvalidAdapterError,
    InvalidRecipeError,
    NotFoundError,
)
from lorahub.recipe import make_recipe
from lorahub.workspace import Workspace

from .conftest import write_adapter
from .loopback_hub import LoopbackHub

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SHAPES = {"model.layers.0.self_attn.q_proj": (12, 10, 4), "model.layers.0.mlp.up_proj": (14, 10, 4)}


@pytest.fixture
def sources(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    for n in range(3):
        folder = write_adapter(tmp_path / f"a{n}", SHAPES, seed=n, base="org/base")
        hub.add_repo(f"ann/a{n}", folder=folder)
    return hub


@pytest.fixture
def published(sources: LoopbackHub, home: Path) -> Iterator[Workspace]:
    """A workspace that merged three adapters and pushed the result as ann/m."""
    with Workspace.open() as workspace:
        merge(workspace)
        workspace.push("m", "ann/m")
        yield workspace


def merge(workspace: Workspace, **changes: Any) -> Any:
    body = {
        "method": "svd",
        "parameters": {"rank": 3},
        "sources": [{"adapter": f"ann/a{n}", "weight": 1 - n / 4} for n in range(3)],
        "output": {"name": "m"},
        **changes,
    }
    return workspace.merge(make_recipe(body))


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """Somebody else's workspace, with nothing in it."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "elsewhere"))
    with Workspace.open() as workspace:
        yield workspace


def moved_on(hub: LoopbackHub, tmp_path: Path) -> None:
    """Every source gets a newer commit with other weights."""
    for n in range(3):
        newer = write_adapter(tmp_path / f"newer{n}", SHAPES, seed=90 + n)
        hub.commit(f"ann/a{n}", {WEIGHTS: newer / WEIGHTS})


def test_a_repository_made_again_after_its_sources_moved_on(
    published: Workspace, stranger: Workspace, sources: LoopbackHub, tmp_path: Path
) -> None:
    moved_on(sources, tmp_path)
    sources.log.clear()
    done = stranger.repro("ann/m")
    assert done.same
    assert {f.name for f in done.files} == {WEIGHTS, CONFIG}
    assert not sources.log.find("GET", r"ann/m/.*adapter_model|ann/m/[0-9a-f]{64}")
    assert [a.repo_id for a in stranger.catalog.hub_adapters()] == ["ann/a2", "ann/a1", "ann/a0"]
    run = CliRunner().invoke(app, ["repro", "ann/m"])
    assert run.exit_code == 0, run.output
    assert run.stdout.count("\tyes") == 2


def test_what_was_only_looked_at_is_no_failure_of_a_scan(
    published: Workspace, stranger: Workspace
) -> None:
    assert stranger.repro("ann/m").same
    run = CliRunner().invoke(app, ["scan", "--json"])
    assert run.exit_code == 0, run.output
    body = json.loads(run.stdout)
    found = body["result"]
    assert (body["status"], found["added"], found["known"], found["skipped"]) == ("ok", [], 3, [])
    # It is no adapter, but it is room that the cache takes.
    assert [w.what.split("@")[0] for w in stranger.gc(cache=True).removed] == ["ann/m"]


def test_the_card_alone_is_enough(
    published: Workspace, stranger: Workspace, sources: LoopbackHub, tmp_path: Path
) -> None:
    moved_on(sources, tmp_path)
    card = tmp_path / "card" / "README.md"
    card.parent.mkdir()
    card.write_bytes(sources.files("ann/m")["README.md"])
    assert stranger.repro(str(card)).same
    # A repository whose recipe is gone still has its card.
    sources.commit("ann/m", {"recipe.yaml": None, "lorahub.json": None})
    assert stranger.repro("ann/m").same
    assert stranger.repro(f"{sources.endpoint}/ann/m").same


def test_folder_recipe_and_name(published: Workspace) -> None:
    folder = published.get("m").origin.folder
    for reference in ("m", str(folder), str(folder / "recipe.yaml"), str(folder / "README.md")):
        assert published.repro(reference).same, reference
    (pulled,) = published.pull(["ann/m"])
    assert pulled.adapter is not None
    assert published.repro("ann/m").same


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_other_bytes_are_named(published: Workspace, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published.get("m").origin.folder, copy)
    body = bytearray((copy / name).read_bytes())
    body[-3] ^= 1
    (copy / name).write_bytes(body)
    record = json.loads((copy / "lorahub.json").read_text())
    (copy / "lorahub.json").write_text(json.dumps({**record, "lorahub": "0.0.1"}))
    done = published.repro(str(copy))
    assert [f.name for f in done.files if f.published != f.remade] == [name]
    run = CliRunner().invoke(app, ["repro", str(copy), "--json"])
    assert run.exit_code == ExitCode.FAILURE
    body = json.loads(run.stdout)
    assert (body["status"], body["result"]["same"]) == ("error", False)
    assert f"{name} has other bytes" in run.stderr
    assert "lorahub 0.0.1" in run.stderr


def test_a_recipe_that_was_changed_gives_other_bytes(published: Workspace, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published.get("m").origin.folder, copy)
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("weight: 0.75", "weight: 0.7"))
    done = published.repro(str(copy))
    assert [f.name for f in done.files if f.published != f.remade] == [WEIGHTS]


def test_a_source_of_another_content_is_refused(
    published: Workspace, stranger: Workspace, sources: LoopbackHub, tmp_path: Path
) -> None:
    card = sources.files("ann/m")["README.md"].decode()
    newer = sources.commit("ann/a0", {CONFIG: b'{"peft_type": "LORA", "r": 4, "lora_alpha": 1}'})
    old = next(iter(sources.repo("ann/a0").commits))
    page = tmp_path / "README.md"
    page.write_text(card.replace(old, newer))
    with pytest.raises(IntegrityError, match="ann/a0"):
        stranger.repro(str(page))
    page.write_text(card.replace("ann/a0@", "ann/gone@"))
    with pytest.raises(NotFoundError, match="ann/gone"):
        stranger.repro(str(page))


def test_what_cannot_be_made_again_says_so(
    published: Workspace, sources: LoopbackHub, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRecipeError, match="no recipe"):
        published.repro("ann/a0")
    sources.add_repo("ann/text", {"README.md": "# Nothing"})
    with pytest.raises(InvalidAdapterError, match=WEIGHTS):
        published.repro("ann/text")
    sources.add_repo("ann/bare", {WEIGHTS: b"x"})
    with pytest.raises(InvalidRecipeError, match="no recipe"):
        published.repro("ann/bare")
    alone = tmp_path / "alone" / "recipe.yaml"
    alone.parent.mkdir()
    shutil.copy(published.get("m").origin.folder / "recipe.yaml", alone)
    with pytest.raises(InvalidRecipeError, match="what should come of it"):
        published.repro(str(alone))
    with pytest.raises(NotFoundError):
        published.repro("nothing-of-that-name")


def test_a_local_source_is_found_by_its_content(
    sources: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    with Workspace.open() as workspace:
        workspace.pull([str(tmp_path / "a0")], name="mine")
        mixed = [{"adapter": "mine"}, {"adapter": "ann/a1"}]
        merge(workspace, sources=mixed)
        workspace.remove(["mine"])
        workspace.pull([str(tmp_path / "a0")], name="renamed")
        assert workspace.repro("m").same


def test_two_sources_of_one_content(sources: LoopbackHub, home: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "a0", tmp_path / "b0")
    with Workspace.open() as workspace:
        workspace.pull([str(tmp_path / "a0"), str(tmp_path / "b0")])
        merge(workspace, sources=[{"adapter": "a0"}, {"adapter": "b0"}])
        workspace.verify("m")
        assert workspace.repro("m").same


# Cards as they are pushed


def test_a_pushed_card_names_its_repository_and_is_not_pushed_twice(
    published: Workspace, sources: LoopbackHub
) -> None:
    card = sources.files("ann/m")["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "ann/m")' in card
    assert "lorahub repro ann/m" in card
    remake = read_remake(card)
    assert remake is not None
    assert remake[0] == sources.files("ann/m")["recipe.yaml"].decode()
    local = (published.get("m").origin.folder / "README.md").read_text()
    assert "ann/m" not in local
    assert not published.push("m", "ann/m").changed
    assert len(sources.log.find("POST", "/commit/")) == 1


def test_a_card_that_was_edited_is_pushed_as_it_is(
    published: Workspace, sources: LoopbackHub
) -> None:
    path = published.get("m").origin.folder / "README.md"
    words = "---\nlibrary_name: peft\n---\n# My own words\n"
    path.write_text(words)
    published.push("m", "ann/edited")
    assert sources.files("ann/edited")["README.md"] == words.encode()


def test_an_adapter_without_a_card_gets_one(
    published: Workspace, sources: LoopbackHub, tmp_path: Path
) -> None:
    published.pull([str(tmp_path / "a0")], name="plain")
    published.push("plain", "ann/plain")
    card = sources.files("ann/plain")["README.md"].decode()
    assert "base_model: org/base" in card
    assert "base_model_relation: adapter" in card
    assert "--lora-modules plain=ann/plain" in card
    assert not (tmp_path / "a0" / "README.md").exists()
    from lorahub.hub import Query

    found = published.discover(Query(base="org/base"))
    assert {d.listed.repo_id for d in found} >= {"ann/plain", "ann/m"}
