"""Merges through the workspace: replacing, repeating, and what the record keeps of a method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lorahub
from lorahub.errors import ConflictError, StorageError
from lorahub.merging import Merged
from lorahub.record import Record
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES

NAMES = ("languages", "packages", "manuals")


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        opened.pull([str(EXAMPLES / name) for name in NAMES])
        yield opened


def merge(workspace: Workspace, method: str, *, force: bool = False, **recipe: Any) -> Merged:
    body = {
        "method": method,
        "sources": [{"adapter": name} for name in NAMES],
        "output": {"name": "m"},
    }
    return workspace.merge(lorahub.make_recipe(body | recipe), force=force)


def test_a_replacement_that_fails_loses_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merge(workspace, "svd", parameters={"rank": 4})

    def full(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("lorahub.engine.run.run", full)
        with pytest.raises(StorageError):
            merge(workspace, "svd", parameters={"rank": 5}, force=True)
    assert workspace.get("m").info.content_hash == first.adapter.info.content_hash
    assert workspace.verify("m").passed
    second = merge(workspace, "svd", parameters={"rank": 5}, force=True)
    assert workspace.get("m").id == second.adapter.id
    assert [row.name for row in workspace.adapters()] == ["languages", "m", "manuals", "packages"]
    assert not workspace.catalog.check()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lego", {}),
        ("lego", {"parameters": {"rank": "auto"}, "normalize": True}),
        ("lego", {"parameters": {"gauge": "svd", "norm": "linf", "rank": 10}, "dtype": "BF16"}),
        ("welore", {"budget": "30%"}),
        ("svd", {"budget": "rank 5", "allocate": "welore", "normalize": True}),
    ],
)
def test_a_merge_is_verified_and_made_again_by_its_own_recipe(
    workspace: Workspace, method: str, options: dict[str, Any]
) -> None:
    first = merge(workspace, method, **options)
    assert workspace.verify("m") == first.record.verification
    assert merge(workspace, method, **options).state == "unchanged"
    with pytest.raises(ConflictError):
        merge(workspace, method, **options, seed=7)
    recipe = lorahub.load_recipe(first.adapter.origin.folder / "recipe.yaml")
    assert workspace.merge(recipe).state == "unchanged"
    renamed = recipe.model_copy(update={"output": recipe.output.model_copy(update={"name": "n"})})
    again = workspace.merge(renamed)
    assert again.record.weights_sha256 == first.record.weights_sha256


def test_the_record_keeps_the_clusters(workspace: Workspace) -> None:
    merged = merge(workspace, "lego", parameters={"rank": 3})
    read = Record.read(merged.adapter.origin.folder)
    assert read == merged.record
    report = merged.record.reports["encoder.layer.0.attention.self.query"]
    assert sum(report["sizes"]) == len(report["labels"]) == 16
    assert 0 < report["explained"] < 1
    assert any("over half of the units" in note for note in merged.record.notes)


def test_the_record_keeps_the_normalising_factors(workspace: Workspace) -> None:
    merged = merge(workspace, "svd", parameters={"rank": 4}, normalize=True)
    factors = [parent.factor for parent in merged.record.parents]
    assert len(set(factors)) == 3
    assert merged.record.normalize
    assert not merge(workspace, "svd", parameters={"rank": 4}, force=True).record.normalize
