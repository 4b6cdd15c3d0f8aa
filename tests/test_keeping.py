"""Removing, collecting and rebuilding, on real folders, a real cache and a loopback Hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from lorahub import keeping
from lorahub.cli.main import app
from lorahub.errors import ConflictError, IntegrityError, NotFoundError, StorageError
from lorahub.events import Advanced, Event, PhaseStarted, Warned
from lorahub.lineage import drawn
from lorahub.output import new_folder, partials, remove_folder
from lorahub.recipe import make_recipe
from lorahub.record import Record
from lorahub.workspace import Workspace
from store import RunDraft
from tests.conftest import write_adapter
from tests.loopback_hub import LoopbackHub

MODULES = {"m.q": (12, 10, 2), "m.v": (12, 10, 2)}


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        yield opened


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith("catalog.db") and p.parent.name != "locks"
    }


def size(folder: Path) -> int:
    return sum(len(content) for content in files(folder).values())


def pull(workspace: Workspace, *references: object) -> None:
    """One after the other, so that the first is the oldest."""
    for reference in references:
        (pulled,) = workspace.pull([str(reference)])
        assert pulled.error is None, pulled.error


def merge(workspace: Workspace, name: str, *sources: str, **where: object) -> Path:
    body = {
        "method": "cat",
        "sources": [{"adapter": s, "weight": 0.5 + i} for i, s in enumerate(sources)],
        "output": {"name": name, **where},
    }
    return workspace.merge(make_recipe(body)).adapter.origin.folder


def scrap(parent: Path, name: str = "lost") -> Path:
    folder = parent / f".{name}.partial-abc123"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 1234)
    (folder / "deep").mkdir()
    (folder / "deep" / "more").write_bytes(b"y" * 66)
    return folder


def begin(workspace: Workspace, target: Path) -> None:
    workspace.catalog.begin_run(RunDraft("d" * 64, "recipe", "svd", str(target)))


@pytest.fixture
def nobody_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run that is not this process's own work is of a process that ended."""
    monkeypatch.setattr("store.runs._alive", lambda pid: False)


# --- gc ---


def test_gc_takes_scraps_and_nothing_else(
    workspace: Workspace, tmp_path: Path, nobody_lives: None
) -> None:
    home = workspace.config.home
    pull(workspace, *(write_adapter(tmp_path / n, MODULES, seed=i) for i, n in enumerate("ab")))
    merged, orphan = merge(workspace, "kept", "a", "b"), merge(workspace, "orphan", "a")
    workspace.remove(["orphan"])
    copy = write_adapter(home / "unpacked" / "0123" / "one", MODULES, seed=2)
    fresh = write_adapter(copy.parent / "fresh", MODULES, seed=2)
    os.utime(copy, (0, 0))
    used = write_adapter(home / "converted" / "4567" / "two", MODULES, seed=3)
    pull(workspace, used)
    elsewhere = tmp_path / "out" / "both"
    begin(workspace, elsewhere)
    gone = [scrap(home / "adapters"), scrap(copy.parent), scrap(elsewhere.parent, "both"), copy]
    before = files(tmp_path)
    sizes = {str(folder): size(folder) for folder in gone} | {"run 3": 0}
    events: list[Event] = []
    dry = workspace.gc(dry_run=True, listener=events.append)
    assert {w.what: w.bytes for w in dry.removed} == sizes
    assert dry.bytes == sum(sizes.values())
    assert events[0] == PhaseStarted("gc", 5, "things")
    assert len([e for e in events if isinstance(e, Advanced)]) == 5
    assert files(tmp_path) == before
    swept = workspace.gc()
    assert [(w.kind, w.what, w.bytes) for w in swept.removed] == [
        (w.kind, w.what, w.bytes) for w in dry.removed
    ]
    assert size(tmp_path) == sum(map(len, before.values())) - swept.bytes
    assert not any(folder.exists() for folder in gone)
    assert all(folder.is_dir() for folder in (merged, orphan, used, fresh))
    assert workspace.catalog.runs()[0].state == "interrupted"
    assert workspace.gc().removed == ()
    assert [w.what for w in workspace.gc(orphans=True).removed] == [str(orphan)]
    assert merged.is_dir() and not orphan.exists()


