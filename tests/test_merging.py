"""Merges through the workspace: replacing, repeating, and what the record keeps of a method."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lorahub
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidRecipeError,
    LorahubError,
    NotFoundError,
    StorageError,
)
from lorahub.merging import Merged
from lorahub.publishing import publishable
from lorahub.record import Record
from lorahub.workspace import Workspace
from tests.conftest import EXAMPLES
from tests.test_engine import deltas, distance

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
        patch.setattr("lorahub.engine.run.run_all", full)
        with pytest.raises(StorageError):
            merge(workspace, "svd", parameters={"rank": 5}, force=True)
    assert workspace.get("m").info.content_hash == first.adapter.info.content_hash
    assert workspace.verify("m").passed
    second = merge(workspace, "svd", parameters={"rank": 5}, force=True)
    assert workspace.get("m").id == second.adapter.id
    assert [row.name for row in workspace.adapters()] == ["languages", "m", "manuals", "packages"]
    assert not workspace.catalog.check()


@pytest.mark.parametrize("told", [KeyboardInterrupt(), SystemExit(1)])
def test_a_process_that_is_told_to_end_was_interrupted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, told: BaseException
) -> None:
    """By its user, or by a signal that its host turns into an exit, as Ray does in its workers."""

    def end(*_: object, **__: object) -> None:
        raise told

    with monkeypatch.context() as patch:
        patch.setattr("lorahub.engine.verify.verify_all", end)
        with pytest.raises(type(told)):
            merge(workspace, "svd")
    assert [run.state for run in workspace.catalog.runs(limit=2)] == ["interrupted"]
    assert not list(workspace.config.adapters.iterdir())
    assert merge(workspace, "svd").state == "merged"


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
    assert report["inertia"] > 0
    assert any("over half of the units" in note for note in merged.record.notes)


def test_the_record_keeps_what_a_budget_made_of_every_module(workspace: Workspace) -> None:
    merged = merge(workspace, "welore", budget="rank 4")
    ranks = {m.name: m.rank for m in merged.adapter.info.modules}
    for name, report in merged.record.reports.items():
        assert report["full_rank"] == 16
        assert (report["cut_off"] > 0) == (ranks[name] < 16)
        assert report["lrc"]  # every rank here is far from where factors outgrow the matrix
    assert len(merged.record.reports) == len(ranks)


def test_the_record_keeps_the_normalising_factors(workspace: Workspace) -> None:
    merged = merge(workspace, "svd", parameters={"rank": 4}, normalize=True)
    factors = [parent.factor for parent in merged.record.parents]
    assert len(set(factors)) == 3
    assert merged.record.normalize
    assert not merge(workspace, "svd", parameters={"rank": 4}, force=True).record.normalize


@pytest.mark.parametrize(
    ("method", "options", "most"),
    [
        ("mos", {}, 4.0),
        ("mos", {"pack": "60 kB", "parameters": {"rank": 12}}, None),
        ("lego", {"pack": 8, "parameters": {"rank": 16}}, 8.0),
        ("svd", {"pack": 300, "parameters": {"rank": 4}}, 300.0),
    ],
)
def test_a_packed_merge_is_what_its_pack_decodes_to(
    workspace: Workspace, method: str, options: dict[str, Any], most: float | None, tmp_path: Path
) -> None:
    merged = merge(workspace, method, **options)
    folder, packed = merged.adapter.origin.folder, merged.record.packed
    assert packed is not None
    assert packed.bytes == (folder / "adapter.mos").stat().st_size
    plain = merge(workspace, method, **(options | {"pack": 1.0001, "output": {"name": "plain"}}))
    if most is None:
        assert packed.bytes <= 60_000
    else:
        assert packed.bytes <= 2 * plain.adapter.info.parameters / most
    # The error that the record states is that between the result without and with the pack.
    body = {"sources": [{"adapter": n} for n in NAMES], "output": {"name": "whole"}}
    given = {k: v for k, v in options.items() if k != "pack"}
    name = "svd" if method == "mos" else method
    whole = workspace.merge(lorahub.make_recipe({"method": name, **body, **given}))
    exact, found = deltas(whole.adapter.origin.folder), deltas(folder)
    assert distance(found, exact) == pytest.approx(packed.error, rel=1e-3)
    assert all(error >= packed.error for _, _, error in packed.tried)
    workspace.unpack(folder / "adapter.mos", "m", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "adapter_model.safetensors").read_bytes() == (
        folder / "adapter_model.safetensors"
    ).read_bytes()
    assert workspace.verify("m") == merged.record.verification
    assert merge(workspace, method, **options).state == "unchanged"
    recipe = lorahub.load_recipe(folder / "recipe.yaml")
    assert workspace.merge(recipe).state == "unchanged"
    assert "adapter.mos" in {f.name for f in publishable(merged.adapter)}
    pack = folder / "adapter.mos"
    pack.write_bytes(pack.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"adapter\.mos"):
        workspace.verify("m")


@pytest.mark.parametrize(
    ("pack", "message"),
    [(0.5, "no ratio above 1"), ("tiny", "cannot be read"), ("100 bytes", "do not fit")],
)
def test_packs_that_cannot_be(workspace: Workspace, pack: object, message: str) -> None:
    with pytest.raises(LorahubError, match=message):
        merge(workspace, "mos", pack=pack)
    with pytest.raises(NotFoundError):
        workspace.get("m")
    with pytest.raises(InvalidRecipeError, match="F32"):
        merge(workspace, "mos", dtype="BF16")


def test_members_of_a_pack_are_references(workspace: Workspace, tmp_path: Path) -> None:
    pack = tmp_path / "all.mos"
    workspace.pack(list(NAMES), pack)
    (export,) = workspace.catalog.exports(workspace.get("languages").id)
    assert (export.folder, export.format) == (str(pack), "mos")
    body = {
        "method": "svd",
        "parameters": {"rank": 4},
        "sources": [{"adapter": f"{pack}#languages"}, {"adapter": f"{pack}#manuals"}],
        "output": {"name": "m"},
    }
    merged = workspace.merge(lorahub.make_recipe(body))
    direct = body | {
        "sources": [{"adapter": "languages"}, {"adapter": "manuals"}],
        "output": {"name": "n"},
    }
    assert (
        workspace.merge(lorahub.make_recipe(direct)).record.weights_sha256
        == merged.record.weights_sha256
    )
    assert workspace.pull([f"{pack}#languages"])[0].state == "up to date"
    (whole,) = workspace.pull([str(pack)])
    assert whole.error is not None
    assert "languages, packages, manuals" in (whole.error.hint or "")
    (missing,) = workspace.pull([f"{pack}#nobody"])
    assert isinstance(missing.error, NotFoundError)
    (gone,) = workspace.pull([f"{tmp_path}/gone.mos#x"])
    assert isinstance(gone.error, NotFoundError)


def test_a_folder_here_does_not_stand_in_for_a_catalog_name(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(EXAMPLES / "manuals", tmp_path / "here" / "packages")
    monkeypatch.chdir(tmp_path / "here")
    merged = merge(workspace, "cat")
    assert [p.content_hash for p in merged.record.parents] == [
        workspace.get(name).info.content_hash for name in NAMES
    ]
    shutil.copytree(EXAMPLES / "manuals", tmp_path / "here" / "unknown")
    merged = merge(workspace, "cat", sources=[{"adapter": "unknown"}], output={"name": "n"})
    assert workspace.get("unknown").origin.folder == tmp_path / "here" / "unknown"


def test_a_copy_that_changed_does_not_stand_in_for_a_source(
    workspace: Workspace, tmp_path: Path
) -> None:
    merge(workspace, "cat")
    shutil.copytree(EXAMPLES / "packages", tmp_path / "copy")
    workspace.pull([str(tmp_path / "copy")])
    weights = tmp_path / "copy" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert workspace.verify("m").passed
    assert workspace.repro("m").same
