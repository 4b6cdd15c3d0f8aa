"""Adapters at storage URLs in use: exported, pulled, merged from, locked, and filled by batches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from lorahub import storage
from lorahub.adapter import Source
from lorahub.cli.composing import parse_source
from lorahub.cli.main import app
from lorahub.errors import (
    ConflictError,
    IntegrityError,
    InvalidRecipeError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from lorahub.recipe import make_recipe
from lorahub.recipe_file import load_recipe
from lorahub.workspace import Workspace
from tests.conftest import write_adapter
from tests.s3 import s3_server

SHAPES = {"layers.0.q_proj": (24, 32, 3), "layers.1.v_proj": (16, 32, 3)}

Opener = Callable[[str], Workspace]


@pytest.fixture
def machine(tmp_path: Path, home: Path) -> Iterator[Opener]:
    """Opens the workspace of a machine by name; adapter ``one`` is on each as a folder."""
    opened: dict[str, Workspace] = {}
    write_adapter(tmp_path / "one", SHAPES, seed=1)
    write_adapter(tmp_path / "two", SHAPES, seed=2)

    def of(name: str) -> Workspace:
        if name not in opened:
            opened[name] = Workspace.open(home if name == "here" else tmp_path / name)
            opened[name].pull([str(tmp_path / "one"), str(tmp_path / "two")])
        return opened[name]

    yield of
    for workspace in opened.values():
        workspace.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def merge_recipe(name: str = "both", weight: float = 0.5, **output: object):
    sources = [{"adapter": "one", "weight": weight}, {"adapter": "two"}]
    return make_recipe({"method": "svd", "sources": sources, "output": {"name": name} | output})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_from_one_machine_to_another(machine: Opener, url: str) -> None:
    here, there = machine("here"), machine("there")
    made = here.merge(merge_recipe()).adapter
    assert here.export("both", url + "/both") == url + "/both"
    assert here.export("both", url + "/both/") == url + "/both"
    assert [e.folder for e in here.catalog.exports(made.id)] == [url + "/both"]
    (pulled,) = there.pull([url + "/both"])
    assert pulled.state == "added"
    adapter = pulled.adapter
    assert adapter is not None
    assert adapter.name == "both"
    assert adapter.info.content_hash == made.info.content_hash
    assert adapter.origin.source is Source.STORE
    assert adapter.origin.url == url + "/both"
    assert contents(adapter.origin.folder) == contents(made.origin.folder)
    assert [p.reference for p in there.parents(adapter)] == ["one", "two"]
    assert there.get(url + "/both") == there.get("both") == adapter
    (again,) = there.pull([url + "/both"])
    assert (again.state, again.adapter) == ("up to date", adapter)
    assert there.verify("both").passed


def emptied(workspace: Workspace) -> Workspace:
    workspace.catalog.remove_all([a.id for a in workspace.adapters()])
    return workspace


def test_a_scan_knows_where_copies_came_from(machine: Opener, url: str) -> None:
    here, there = machine("here"), machine("there")
    here.export("one", url + "/one")
    here.export("one", url + "/same/one")
    here.export("one", url + "/other")
    emptied(there).pull([url + "/one", url + "/other"])
    before = {a.name: there.get(a.name).origin for a in there.adapters()}
    assert {origin.url for origin in before.values()} == {url + "/one", url + "/other"}
    assert emptied(there).scan().skipped == ()
    assert {a.name: there.get(a.name).origin for a in there.adapters()} == before
    # Of one content and name at two places, the copy tells of the place it was last pulled from.
    there.pull([url + "/same/one"])
    emptied(there).scan()
    assert there.get("one").origin.url == url + "/same/one"


def test_a_scan_of_a_copy_of_unknown_origin(machine: Opener, url: str) -> None:
    here, there = machine("here"), machine("there")
    here.export("one", url + "/one")
    emptied(there).pull([url + "/one"])
    emptied(there)
    (mark,) = (there.config.home / "stored").glob("*/.*.url")
    mark.write_bytes(b"s3://me:secret@bucket/\xff")
    (reason,) = (why for _, why in there.scan(dry_run=True).skipped)
    assert mark.name in reason
    mark.unlink()
    assert len(there.scan().added) == 1
    assert there.get("one").origin.source is Source.FOLDER


@pytest.mark.parametrize("way", ["rm", "gc"])
def test_a_copy_leaves_with_the_note_of_its_url(machine: Opener, url: str, way: str) -> None:
    here, there = machine("here"), machine("there")
    here.export("one", url + "/one")
    (pulled,) = emptied(there).pull([url + "/one"])
    assert pulled.adapter is not None
    stored = there.config.home / "stored"
    held = sum(path.stat().st_size for path in stored.rglob("*") if path.is_file())
    if way == "rm":
        (gone,) = there.remove([pulled.adapter.name], files=True)
    else:
        os.utime(pulled.adapter.origin.folder, (0, 0))
        (gone,) = emptied(there).gc().removed
    assert gone.bytes == held
    assert [path for path in stored.rglob("*") if not path.is_dir()] == []


def test_what_changed_at_its_url_is_pulled_anew(machine: Opener, url: str) -> None:
    here, there = machine("here"), machine("there")
    here.export("one", url + "/x")
    there.pull([url + "/x"], name="mine")
    first = there.get("mine")
    with pytest.raises(ConflictError):
        here.export("two", url + "/x")
    here.export("two", url + "/x", replace=True)
    (pulled,) = there.pull([url + "/x"])
    assert pulled.state == "added"
    assert there.get("mine") == pulled.adapter
    assert there.get(url + "/x") == pulled.adapter
    older = there.get(f"mine@{first.info.content_hash[:8]}")
    assert older.info == first.info
    folder = pulled.adapter.origin.folder  # type: ignore[union-attr]
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    (mended,) = there.pull([url + "/x"])
    assert mended.error is None
    assert there.get("mine").info.content_hash == here.get("two").info.content_hash
    assert (folder / "adapter_model.safetensors").stat().st_size > 100


def test_nothing_half_is_pulled(machine: Opener, url: str, tmp_path: Path) -> None:
    here = machine("here")
    here.export("one", url + "/x")
    weights = tmp_path / "store" / "x" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    (pulled,) = here.pull([url + "/x"])
    assert isinstance(pulled.error, IntegrityError)
    weights.write_bytes(whole)
    (tmp_path / "store" / "x" / storage.MANIFEST).unlink()
    (pulled,) = here.pull([url + "/x"])
    assert isinstance(pulled.error, NotFoundError)
    assert here.catalog.by_url(url + "/x") == []
    assert not list((here.config.home / "stored").rglob("*.safetensors"))


def test_an_export_with_equal_ranks(machine: Opener, url: str) -> None:
    here = machine("here")
    here.export("one", url + "/x", format_name="equal-ranks")
    (pulled,) = here.pull([url + "/x"])
    assert pulled.adapter is not None
    assert pulled.adapter.info.ranks == (3,)


def test_a_recipe_takes_sources_from_urls_and_its_lock_pins_them(
    machine: Opener, url: str, tmp_path: Path
) -> None:
    here, there = machine("here"), machine("there")
    here.export("one", url + "/x")
    path = tmp_path / "r.yaml"
    path.write_text(
        f"method: svd\nsources:\n  - adapter: {url}/x\n  - {{adapter: ./two}}\n"
        "output: {name: both}\n"
    )
    lock = here.lock(path)
    pin = lock.sources[url + "/x"]
    assert (pin.reference, pin.sha256) == (url + "/x", here.get("one").info.content_hash)
    made = here.merge(load_recipe(path))
    assert made.record.parents[0].reference == url + "/x"
    same = there.merge(load_recipe(path))
    assert contents(same.adapter.origin.folder) == contents(made.adapter.origin.folder)
    here.export("two", url + "/x", replace=True)
    with pytest.raises(IntegrityError, match="the recipe pins"):
        machine("third").merge(load_recipe(path))


def test_the_same_result_is_fetched_and_not_made_again(
    machine: Opener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list(machine("here").batch([merge_recipe(f"m{i}", i / 4) for i in range(3)], to=url))
    assert [o.state for o in made] == ["merged"] * 3
    assert sorted(p.name for p in Path(url.removeprefix("file://")).iterdir()) == ["m0", "m1", "m2"]
    there = machine("there")
    monkeypatch.setattr("lorahub.merging.Merger.write", None)  # nothing may be merged
    found = list(there.batch([merge_recipe(f"m{i}", i / 4) for i in range(3)], to=url))
    assert [(o.state, o.error) for o in found] == [("unchanged", None)] * 3
    fetched, first = (machine(m).get("m1").origin.folder for m in ("there", "here"))
    assert contents(fetched) == contents(first)
    assert [e.folder for e in there.catalog.exports(there.get("m1").id)] == [url + "/m1"]
    assert there.get("m1").origin.source is Source.MERGE


def test_only_what_is_missing_or_damaged_there_is_sent_again(
    machine: Opener, url: str, tmp_path: Path
) -> None:
    here, recipes = machine("here"), [merge_recipe(f"m{i}", i / 4) for i in range(3)]
    assert all(o.error is None for o in here.batch(recipes, to=url))
    wanted = {name: contents(tmp_path / "store" / name) for name in ("m0", "m1", "m2")}
    (tmp_path / "store" / "m0" / "adapter_model.safetensors").write_bytes(b"cut")
    (tmp_path / "store" / "m1" / storage.MANIFEST).unlink()
    (tmp_path / "store" / "m1" / storage.UPLOAD).write_text("{")
    untouched = (tmp_path / "store" / "m2" / storage.MANIFEST).stat().st_mtime_ns
    for name in ("here", "there"):  # one has the results, the other has not
        found = list(machine(name).batch(recipes, to=url))
        assert [o.error for o in found] == [None] * 3
        assert {n: contents(tmp_path / "store" / n) for n in wanted} == wanted
    assert (tmp_path / "store" / "m2" / storage.MANIFEST).stat().st_mtime_ns == untouched


def test_a_changed_recipe_replaces_its_result_there_only_with_resume(
    machine: Opener, url: str, tmp_path: Path
) -> None:
    here = machine("here")
    assert [o.error for o in here.batch([merge_recipe()], to=url)] == [None]
    old = contents(tmp_path / "store" / "both")
    (found,) = here.batch([merge_recipe(weight=0.25)], to=url)
    assert isinstance(found.error, ConflictError)
    assert contents(tmp_path / "store" / "both") == old
    (found,) = here.batch([merge_recipe(weight=0.25)], to=url, resume=True)
    assert (found.state, found.error) == ("merged", None)
    new = contents(tmp_path / "store" / "both")
    assert new["adapter_model.safetensors"] != old["adapter_model.safetensors"]
    # What no merge made is not replaced.
    here.export("one", url + "/mine")
    (found,) = here.batch([merge_recipe("mine")], to=url, resume=True)
    assert isinstance(found.error, ConflictError)
    assert "lorahub.json" not in contents(tmp_path / "store" / "mine")


def test_two_results_for_one_place_are_refused(machine: Opener, url: str, tmp_path: Path) -> None:
    here = machine("here")
    for place in (url + "/x", str(tmp_path / "x")):
        recipes = [merge_recipe(n, export=[{"folder": place}]) for n in ("a", "b")]
        with pytest.raises(ConflictError, match=r"two merges of the batch have the output .*x"):
            here.batch(recipes)
    recipes = [merge_recipe(n, push={"repo": "me/x"}) for n in ("a", "b")]
    with pytest.raises(ConflictError, match="have the output repository me/x"):
        here.batch(recipes)
    assert here.count() == 2


def test_urls_in_recipes_are_checked(tmp_path: Path) -> None:
    def recipe(output: str) -> None:
        path = tmp_path / "r.yaml"
        path.write_text(f"method: svd\nsources: [{{adapter: one}}]\noutput:\n  {output}\n")
        load_recipe(path)

    with pytest.raises(InvalidRecipeError, match=r"line 4, key 'output.folder': .* in 'export'"):
        recipe("folder: s3://bucket/x")
    with pytest.raises(InvalidRecipeError, match=r"line 4, key 'output.export.0.folder") as caught:
        recipe("export: [{folder: 's3://KEY:hidden@bucket/x'}]")
    assert "carries a password" in str(caught.value)
    assert "hidden" not in str(caught.value)
    recipe("export: [{folder: s3://bucket/x/}, {folder: file:///x}, {folder: ./x}]")


@pytest.mark.parametrize("where", ["s3://b/x", "https://h:8080/o/n", "sftp://h:22/x"])
def test_a_weight_follows_a_url(where: str) -> None:
    assert parse_source(where) == {"adapter": where}
    assert parse_source(f"{where}:0.5") == {"adapter": where, "weight": 0.5}


def test_a_result_is_made_here(machine: Opener, tmp_path: Path) -> None:
    machine("here")
    done = CliRunner().invoke(app, ["merge", "one", "two", "--method", "svd", "-o", "s3://b/x"])
    assert done.exit_code == 2
    assert "lorahub export NAME URL" in done.stderr
    assert not list(Path.cwd().glob("s3*"))


def test_a_remote_keeps_its_name_and_an_unknown_one_is_told(machine: Opener) -> None:
    here = machine("here")
    with pytest.raises(UsageError, match="no remote 'lab'"):
        here.get("lab://owner/name")
    remotes = {"s3": replace(here.config.remotes.get("s3") or _remote(), endpoint="http://h")}
    config = replace(here.config, remotes=remotes)
    assert config.expand("s3://owner/name") == "http://h/owner/name"
    assert here.config.expand("s3://owner/name") == "s3://owner/name"


def _remote():
    from lorahub.config import Remote

    return Remote("http://h")


def test_the_commands_on_a_real_store(
    machine: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://results/{uuid4().hex}"
    run = CliRunner().invoke
    machine("here")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "method: svd\nsources: [{adapter: one}, {adapter: two}]\n"
        "matrix: {sources.0.weight: [0.1, 0.2]}\noutput: {name: 'w{weight}'}\n"
    )
    with s3_server(monkeypatch, "results") as server:
        done = run(app, ["batch", str(sweep), "--to", url, "--json"])
        assert done.exit_code == 0, done.output
        keys = {f["Key"] for f in server.client().list_objects_v2(Bucket="results")["Contents"]}
        assert f"{url.removeprefix('s3://results/')}/w0.1/{storage.MANIFEST}" in keys
        done = run(app, ["export", "one", f"{url}/w0.1", "--json"])
        assert done.exit_code == 6
        assert json.loads(done.stdout)["error"]["code"] == "conflict"
        assert run(app, ["export", "one", f"{url}/w0.1", "--force"]).stdout == f"{url}/w0.1\n"
        monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "elsewhere"))
        assert "w0.2\tadded" in run(app, ["pull", f"{url}/w0.2"]).stdout
        assert json.loads(run(app, ["show", "w0.2", "--json"]).stdout)["origin"]["endpoint"] == (
            f"{url}/w0.2"
        )
        done = run(app, ["merge", f"{url}/w0.2:0.5", "--method", "svd", "--name", "half"])
        assert done.exit_code == 0, done.output
        done = run(app, ["gc", "--store", url, "--json"])
        assert json.loads(done.stdout)["result"] == {"bytes": 0, "removed": [], "failed": []}
        done = run(app, ["pull", f"{url}/nothing"])
        assert (done.exit_code, done.stdout) == (3, "")
    done = run(app, ["pull", f"{url}/w0.1"])
    assert done.exit_code == NetworkError.exit_code
    done = run(app, ["batch", str(sweep), "--to", url])
    assert done.exit_code == NetworkError.exit_code  # before anything is merged
    assert "w0.1" not in run(app, ["ls"]).stdout