def test_gc_leaves_what_is_being_written(workspace: Workspace) -> None:
    target = workspace.config.adapters / "now"
    with new_folder(target, workspace.config.home / "locks") as partial:
        (partial / "file").write_text("half")
        assert workspace.gc(orphans=True).removed == ()
        with pytest.raises(ConflictError):
            remove_folder(target, workspace.config.home / "locks")
    assert (target / "file").read_text() == "half"
    assert [w.kind for w in workspace.gc(orphans=True, dry_run=True).removed] == ["orphan"]


def test_gc_leaves_what_a_run_is_about_to_catalogue(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_adapter(workspace.config.adapters / "now", MODULES)
    begin(workspace, target)
    assert workspace.gc(orphans=True).removed == ()
    monkeypatch.setattr("store.runs._alive", lambda pid: False)
    assert [w.kind for w in workspace.gc(orphans=True).removed] == ["run", "orphan"]


def test_what_is_catalogued_meanwhile_stays(workspace: Workspace) -> None:
    folder = write_adapter(workspace.config.adapters / "found", MODULES)

    def meanwhile(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            pull(workspace, folder)

    swept = workspace.gc(orphans=True, listener=meanwhile)
    assert swept.removed == ()
    assert "was catalogued meanwhile" in swept.failed[0][1]
    assert workspace.get("found").weights_path.is_file()


def test_a_file_that_is_linked_elsewhere_frees_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = scrap(workspace.config.adapters)
    os.link(folder / "deep" / "more", tmp_path / "mine")
    os.link(folder / "adapter_model.safetensors", folder / "twice")
    (folder / "link").symlink_to(tmp_path / "mine")
    swept = workspace.gc()
    assert swept.bytes == 1234 + len(str(tmp_path / "mine"))
    assert (tmp_path / "mine").read_bytes() == b"y" * 66


def test_an_interrupted_gc_goes_on(workspace: Workspace) -> None:
    scraps = [scrap(workspace.config.adapters, name) for name in "abc"]

    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.gc(listener=stop)
    assert [s.exists() for s in scraps] == [False, True, True]
    assert len(workspace.gc().removed) == 2


def test_half_a_folder_is_never_seen(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(workspace, write_adapter(tmp_path / "a", MODULES))
    orphan = merge(workspace, "orphan", "a")
    workspace.remove(["orphan"])

    def killed(folder: Path) -> None:
        (folder / "adapter_config.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lorahub.output.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.gc(orphans=True)
    assert not orphan.exists()
    ((left, _),) = partials(orphan.parent)
    assert [w.what for w in workspace.gc().removed] == [str(left)]
    assert list(orphan.parent.iterdir()) == []


def test_what_cannot_be_removed_does_not_stop_the_rest(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scraps = [scrap(workspace.config.adapters, name) for name in "abc"]
    rmtree = shutil.rmtree

    def refuse(folder: Path, **options: Any) -> None:
        if folder == scraps[1]:
            raise PermissionError(13, "Permission denied", str(folder))
        rmtree(folder, **options)

    monkeypatch.setattr("lorahub.output.shutil.rmtree", refuse)
    swept = workspace.gc()
    assert [w.what for w in swept.removed] == [str(scraps[0]), str(scraps[2])]
    ((waste, reason),) = swept.failed
    assert waste.what == str(scraps[1])
    assert "Permission denied" in reason
    assert swept.bytes == 2 * 1300
    done = CliRunner().invoke(app, ["gc", "--json"])
    assert done.exit_code == 8
    body = json.loads(done.stdout)
    assert (body["status"], body["result"]["bytes"]) == ("partial", 0)
    assert body["result"]["failed"][0]["what"] == str(scraps[1])


def test_what_vanishes_meanwhile_is_gone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (scrap(workspace.config.adapters, name) for name in "ab")

    def vanish(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            shutil.rmtree(first)
            (second / "deep" / "more").unlink()

    swept = workspace.gc(listener=vanish)
    assert (len(swept.removed), swept.failed) == (2, ())
    third = scrap(workspace.config.adapters)
    lstat = Path.lstat

    def gone(path: Path) -> os.stat_result:
        if path.name == "more":
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", gone)
    assert keeping.weigh(third, pytest.fail) == 1234


def test_an_unreadable_folder_is_said(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scrap(workspace.config.adapters)
    locked = workspace.config.home / "unpacked"
    locked.mkdir()
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    events: list[Event] = []
    swept = workspace.gc(listener=events.append)
    assert [w.what for w in swept.removed] == [str(found)]
    warned = [e.message for e in events if isinstance(e, Warned)]
    assert warned and all(str(locked) in message for message in warned)


def test_entries_whose_files_are_gone(workspace: Workspace, tmp_path: Path) -> None:
    pull(workspace, *(write_adapter(tmp_path / n, MODULES, seed=i) for i, n in enumerate("ab")))
    merge(workspace, "both", "a", "b")
    shutil.rmtree(tmp_path / "a")
    assert workspace.gc().removed == ()
    (waste,) = workspace.gc(missing=True).removed
    assert (waste.kind, waste.what) == ("missing", "a")
    assert [a.name for a in workspace.adapters()] == ["b", "both"]
    assert [b.name for b in workspace.lineage("both").branches] == ["a", "b"]


# --- rm ---


def test_rm_says_who_uses_it_and_deletes_what_is_ours(workspace: Workspace, tmp_path: Path) -> None:
    pull(workspace, *(write_adapter(tmp_path / n, MODULES, seed=i) for i, n in enumerate("ab")))
    folder = merge(workspace, "both", "a", "b")
    merge(workspace, "deep", "both", "a")
    outside = merge(workspace, "outside", "a", folder=str(tmp_path / "outside"))
    copy = workspace.export("both", tmp_path / "copy")
    before, exact = files(tmp_path), size(folder)
    names = ["both", "a", "outside"]
    dry = workspace.remove([*names, "both"], files=True, dry_run=True)
    assert [(r.name, r.deleted, r.bytes) for r in dry] == [
        ("both", True, exact),
        ("a", False, 0),
        ("outside", False, 0),
    ]
    assert dry[0].merged_into == ("deep",)
    assert dry[1].merged_into == ("both", "deep", "outside")
    assert dry[0].exports == (str(copy),)
    assert files(tmp_path) == before
    assert len(workspace.adapters()) == 5
    with pytest.raises(NotFoundError):
        workspace.remove(["both", "nothing"], files=True)
    assert len(workspace.adapters()) == 5
    assert workspace.remove(names, files=True) == dry
    assert not folder.exists()
    assert outside.is_dir() and copy.is_dir() and (tmp_path / "a").is_dir()
    assert [a.name for a in workspace.adapters()] == ["b", "deep"]
    assert size(tmp_path) == sum(map(len, before.values())) - exact


def test_rm_keeps_a_folder_that_another_entry_names(workspace: Workspace, tmp_path: Path) -> None:
    pull(workspace, write_adapter(tmp_path / "a", MODULES))
    folder = merge(workspace, "one", "a")
    (pulled,) = workspace.pull([str(folder)], name="other")
    assert pulled.error is None
    (removal,) = workspace.remove(["one"], files=True)
    assert not removal.deleted
    assert folder.is_dir()
    (removal,) = workspace.remove(["other"], files=True)
    assert removal.deleted
    assert not folder.exists()


def test_rm_of_what_cannot_be_deleted_leaves_an_orphan(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(workspace, write_adapter(tmp_path / "a", MODULES))
    folder = merge(workspace, "one", "a")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(StorageError, match="Read-only"):
            workspace.remove(["one"], files=True)
    assert [w.what for w in workspace.gc(orphans=True).removed if w.kind == "orphan"] == [
        str(folder)
    ]


# --- the Hub's cache, and scan ---


def repository(seed: int, folder: Path) -> dict[str, bytes]:
    write_adapter(folder / str(seed), MODULES, seed=seed)
    (folder / str(seed) / "README.md").write_text(f"---\nlicense: mit\n---\n# Number {seed}\n")
    return {p.name: p.read_bytes() for p in (folder / str(seed)).iterdir()}


@pytest.fixture
def online(hub: LoopbackHub, workspace: Workspace, tmp_path: Path) -> Workspace:
    """A workspace with two commits of one repository, one of another, merges and a copy."""
    hub.add_repo("ann/law", repository(1, tmp_path))
    pull(workspace, "ann/law")
    hub.commit("ann/law", repository(2, tmp_path))
    hub.add_repo("ann/style", repository(3, tmp_path))
    pull(workspace, "ann/law", "ann/style")
    merge(workspace, "both", "ann/law", "ann/style")
    merge(workspace, "deep", "both", "ann/law")
    pull(workspace, write_adapter(workspace.config.home / "converted" / "89" / "c", MODULES))
    return workspace


def blobs() -> int:
    cache = Path(constants.HF_HUB_CACHE)
    return sum(p.stat().st_size for p in cache.glob("*/blobs/*"))


def test_gc_of_the_cache(hub: LoopbackHub, online: Workspace, tmp_path: Path) -> None:
    hub.add_repo("ann/model", {"config.json": b"{}", "model.safetensors": b"x" * 100})
    from huggingface_hub import snapshot_download

    snapshot_download("ann/model")
    assert online.gc(cache=True).removed == ()
    older = next(a.name for a in online.adapters() if a.name.startswith("ann/law@"))
    online.remove([older, "ann/style"])
    assert online.gc().removed == ()
    before = blobs()
    dry = online.gc(cache=True, dry_run=True)
    assert blobs() == before
    assert [w.what.split("@")[0] for w in dry.removed] == ["ann/law", "ann/style"]
    swept = online.gc(cache=True)
    assert swept.failed == ()
    assert blobs() == before - swept.bytes
    assert swept.bytes == dry.bytes > 1000
    assert [a.weights_path.is_file() for a in online.catalog.by_repo("ann/law")] == [True]
    assert list(Path(constants.HF_HUB_CACHE).glob("models--ann--model/snapshots/*/config.json"))
    assert online.gc(cache=True).removed == ()


def state(workspace: Workspace) -> list[tuple[object, ...]]:
    rows = []
    for row in workspace.adapters():
        adapter = workspace.get(row.name)
        tree = drawn(workspace.lineage(row.name))
        origin = adapter.origin
        rows.append((row.name, origin.source, origin.folder, origin.repo_id, origin.revision,
                     origin.endpoint, adapter.info, adapter.method, tree))  # fmt: skip
    return rows


def emptied(workspace: Workspace) -> None:
    workspace.catalog.remove_all([a.id for a in workspace.adapters(limit=1000)])


def test_scan_rebuilds_the_catalog(online: Workspace) -> None:
    expected = state(online)
    before = files(online.config.home)
    emptied(online)
    events: list[Event] = []
    dry = online.scan(dry_run=True, listener=events.append)
    assert events[0] == PhaseStarted("scan", 6, "folders")
    assert (len(dry.added), dry.skipped, online.adapters()) == (6, (), [])
    found = online.scan()
    assert state(online) == expected
    assert sorted(found.added) == sorted(["ann/law", "ann/law", "ann/style", "both", "deep", "c"])
    assert (found.known, found.skipped) == (0, ())
    again = online.scan()
    assert (again.added, again.known, again.linked) == ((), 6, 0)
    assert state(online) == expected
    assert files(online.config.home) == before
    assert online.verify("deep").passed


def test_an_interrupted_scan_goes_on(online: Workspace) -> None:
    expected = state(online)
    emptied(online)

    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        online.scan(listener=stop)
    assert len(online.adapters()) == 4
    assert online.scan().known == 4
    assert state(online) == expected


def test_scan_gives_lineage_back_to_known_adapters(online: Workspace) -> None:
    expected = state(online)
    with online.catalog._write() as connection:
        connection.exec_driver_sql("DELETE FROM lineage")
    online.scan()
    assert state(online) == expected


def test_a_damaged_cache_is_not_believed(online: Workspace) -> None:
    expected = state(online)
    emptied(online)
    style = Path(constants.HF_HUB_CACHE) / "models--ann--style"
    (weights,) = style.glob("snapshots/*/adapter_model.safetensors")
    merged = online.config.adapters / "both" / "adapter_model.safetensors"
    for path in (weights.resolve(), merged):
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(body)
    broken = Path(constants.HF_HUB_CACHE) / "models--ann--broken"
    shutil.copytree(style, broken, symlinks=True)
    for blob in (broken / "blobs").iterdir():
        blob.unlink()
    found = online.scan()
    reasons = dict(found.skipped)
    assert len(reasons) == 3
    assert "is not the file its blob is named after" in reasons[str(weights.parent)]
    assert "broken symlink" in reasons["cache"]
    assert "not those of its record" in reasons[str(merged.parent)]
    names = {row[0] for row in state(online)}
    assert names == {str(row[0]) for row in expected} - {"ann/style", "both"}


def test_a_record_of_other_weights_tells_nothing(workspace: Workspace, tmp_path: Path) -> None:
    pull(workspace, write_adapter(tmp_path / "a", MODULES))
    trained = shutil.copytree(merge(workspace, "one", "a"), tmp_path / "trained")
    copied = shutil.copytree(trained, tmp_path / "copied")
    write_adapter(trained, MODULES, seed=7)
    pull(workspace, trained, copied)
    assert [(workspace.get(n).method, len(workspace.lineage(n).branches))
            for n in ("trained", "copied")] == [(None, 0), ("cat", 1)]  # fmt: skip


HOSTILE: list[Callable[[dict[str, Any]], object]] = [
    lambda body: [],
    lambda body: "text",
    lambda body: {},
    lambda body: body | {"version": 99},
    lambda body: body | {"parents": "abc"},
    lambda body: body | {"parents": [{}]},
    lambda body: body | {"parents": [body["parents"][0] | {"weight": "much"}]},
    lambda body: body | {"parents": [body["parents"][0] | {"weight": float("nan")}]},
    lambda body: body | {"parents": [body["parents"][0] | {"content_hash": None}]},
    lambda body: body | {"parents": [body["parents"][0] | {"reference": ["x"]}]},
    lambda body: body | {"parents": [body["parents"][0] | {"repo_id": 3}]},
    lambda body: body | {"parents": [body["parents"][0] | {"weights": {"a": "b"}}]},
]


def test_hostile_records_are_named(workspace: Workspace, tmp_path: Path) -> None:
    pull(workspace, write_adapter(tmp_path / "a", MODULES))
    good = merge(workspace, "good", "a")
    body = json.loads((good / "lorahub.json").read_text())
    texts = [json.dumps(make(body)) for make in HOSTILE]
    texts += ["", "[" * 100_000, "\x00", '{"version": 1e400}']
    for i, text in enumerate(texts):
        folder = shutil.copytree(good, good.parent / f"bad{i:02}")
        (folder / "lorahub.json").write_text(text)
        with pytest.raises(IntegrityError):
            Record.read(folder)
    os.mkfifo(good.parent / "pipe")
    (good.parent / "circle").symlink_to(good.parent)
    found = workspace.scan()
    assert found.added == ()
    bad = [what for what, _ in found.skipped if Path(what).name.startswith("bad")]
    assert len(bad) == len(texts)
    assert {Path(what).name for what, _ in found.skipped} - {Path(b).name for b in bad} == {
        "circle"
    }
    assert [a.name for a in workspace.adapters()] == ["a", "good"]


def test_scan_of_nothing(workspace: Workspace, hf_home: Path) -> None:
    found = workspace.scan()
    assert (found.added, found.known, found.skipped) == ((), 0, ())


def test_the_commands(online: Workspace) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words])
        assert done.exit_code == 0, done.output
        return done.stdout

    rows = run("rm", "both", "--dry-run").splitlines()
    assert rows[1].startswith("both\twould be removed\t-\tdeep")
    assert json.loads(run("rm", "deep", "--files", "--json"))["result"][0]["deleted"] is True
    assert "KIND\tWHAT\tBYTES" in run("gc", "--dry-run")
    assert json.loads(run("gc", "--json"))["result"] == {"bytes": 0, "removed": [], "failed": []}
    emptied(online)
    assert len(json.loads(run("scan", "--json"))["result"]["added"]) == 5
