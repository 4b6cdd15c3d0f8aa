"""Pulling and pushing with the real client, against a Hub on loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lorahub.errors import (
    AuthError,
    ConflictError,
    IntegrityError,
    InvalidAdapterError,
    LorahubError,
    NetworkError,
    NotFoundError,
    OfflineError,
    StorageError,
    UsageError,
)
from lorahub.events import Advanced, Event, PhaseStarted
from lorahub.hub import Hub, Pushed

from .loopback_hub import (
    CutBody,
    Drop,
    Fault,
    FlipByte,
    LoopbackHub,
    NotJson,
    Status,
    WithoutHeaders,
    WrongLength,
    after,
    always,
    first,
    nth,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
GONE = "0" * 40
SECRET = "hf_thisIsASecretToken"
CARD = b"---\nlicense: mit\n---\n# An adapter\n"


def adapter(fill: int = 0) -> dict[str, bytes]:
    return {
        CONFIG: b'{"peft_type": "LORA", "r": %d}' % fill,
        WEIGHTS: bytes([fill]) * 1000,
        "README.md": CARD,
    }


def secrets_in(error: BaseException) -> str:
    """All texts that a traceback of an error would show."""
    texts = [str(error), repr(error), str(getattr(error, "hint", ""))]
    for chained in (error.__cause__, None if error.__suppress_context__ else error.__context__):
        if chained is not None:
            texts.append(secrets_in(chained))
    return "\n".join(texts)


def fails(kind: type[LorahubError], call: Callable[[], object], *names: str) -> LorahubError:
    """The error a call ends with: of exactly this class, naming these, free of tokens."""
    with pytest.raises(LorahubError) as caught:
        call()
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    for name in names:
        assert name in error.message
    everything = secrets_in(error)
    assert SECRET not in everything
    assert "hf_ann" not in everything
    return error


@pytest.fixture
def remote(hub: LoopbackHub) -> Hub:
    return Hub(hub.endpoint, hub.add_user("ann", SECRET))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "to-push"
    folder.mkdir()
    for name, content in adapter(3).items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def held(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def cached(pattern: str = "*") -> list[Path]:
    return [p for p in Path(constants.HF_HUB_CACHE).rglob(pattern) if p.is_file()]


def pull(remote: Hub, repo_id: str = "ann/x", **options: Any) -> dict[str, bytes]:
    return held(remote.fetch(remote.resolve(repo_id), **options))


def bodies(hub: LoopbackHub) -> list[str]:
    return [e.path for e in hub.log.find("GET", "/resolve/|/repos/")]


# Resolve


def test_resolve_pins_the_commit_and_lists_files_with_hashes(hub: LoopbackHub, remote: Hub) -> None:
    repo = hub.add_repo("ann/x", adapter(1))
    snapshot = remote.resolve("ann/x")
    assert (snapshot.repo_id, snapshot.revision) == ("ann/x", repo.sha)
    assert {f.name: f.size for f in snapshot.files} == {n: len(c) for n, c in adapter(1).items()}
    assert {f.name for f in snapshot.files if f.sha256} == {WEIGHTS}
    assert {f.name for f in snapshot.files if f.git_sha1} == {CONFIG, "README.md"}
    assert bodies(hub) == []


def test_main_that_moves_between_resolve_and_fetch_changes_nothing(
    hub: LoopbackHub, remote: Hub
) -> None:
    hub.add_repo("ann/x", adapter(1))
    snapshot = remote.resolve("ann/x", "main")
    hub.commit("ann/x", adapter(2))
    folder = remote.fetch(snapshot)
    assert held(folder) == adapter(1)
    assert folder.name == snapshot.revision
    assert pull(remote) == adapter(2)
    assert held(remote.fetch(remote.resolve("ann/x", snapshot.revision))) == adapter(1)


def test_main_that_moves_between_two_files_changes_nothing(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))

    def move(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == 1:
            hub.commit("ann/x", adapter(2))

    assert pull(remote, listener=move) == adapter(1)


# Fetch


def test_fetch_brings_the_adapter_and_all_files_brings_all(hub: LoopbackHub, remote: Hub) -> None:
    side = {"optimizer.pt": b"state", "sub/adapter_config.json": b"{}", "training.log": b"x"}
    known = {"lorahub.json": b"{}", "recipe.yaml": b"a: 1", "LICENSE.txt": b"free"}
    known |= {"extracted.json": b"{}", "adapter.mos": b"pack"}
    hub.add_repo("ann/x", adapter(1) | known | side)
    assert pull(remote) == adapter(1) | known
    assert not [path for path in bodies(hub) if any(name in path for name in side)]
    assert pull(remote, all_files=True) == adapter(1) | known | side


def test_fetch_takes_safetensors_of_another_name(hub: LoopbackHub, remote: Hub) -> None:
    lora = {"style.safetensors": b"s" * 50, "README.md": CARD}
    hub.add_repo("ann/x", lora | {"preview.png": b"png"})
    assert pull(remote) == lora


def test_second_fetch_downloads_no_body(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    pull(remote)
    assert len(hub.log.find("GET", WEIGHTS)) >= 1
    hub.log.clear()
    assert pull(remote) == adapter(1)
    assert bodies(hub) == []


def test_fetch_reports_each_file(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    events: list[Event] = []
    pull(remote, listener=events.append)
    started, *advanced = events
    assert started == PhaseStarted("pull ann/x", 3, "files")
    assert [e.done for e in advanced if isinstance(e, Advanced)] == [1, 2, 3]
    assert {e.item for e in advanced if isinstance(e, Advanced)} == set(adapter())


def test_pickle_comes_only_when_allowed(hub: LoopbackHub, remote: Hub) -> None:
    old = {CONFIG: b"{}", "adapter_model.bin": b"pickle"}
    hub.add_repo("ann/x", old)
    assert "adapter_model.bin" not in pull(remote)
    assert not hub.log.find("*", r"adapter_model\.bin")
    assert pull(remote, allow_pickle=True) == old


def test_pickle_beside_safetensors_stays_away(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1) | {"adapter_model.bin": b"pickle"})
    assert pull(remote, allow_pickle=True) == adapter(1)


@pytest.mark.parametrize(
    "content",
    [{}, {"README.md": b"# Hi"}, {"README.md": b"# Hi", "LICENSE": b"free"}, {"model.bin": b"1"}],
)
def test_repository_without_an_adapter(
    hub: LoopbackHub, remote: Hub, content: dict[str, bytes]
) -> None:
    hub.add_repo("ann/x", content)
    fails(InvalidAdapterError, lambda: pull(remote), "ann/x")
    assert bodies(hub) == []


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "/abs", "a/../../evil", "a\\b", "..\\evil", "C:x", "C:/x", "a//b", "./a"),
        *("a\nb", "a\x00b", "a\x1bb", "a\x7fb", "a\x9bb", "tail/", ".."),
    ],
)
def test_hostile_name_stops_before_anything_is_fetched(
    hub: LoopbackHub, remote: Hub, name: str
) -> None:
    hub.add_repo("ann/x", adapter(1) | {name: b"evil"})
    fails(InvalidAdapterError, lambda: pull(remote, all_files=True), "ann/x")
    assert [e.method for e in hub.log] == ["GET"]
    assert bodies(hub) == []
    assert cached() == []


# Every byte


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_flipped_byte_is_fetched_again(hub: LoopbackHub, remote: Hub, name: str) -> None:
    hub.add_repo("ann/x", adapter(1))
    rule = hub.faults.add("GET", rf"(/resolve/|/repos/).*{name}", FlipByte(5), first(1))
    assert pull(remote) == adapter(1)
    assert rule.fired == 1


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_byte_that_is_always_wrong(hub: LoopbackHub, remote: Hub, name: str) -> None:
    hub.add_repo("ann/x", adapter(1))
    hub.faults.add("GET", rf"(/resolve/|/repos/).*{name}", FlipByte(5))
    fails(IntegrityError, lambda: pull(remote), "ann/x", name)
    good = set(adapter(1).values())
    left = [p for p in cached() if p.stat().st_size in {len(c) for c in good}]
    assert all(p.read_bytes() in good for p in left)
    assert cached(name) == []
    hub.faults.clear()
    assert pull(remote) == adapter(1)


@pytest.mark.parametrize("fault", [Status(429, {"Retry-After": "0"}), Status(500), Drop()])
def test_flipped_byte_and_then_another_fault(hub: LoopbackHub, remote: Hub, fault: Fault) -> None:
    hub.add_repo("ann/x", adapter(1))
    hub.faults.add("GET", rf"(/resolve/|/repos/).*{WEIGHTS}", FlipByte(5), first(1))
    # Both heads of the first try and one of the second go by.
    rule = hub.faults.add("HEAD", f"/resolve/.*{WEIGHTS}", fault, nth(4))
    assert pull(remote) == adapter(1)
    assert rule.fired == 1


def test_cache_that_was_altered_is_mended(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    (remote.fetch(remote.resolve("ann/x")) / WEIGHTS).resolve().write_bytes(b"?" * 1000)
    assert pull(remote) == adapter(1)


PASSING = [Status(429, {"Retry-After": "0"}), Status(500), Status(503), Drop()]


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("where", ["/api/models/", "/resolve/", "/repos/"])
def test_passing_fault_is_survived(hub: LoopbackHub, remote: Hub, fault: Fault, where: str) -> None:
    hub.add_repo("ann/x", adapter(1))
    rule = hub.faults.add("*", where, fault, first(1))
    assert pull(remote) == adapter(1)
    assert rule.fired == 1


@pytest.mark.parametrize("size", [0, 500])
def test_cut_body_is_survived(hub: LoopbackHub, remote: Hub, size: int) -> None:
    hub.add_repo("ann/x", adapter(1))
    rule = hub.faults.add("GET", f"/repos/.*{WEIGHTS}", CutBody(size), first(1))
    assert pull(remote) == adapter(1)
    assert rule.fired == 1


@pytest.mark.parametrize("fault", [Status(500), NotJson(), Drop()])
def test_hub_that_always_fails(hub: LoopbackHub, remote: Hub, fault: Fault) -> None:
    hub.add_repo("ann/x", adapter(1))
    hub.faults.add("*", "", fault)
    fails(NetworkError, lambda: remote.resolve("ann/x"), "ann/x")


@pytest.mark.parametrize(
    "fault",
    [
        *(Status(500), Drop(), NotJson()),
        *(WithoutHeaders(("X-Repo-Commit",)), WithoutHeaders(("ETag",))),
    ],
)
def test_file_heads_that_always_fail(hub: LoopbackHub, remote: Hub, fault: Fault) -> None:
    hub.add_repo("ann/x", {CONFIG: b"{}"})
    hub.faults.add("HEAD", "/resolve/", fault)
    fails(NetworkError, lambda: pull(remote), CONFIG)


def test_wrong_length_is_no_storage_error(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", {CONFIG: b'{"r": 8}'})
    rule = hub.faults.add("GET", "/resolve/", WrongLength(-3), always)
    fails(NetworkError, lambda: pull(remote), CONFIG)
    assert rule.fired
    assert cached(CONFIG) == []


# Who may see what


def test_missing_repository(hub: LoopbackHub, remote: Hub) -> None:
    fails(NotFoundError, lambda: remote.resolve("ann/missing"), "ann/missing")


def test_private_repository_for_a_stranger(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1), private=True)
    stranger = Hub(hub.endpoint, hub.add_user("bob"))
    fails(NotFoundError, lambda: stranger.resolve("ann/x"), "ann/x", "private")
    assert pull(remote) == adapter(1)


def test_gated_repository(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1), gated="manual", allowed=["cleo"])
    stranger = Hub(hub.endpoint, hub.add_user("bob"))
    error = fails(AuthError, lambda: pull(stranger), "ann/x", "gated")
    assert "ask for access" in (error.hint or "")
    assert pull(Hub(hub.endpoint, hub.add_user("cleo"))) == adapter(1)


def test_wrong_token(hub: LoopbackHub) -> None:
    hub.add_repo("ann/x", adapter(1))
    fails(AuthError, lambda: Hub(hub.endpoint, SECRET).resolve("ann/x"), "ann/x")


@pytest.mark.parametrize("revision", ["gone", GONE])
def test_missing_revision(hub: LoopbackHub, remote: Hub, revision: str) -> None:
    hub.add_repo("ann/x", adapter(1))
    fails(NotFoundError, lambda: remote.resolve("ann/x", revision), "ann/x", revision)


def test_revision_that_is_gone_at_fetch(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    snapshot = replace(remote.resolve("ann/x"), revision=GONE)
    fails(NotFoundError, lambda: remote.fetch(snapshot), "ann/x")


def test_file_that_is_gone_at_fetch(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    snapshot = remote.resolve("ann/x")
    lost = replace(snapshot, files=(replace(snapshot.files[0], name=CONFIG + ".safetensors"),))
    fails(NotFoundError, lambda: remote.fetch(lost), "ann/x")


@pytest.mark.parametrize("repo_id", ["not a repo", "a/b/c", "a--b/..", ""])
def test_malformed_repository_id(hub: LoopbackHub, remote: Hub, repo_id: str) -> None:
    fails(UsageError, lambda: remote.resolve(repo_id))
    assert len(hub.log) == 0


# No Hub


@pytest.fixture
def nowhere(hf_home: Path) -> Iterator[str]:
    """An address at which nobody listens, and nobody can while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_dead_endpoint(nowhere: str, files: list[Path]) -> None:
    dead = Hub(nowhere, SECRET)
    fails(OfflineError, lambda: dead.resolve("ann/x"), "ann/x")
    fails(OfflineError, lambda: dead.push(files, "ann/x"), "ann/x")


def test_hub_that_dies_between_resolve_and_fetch(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    snapshot = remote.resolve("ann/x")
    hub.close()
    fails(OfflineError, lambda: remote.fetch(snapshot), "ann/x")


def test_finished_fetch_needs_no_hub(hub: LoopbackHub, remote: Hub) -> None:
    hub.add_repo("ann/x", adapter(1))
    snapshot = remote.resolve("ann/x")
    remote.fetch(snapshot)
    hub.close()
    assert held(remote.fetch(snapshot)) == adapter(1)


OFFLINE = """
import sys
from lorahub.errors import LorahubError
from lorahub.hub import Hub
try:
    Hub().resolve("ann/x", sys.argv[1])
except LorahubError as error:
    print(error.code, error)
"""


def test_offline_mode_asks_nobody(hub: LoopbackHub) -> None:
    sha = hub.add_repo("ann/x", adapter(1)).sha
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, sha],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("offline ann/x")
    assert len(hub.log) == 0


def test_cache_that_cannot_be_written(
    hub: LoopbackHub, remote: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add_repo("ann/x", adapter(1))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(blocked))
    fails(StorageError, lambda: pull(remote), "ann/x")


# Push


def without_attributes(hub: LoopbackHub, repo_id: str = "ann/x") -> dict[str, bytes]:
    return {n: c for n, c in hub.files(repo_id).items() if n != ".gitattributes"}


def commits(hub: LoopbackHub) -> int:
    return len(hub.repo("ann/x").commits)


def writes(hub: LoopbackHub) -> list[str]:
    return [f"{e.method} {e.path}" for e in hub.log if e.method not in {"GET", "HEAD"}]


def test_push_creates_the_repository_in_one_commit(
    hub: LoopbackHub, remote: Hub, files: list[Path]
) -> None:
    done = remote.push(files, "ann/x", message="First")
    assert without_attributes(hub) == adapter(3)
    repo = hub.repo("ann/x")
    assert commits(hub) == 2
    assert done == Pushed(
        repo_id="ann/x",
        url=f"{hub.endpoint}/ann/x",
        revision=repo.sha,
        pr_url=None,
        changed=True,
        files=tuple(f.name for f in files),
        bytes=sum(len(c) for c in adapter(3).values()),
    )
    assert len(hub.log.find("POST", "/commit/")) == 1
    assert not repo.private
    assert pull(remote) == adapter(3)


def test_push_updates_and_leaves_other_files(
    hub: LoopbackHub, remote: Hub, files: list[Path]
) -> None:
    hub.add_repo("ann/x", adapter(1) | {"other.txt": b"kept"})
    assert remote.push(files, "ann/x").changed
    assert hub.files("ann/x") == adapter(3) | {"other.txt": b"kept"}
    assert commits(hub) == 2


def test_push_by_parts(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    hub.multipart_chunk = 300
    remote.push(files, "ann/x")
    assert without_attributes(hub) == adapter(3)
    assert len(hub.log.find("PUT", r"/uploads/1/\d+")) == 4


def test_unchanged_push_commits_nothing(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    once = remote.push(files, "ann/x")
    hub.log.clear()
    again = remote.push(files, "ann/x")
    assert (again.changed, again.revision) == (False, once.revision)
    assert writes(hub) == []


@pytest.mark.parametrize("existing", [False, True])
def test_dry_run_touches_nothing(
    hub: LoopbackHub, remote: Hub, files: list[Path], existing: bool
) -> None:
    if existing:
        hub.add_repo("ann/x", adapter(1))
    done = remote.push(files, "ann/x", dry_run=True)
    assert done.changed
    assert done.files == tuple(f.name for f in files)
    assert writes(hub) == []
    assert ("ann/x" in hub.repos) == existing


def test_private_push(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    remote.push(files, "ann/x", private=True)
    assert hub.repo("ann/x").private
    assert without_attributes(hub) == adapter(3)
    paths = [e.path for e in hub.log]
    create = paths.index("/api/repos/create")
    upload = next(n for n, p in enumerate(paths) if "preupload" in p)
    assert "/api/models/ann/x" in paths[create:upload]


def test_hub_that_lies_about_privacy_gets_no_bytes(
    hub: LoopbackHub, remote: Hub, files: list[Path]
) -> None:
    hub.lie_about_privacy = True
    fails(ConflictError, lambda: remote.push(files, "ann/x", private=True), "ann/x", "public")
    assert not hub.log.find("*", "preupload|lfs|commit|uploads")


@pytest.mark.parametrize("content", [adapter(1), adapter(3)])
def test_public_repository_gets_no_private_push(
    hub: LoopbackHub, remote: Hub, files: list[Path], content: dict[str, bytes]
) -> None:
    hub.add_repo("ann/x", content)
    fails(ConflictError, lambda: remote.push(files, "ann/x", private=True), "ann/x", "public")
    assert writes(hub) == []


def test_push_opens_a_pull_request(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    sha = hub.add_repo("ann/x", adapter(1)).sha
    done = remote.push(files, "ann/x", create_pr=True)
    assert done.pr_url == f"{hub.endpoint}/ann/x/discussions/1"
    assert hub.repo("ann/x").sha == sha
    assert hub.files("ann/x", "refs/pr/1") == adapter(3)


LOST = [Drop(lands=True), Status(500, lands=True), NotJson(lands=True)]


@pytest.mark.parametrize("fault", LOST)
def test_pull_request_whose_answer_is_lost_is_found(
    hub: LoopbackHub, remote: Hub, files: list[Path], fault: Fault
) -> None:
    sha = hub.add_repo("ann/x", adapter(1)).sha
    hub.faults.add("POST", "/commit/", fault, first(1))
    done = remote.push(files, "ann/x", create_pr=True)
    assert (done.changed, done.pr_url) == (True, f"{hub.endpoint}/ann/x/discussions/1")
    assert done.revision == hub.repo("ann/x").at("refs/pr/1").oid
    assert hub.repo("ann/x").sha == sha
    assert len(hub.repo("ann/x").discussions) == 1


@pytest.mark.parametrize("fault", [Drop(), Status(500), NotJson()])
def test_pull_request_that_is_lost_is_an_error(
    hub: LoopbackHub, remote: Hub, files: list[Path], fault: Fault
) -> None:
    hub.add_repo("ann/x", adapter(1))
    # Somebody else's with the same files, and an older one of ours with others, are not it.
    hub.faults.add("POST", "/commit/", fault, nth(3))
    Hub(hub.endpoint, hub.add_user("bob")).push(files, "ann/x", create_pr=True)
    config = next(f for f in files if f.name == CONFIG)
    config.write_bytes(b'{"r": 1}')
    remote.push(files, "ann/x", create_pr=True)
    config.write_bytes(adapter(3)[CONFIG])
    fails(NetworkError, lambda: remote.push(files, "ann/x", create_pr=True), "ann/x")
    assert len(hub.repo("ann/x").discussions) == 2


@pytest.mark.parametrize("create_pr", [True, False])
def test_commit_that_nobody_can_look_up_is_called_unknown(
    hub: LoopbackHub, remote: Hub, files: list[Path], create_pr: bool
) -> None:
    hub.add_repo("ann/x", adapter(1))
    hub.faults.add("POST", "/commit/", Drop(lands=True), first(1))
    hub.faults.add("GET", "/discussions" if create_pr else "/api/models/ann/x", Drop(), after(1))
    what = "pull request" if create_pr else "commit"
    error = fails(
        NetworkError,
        lambda: remote.push(files, "ann/x", create_pr=create_pr),
        "ann/x",
        f"whether the {what} went through is not known",
    )
    assert "push again" in (error.hint or "")
    hub.faults.clear()
    again = remote.push(files, "ann/x", create_pr=create_pr)
    assert not again.changed
    assert (again.pr_url is not None) == create_pr
    assert len(hub.log.find("POST", "/commit/")) == 1


def test_pull_request_that_is_open_is_not_opened_twice(
    hub: LoopbackHub, remote: Hub, files: list[Path]
) -> None:
    hub.add_repo("ann/x", adapter(1))
    once = remote.push(files, "ann/x", create_pr=True)
    hub.log.clear()
    again = remote.push(files, "ann/x", create_pr=True)
    assert (again.changed, again.pr_url, again.revision) == (False, once.pr_url, once.revision)
    assert writes(hub) == []
    hub.repo("ann/x").discussions[1].status = "closed"
    reopened = remote.push(files, "ann/x", create_pr=True)
    assert (reopened.changed, reopened.pr_url) == (True, f"{hub.endpoint}/ann/x/discussions/2")


@pytest.mark.parametrize("habit", ["ignore_create_pr", "omit_pr_url"])
def test_hub_that_opens_no_pull_request(
    hub: LoopbackHub, remote: Hub, files: list[Path], habit: str
) -> None:
    hub.add_repo("ann/x", adapter(1))
    hub.ignore_create_pr = True
    setattr(hub, habit, True)
    fails(
        ConflictError, lambda: remote.push(files, "ann/x", create_pr=True), "ann/x", "pull request"
    )
    assert len(hub.log.find("POST", "/commit/")) == 1


@pytest.mark.parametrize("fault", LOST)
def test_commit_whose_answer_is_lost_is_not_repeated(
    hub: LoopbackHub, remote: Hub, files: list[Path], fault: Fault
) -> None:
    hub.add_repo("ann/x", adapter(1))
    hub.faults.add("POST", "/commit/", fault, first(1))
    done = remote.push(files, "ann/x")
    assert (done.changed, done.revision) == (True, hub.repo("ann/x").sha)
    assert commits(hub) == 2
    assert hub.files("ann/x") == adapter(3)


@pytest.mark.parametrize("fault", [Drop(), Status(500), NotJson()])
def test_commit_that_is_lost_is_an_error(
    hub: LoopbackHub, remote: Hub, files: list[Path], fault: Fault
) -> None:
    sha = hub.add_repo("ann/x", adapter(1)).sha
    hub.faults.add("POST", "/commit/", fault)
    fails(NetworkError, lambda: remote.push(files, "ann/x"), "ann/x")
    assert hub.repo("ann/x").sha == sha
    assert len(hub.log.find("POST", "/commit/")) == 1


def test_main_that_moves_while_we_push(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    hub.add_repo("ann/x", adapter(1))
    gate = hub.gates.hold("POST", "/commit/")
    with ThreadPoolExecutor() as pool:
        pushing = pool.submit(remote.push, files, "ann/x")
        gate.wait_arrived()
        theirs = hub.commit("ann/x", adapter(2))
        gate.release()
        fails(ConflictError, pushing.result, "ann/x")
    assert hub.repo("ann/x").sha == theirs
    assert hub.files("ann/x") == adapter(2)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        (r"/info/lfs/objects/batch", NotJson()),
        (r"/uploads/", Status(400)),
        (r"/verify$", Status(400)),
        (r"/preupload/", NotJson()),
        (r"/api/repos/create", Drop()),
        (r"/api/repos/create", Status(500)),
        (r"whoami", NotJson()),
        (r"whoami", Drop()),
    ],
)
def test_raw_errors_of_the_client_are_translated(
    hub: LoopbackHub, remote: Hub, files: list[Path], where: str, fault: Fault
) -> None:
    rule = hub.faults.add("*", where, fault)
    fails(NetworkError, lambda: remote.push(files, "ann/x"), "ann/x")
    assert rule.fired
    assert "ann/x" not in hub.repos or WEIGHTS not in hub.files("ann/x")


def test_push_needs_a_token(hub: LoopbackHub, files: list[Path]) -> None:
    error = fails(AuthError, lambda: Hub(hub.endpoint).push(files, "ann/x"))
    assert "hf auth login" in (error.hint or "")
    assert len(hub.log) == 0


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("create_pr", [False, True])
def test_push_with_a_token_that_may_only_read(
    hub: LoopbackHub, files: list[Path], existing: bool, create_pr: bool
) -> None:
    if existing:
        hub.add_repo("ann/x", adapter(1))
    reader = Hub(hub.endpoint, hub.add_user("ann", SECRET, role="read"))
    fails(AuthError, lambda: reader.push(files, "ann/x", create_pr=create_pr), "ann/x")
    assert ("ann/x" in hub.repos) == existing
    assert not existing or hub.files("ann/x") == adapter(1)


def test_push_to_a_renamed_repository(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    hub.add_repo("ann/y", adapter(1))
    hub.moved["ann/x"] = "ann/y"
    error = fails(ConflictError, lambda: remote.push(files, "ann/x"), "ann/x is now ann/y")
    assert "that name" in (error.hint or "")
    assert hub.files("ann/y") == adapter(1)
    assert writes(hub) == []


@pytest.mark.parametrize("token", [None, False])
def test_no_token_is_sent_where_none_is_meant(
    hub: LoopbackHub, files: list[Path], monkeypatch: pytest.MonkeyPatch, token: bool | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    hub.add_repo("ann/x", adapter(1))
    assert pull(Hub(hub.endpoint, token)) == adapter(1)
    assert any(e.had_token for e in hub.log) == (token is None)
    if token is False:
        fails(AuthError, lambda: Hub(hub.endpoint, token).push(files, "ann/x"))


def test_push_with_a_wrong_token(hub: LoopbackHub, files: list[Path]) -> None:
    fails(AuthError, lambda: Hub(hub.endpoint, SECRET).push(files, "ann/x"), "ann/x")
    assert writes(hub) == []


def test_push_to_a_foreign_namespace(hub: LoopbackHub, remote: Hub, files: list[Path]) -> None:
    fails(AuthError, lambda: remote.push(files, "lab/x"), "lab/x")
    assert "lab/x" not in hub.repos


@pytest.mark.parametrize(
    "repo_id", ["x", "", "a/b/c", "ann/", "/x", "ann/a b", "ann/ü", "ann/a--b", "ann/..", "ann/x\n"]
)
def test_push_to_a_malformed_id(
    hub: LoopbackHub, remote: Hub, files: list[Path], repo_id: str
) -> None:
    fails(UsageError, lambda: remote.push(files, repo_id))
    assert writes(hub) == []


def test_bad_card_stops_a_push_before_any_upload(
    hub: LoopbackHub, remote: Hub, files: list[Path]
) -> None:
    sha = hub.add_repo("ann/x", adapter(1)).sha
    card = next(f for f in files if f.name == "README.md")
    card.write_text("---\nbase_model: 3\n---\n")
    fails(InvalidAdapterError, lambda: remote.push(files, "ann/x"), "README.md")
    assert hub.repo("ann/x").sha == sha
    assert not hub.log.find("POST", "preupload|lfs|commit")
