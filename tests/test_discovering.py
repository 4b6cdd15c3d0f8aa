"""Looking for adapters on a Hub and for what changed there, over real sockets."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from lorahub import formats
from lorahub.adapter import Outline, Reference
from lorahub.cli.main import app
from lorahub.config import load_config
from lorahub.errors import (
    AuthError,
    ExitCode,
    InvalidAdapterError,
    LorahubError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UsageError,
)
from lorahub.events import Event, Warned
from lorahub.formats.safetensors import read_header
from lorahub.hub import Hub, Query
from lorahub.recipe import make_recipe
from lorahub.workspace import Workspace

from .conftest import EXAMPLES, write_adapter
from .loopback_hub import Drop, LoopbackHub, NotJson, Status, always, first

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SHAPES = {"model.layers.0.self_attn.q_proj": (12, 10, 4), "model.layers.0.mlp.up_proj": (14, 10, 6)}


def header(name: str = "q", dtype: str = "F32", shape: str = "[1,1]", stop: int = 4) -> bytes:
    entry = f'{{"dtype":"{dtype}","shape":%s,"data_offsets":[%d,%d]}}'
    a, b = entry % (shape, 0, stop), entry % (shape, stop, 2 * stop)
    return f'{{"{name}.lora_A.weight":{a},"{name}.lora_B.weight":{b}}}'.encode()


HOSTILE = {
    "name": header(name="q\x1b[2J"),
    "dtype": header(dtype="F\\u001b[2J"),
    "side": header(shape=f"[{1 << 80},{1 << 80}]"),
    "negative": header(shape="[-1,1]"),
    "offsets": header(stop=1 << 70),
    "words": header(shape='["a","b"]'),
}


def card(base: str, *tags: str, license_name: str = "mit", task: str = "text-generation") -> str:
    return (
        f"---\nlibrary_name: peft\nbase_model: {base}\nlicense: {license_name}\n"
        f"pipeline_tag: {task}\ntags: [{', '.join(tags)}]\n---\n"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_adapter(tmp_path_factory.mktemp("adapter"), SHAPES)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as workspace:
        yield workspace


def fill(hub: LoopbackHub, files: dict[str, bytes], count: int, base: str = "org/base") -> None:
    for n in range(count):
        repo = hub.add_repo(f"ann/x{n}", {**files, "README.md": card(base, "lora")})
        repo.downloads, repo.likes = (n * 7) % count, (n * 3) % count


def names(found: Any) -> list[str]:
    return [d.listed.repo_id for d in found]


def run(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


# Discover


@pytest.mark.parametrize("name", ["languages", "packages", "manuals"])
def test_outlines_are_what_inspection_of_the_whole_file_says(
    hub: LoopbackHub, workspace: Workspace, name: str
) -> None:
    hub.add_repo(f"ann/{name}", folder=EXAMPLES / name)
    info = formats.inspect(EXAMPLES / name)
    (found,) = workspace.discover(Query(search=name))
    assert found.outline is not None
    assert found.outline == Outline(
        format="peft",
        rank_min=info.ranks[0],
        rank_max=info.ranks[-1],
        targets=info.targets,
        dtype=info.dtype,
        modules=len(info.modules),
        weights_bytes=found.outline.weights_bytes,
    )
    # All of the file but the eight bytes of the header's length and the header itself.
    header = int.from_bytes((EXAMPLES / name / WEIGHTS).read_bytes()[:8], "little")
    assert found.outline.weights_bytes == info.weights_bytes - 8 - header
    reads = hub.log.find("GET", WEIGHTS)
    assert reads
    assert all("range" in e.headers for e in reads)
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_outlines_of_real_adapters(shared_adapters: Path) -> None:
    seen = 0
    for weights in sorted(shared_adapters.rglob("*.safetensors")):
        if weights.name != WEIGHTS and len(list(weights.parent.glob("*.safetensors"))) > 1:
            continue
        configured = (weights.parent / CONFIG).exists()
        try:
            info = formats.inspect(weights.parent)
        except LorahubError:
            continue
        found = formats.outline(weights, read_header(weights).tensors, configured=configured)
        seen += 1
        assert (found.format, found.modules) == (info.format, len(info.modules)), weights
        if info.modules:
            assert (found.rank_min, found.rank_max) == (info.ranks[0], info.ranks[-1])
            assert (found.targets, found.dtype) == (info.targets, info.dtype)
    assert seen > 10


def test_headers_are_read_once(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    fill(hub, files, 5)
    once = workspace.discover(Query(base="org/base"))
    assert len(hub.log.find("*", "/resolve/")) == 5
    hub.log.clear()
    assert workspace.discover(Query(base="org/base")) == once
    assert hub.log.find("*", "/resolve/") == []
    hub.commit("ann/x3", {"extra.txt": "a newer commit"})
    workspace.discover(Query(base="org/base"))
    assert len(hub.log.find("*", "/resolve/")) == 1


@pytest.mark.parametrize("sort", ["downloads", "likes", "recent"])
def test_pages_of_two_tags_become_one_list_in_order(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes], sort: Any
) -> None:
    hub.page_size = 3
    for n in range(11):
        tags = ["lora"] if n % 3 else []
        text = card("org/base", *tags) if n % 2 else f"---\ntags: [lora, n{n}]\n---\n"
        repo = hub.add_repo(f"ann/x{n}", {**files, "README.md": text})
        repo.downloads, repo.likes = (n * 7) % 11, (n * 5) % 11
    hub.add_repo("ann/other", {**files, "README.md": "---\ntags: [vision]\n---\n"})
    hub.add_repo("ann/empty", {"README.md": card("org/base", "lora")})
    order: dict[str, Any] = {
        "downloads": lambda n: (n * 7) % 11,
        "likes": lambda n: (n * 5) % 11,
        "recent": lambda n: n,
    }
    wanted = [f"ann/x{n}" for n in sorted(range(11), key=order[sort], reverse=True)]
    found = workspace.discover(Query(sort=sort, limit=100), headers=False)
    assert names(found) == wanted
    assert names(workspace.discover(Query(sort=sort, limit=4), headers=False)) == wanted[:4]


def test_conditions_hold_together(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    def add(repo_id: str, text: str) -> None:
        hub.add_repo(repo_id, {**files, "README.md": text})

    add("ann/law", card("org/base"))
    add("ann/law-mit", card("org/other"))
    add("ann/med", card("org/base", license_name="apache-2.0"))
    add("bob/law", card("org/base", task="summarization"))
    cases: list[tuple[dict[str, str], set[str]]] = [
        ({"base": "org/base"}, {"ann/law", "ann/med", "bob/law"}),
        ({"base": "org/base", "author": "ann"}, {"ann/law", "ann/med"}),
        ({"license": "mit", "author": "ann"}, {"ann/law", "ann/law-mit"}),
        ({"search": "LAW", "task": "text-generation"}, {"ann/law", "ann/law-mit"}),
        ({"base": "org/nothing"}, set()),
    ]
    for given, wanted in cases:
        found = workspace.discover(Query(**given), headers=False)
        assert set(names(found)) == wanted, given
    (law, _) = workspace.discover(Query(author="ann", license="mit", sort="likes"))
    assert (law.listed.base_model, law.listed.license) == ("org/base", "mit")
    assert law.listed.task == "text-generation"


def test_a_base_is_found_under_all_its_names(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    ids = ["meta-llama/Llama-2-7b-hf", "NousResearch/Llama-2-7b-hf", "unsloth/llama-2-7b"]
    for n, base in enumerate([*ids, "meta-llama/Llama-2-7b-chat-hf"]):
        hub.add_repo(f"ann/x{n}", {**files, "README.md": card(base)})
    for base in (ids[0], ids[2], ids[1].lower()):
        found = workspace.discover(Query(base=base), headers=False)
        assert sorted(names(found)) == ["ann/x0", "ann/x1", "ann/x2"]


def test_what_cannot_be_read_is_named(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    text = {"README.md": card("org/base")}
    hub.add_repo("ann/good", {**files, **text})
    hub.add_repo("ann/garbage", {**files, **text, WEIGHTS: b"\xff" * 300})
    hub.add_repo("ann/text", {**files, **text, WEIGHTS: b"\x02" + b"\0" * 7 + b"[]"})
    for name, hostile in HOSTILE.items():
        body = len(hostile).to_bytes(8, "little") + hostile + b"\0" * 8
        hub.add_repo(f"ann/{name}", {**files, **text, WEIGHTS: body})
    hub.add_repo("ann/gated", {**files, **text}, gated="manual")
    hub.add_repo("ann/pickle", {CONFIG: files[CONFIG], "adapter_model.bin": b"x", **text})
    found = {d.listed.repo_id: d for d in workspace.discover(Query(base="org/base"))}
    errors = {name: type(d.error) for name, d in found.items() if d.error}
    assert errors == {
        "ann/garbage": InvalidAdapterError,
        "ann/text": InvalidAdapterError,
        "ann/gated": AuthError,
        **{f"ann/{name}": InvalidAdapterError for name in HOSTILE},
    }
    assert found["ann/good"].outline is not None
    assert found["ann/pickle"].listed.weights_file is None
    assert found["ann/gated"].listed.gated
    for d in found.values():
        assert d.error is None or d.error.message.isprintable()


@pytest.mark.parametrize("fault", [Status(429, {"Retry-After": "0"}), Status(500), Drop()])
def test_passing_faults_of_the_listing_are_survived(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes], fault: Any
) -> None:
    fill(hub, files, 2)
    rules = [hub.faults.add("GET", path, fault, first(1)) for path in ("/api/models", "/resolve/")]
    found = workspace.discover(Query(base="org/base"))
    assert all(d.outline for d in found)
    assert len(found) == 2
    assert [rule.fired for rule in rules] == [1, 1]


@pytest.mark.parametrize("fault", [NotJson(), Status(500)])
def test_a_listing_that_is_none(hub: LoopbackHub, workspace: Workspace, fault: Any) -> None:
    hub.faults.add("GET", "/api/models", fault, always)
    with pytest.raises(NetworkError):
        workspace.discover(Query())


def test_an_unknown_sort_key_is_named(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="stars"):
        workspace.discover(Query(sort="stars"))  # type: ignore[arg-type]


def test_discover_and_pull_on_the_command_line(
    hub: LoopbackHub, home: Path, files: dict[str, bytes]
) -> None:
    fill(hub, files, 6)
    done = run("discover", "--base", "org/base", "--limit", "3", "--json")
    rows = json.loads(done.stdout)
    assert [r["outline"]["rank_max"] for r in rows] == [6, 6, 6]
    assert [r["name"] for r in rows] == [None, None, None]
    assert "pulled" not in run("discover", "--base", "org/base").stdout
    done = run("discover", "--base", "org/base", "--limit", "3", "--pull")
    assert done.exit_code == 0, done.output
    done = run("pull", "--base", "org/base", "--limit", "50", "--json")
    states = [r["state"] for r in json.loads(done.stdout)["result"]]
    assert sorted(states) == ["added"] * 3 + ["up to date"] * 3
    shown = run("discover", "--base", "org/base").stdout.splitlines()
    assert shown[0].split("\t")[:3] == ["REPOSITORY", "BASE", "RANK"]
    assert [line.split("\t")[2] for line in shown[1:]] == ["4..6"] * 6
    assert all("pulled as ann/x" in line for line in shown[1:])
    assert run("pull", "ann/x1", "--base", "org/base").exit_code == ExitCode.USAGE
    assert run("pull").exit_code == ExitCode.USAGE
    assert json.loads(run("pull", "--base", "org/none", "--json").stdout)["result"] == []


# Several Hubs


@pytest.fixture
def lab(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A second Hub, configured as the remote ``lab`` with a token of its own."""
    with LoopbackHub() as other:
        other.add_user("lee", "hf_lab")
        monkeypatch.setenv("LAB_TOKEN", "hf_lab")
        monkeypatch.setenv("HF_TOKEN", "hf_ann")
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[remotes.lab]\nendpoint = "{other.endpoint}/"\ntoken_env = "LAB_TOKEN"\n'
            f'[remotes.open]\nendpoint = "{other.endpoint}"\n'
        )
        yield other
    assert other.crashes == []


def test_a_remote_by_option_by_name_and_by_address(
    hub: LoopbackHub, lab: LoopbackHub, home: Path, files: dict[str, bytes]
) -> None:
    lab.add_repo("lee/x", {**files, "README.md": card("org/base")}, private=True)
    spellings = [["lee/x", "--remote", "lab"], ["lab://lee/x"], [f"{lab.endpoint}/lee/x"]]
    for words in spellings:
        done = run("pull", *words)
        assert done.exit_code == 0, done.output
    rows = json.loads(run("ls", "--json").stdout)
    assert [r["name"] for r in rows] == ["lee/x"]
    for reference in ("lab://lee/x", f"{lab.endpoint}/lee/x", "lee/x"):
        shown = json.loads(run("show", reference, "--json").stdout)
        assert shown["origin"]["endpoint"] == lab.endpoint
    assert run("show", "hf://lee/y").exit_code == ExitCode.NOT_FOUND
    (row,) = json.loads(run("discover", "--remote", "lab", "--json").stdout)
    assert row["name"] == "lee/x"
    assert len(hub.log) == 0
    assert {e.user for e in lab.log if e.origin == "hub"} == {"lee"}


def test_a_token_goes_only_to_the_hub_it_is_for(
    hub: LoopbackHub, lab: LoopbackHub, home: Path, files: dict[str, bytes]
) -> None:
    hub.add_repo("ann/x", files)
    lab.add_repo("lee/x", files)
    (home / "config.toml").write_text(f'[remotes.open]\nendpoint = "{lab.endpoint}"\n')
    for words in (["lee/x", "--remote", "open"], ["open://lee/x"], [f"{lab.endpoint}/lee/x"]):
        assert run("pull", *words).exit_code == 0
    assert not any(e.had_token for e in lab.log)
    named = [f"{lab.endpoint}/lee/x", "--endpoint", lab.endpoint, "--token-env", "LAB_TOKEN"]
    assert run("pull", *named).exit_code == 0
    assert lab.log.find("GET", "/api/models")[-1].user == "lee"
    assert run("pull", f"{hub.endpoint}/ann/x").exit_code == 0
    assert {e.user for e in hub.log if e.origin == "hub"} == {"ann"}


def test_adapters_of_one_name_on_two_hubs(
    hub: LoopbackHub, lab: LoopbackHub, home: Path, files: dict[str, bytes]
) -> None:
    hub.add_repo("ann/x", files)
    revision = lab.add_repo("ann/x", {**files, "README.md": "theirs"}).sha
    assert run("pull", "ann/x", "lab://ann/x").exit_code == 0
    rows = {r["name"] for r in json.loads(run("ls", "--json").stdout)}
    assert len(rows) == 2
    shown = json.loads(run("show", "lab://ann/x", "--json").stdout)
    assert shown["origin"]["revision"] == revision


def test_a_merge_pins_sources_of_another_hub_by_address(
    lab: LoopbackHub, workspace: Workspace, tmp_path: Path
) -> None:
    for n in range(2):
        folder = write_adapter(tmp_path / f"a{n}", SHAPES, seed=n)
        lab.add_repo(f"lee/a{n}", folder=folder)
    recipe = make_recipe(
        {
            "method": "cat",
            "sources": [{"adapter": "lab://lee/a0"}, {"adapter": f"{lab.endpoint}/lee/a1@main"}],
            "output": {"name": "both"},
        }
    )
    merged = workspace.merge(recipe)
    text = (merged.adapter.origin.folder / "recipe.yaml").read_text()
    for n in range(2):
        assert f"{lab.endpoint}/lee/a{n}@{lab.repo(f'lee/a{n}').sha}" in text


@pytest.mark.parametrize(
    "text",
    [
        "remotes = 1",
        "[remotes.hf]\nendpoint = 'https://h'",
        "[remotes.'a b']\nendpoint = 'https://h'",
        "[remotes.lab]\n",
        "[remotes.lab]\nendpoint = 'ftp://h'",
        "[remotes.lab]\nendpoint = 'https://ann:secret@h'",
        "[remotes.lab]\nendpoint = 'https://h'\ntoken = 'hf_secret'",
        "[remotes.lab]\nendpoint = 'https://h'\ntoken_env = 3",
        "[remotes]\nlab = 'https://h'",
    ],
)
def test_wrong_remotes_are_named(home: Path, text: str) -> None:
    home.mkdir()
    (home / "config.toml").write_text(text)
    with pytest.raises(UsageError, match="remotes") as caught:
        load_config()
    assert "secret" not in str(caught.value)


def test_remotes_are_shown(lab: LoopbackHub, home: Path) -> None:
    shown = json.loads(run("config", "show", "--json").stdout)
    assert shown["remotes.lab"] == shown["remotes.open"] == lab.endpoint


def test_unknown_remotes_are_named(lab: LoopbackHub, home: Path) -> None:
    for words in (["x/y", "--remote", "lob"], ["lob://x/y"]):
        done = run("pull", *words)
        assert done.exit_code == ExitCode.USAGE
        assert "no remote 'lob'" in done.output
        assert "lab, open" in done.output
    both = run("pull", "x/y", "--remote", "lab", "--endpoint", lab.endpoint)
    assert both.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "endpoint", "repo_id", "revision"),
    [
        ("hf://a/b@v1", None, "a/b", "v1"),
        ("https://h/a/b", "https://h", "a/b", None),
        ("https://h:8/a/b@v1", "https://h:8", "a/b", "v1"),
        ("https://h/hub/a/b", "https://h/hub", "a/b", None),
        ("https://h/a/b/tree/main", "https://h", "a/b", "main"),
        ("https://h/a/b/tree/refs/pr/1", "https://h", "a/b", "refs/pr/1"),
        ("https://me:secret@h/a/b", None, None, None),
        ("https://h/a", None, None, None),
        ("ftp://h/a/b", None, None, None),
    ],
)
def test_references_with_an_address(
    text: str, endpoint: str | None, repo_id: str | None, revision: str | None
) -> None:
    found = Reference.parse(text)
    assert (found.endpoint, found.repo_id, found.revision) == (endpoint, repo_id, revision)
    assert found.is_hub == (repo_id is not None)


# Without a Hub


@pytest.fixture
def nowhere(hf_home: Path) -> Iterator[str]:
    """An address at which nobody listens, and nobody can while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_hub_that_is_not_there_is_asked_once_per_thread(
    nowhere: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolve = Hub.resolve

    def counted(self: Hub, repo_id: str, revision: str | None = None) -> Any:
        asked.append(repo_id)
        return resolve(self, repo_id, revision)

    monkeypatch.setattr(Hub, "resolve", counted)
    pulled = workspace.pull([f"ann/x{n}" for n in range(200)], endpoint=nowhere)
    assert {type(p.error) for p in pulled} == {OfflineError}
    assert [p.reference for p in pulled] == [f"ann/x{n}" for n in range(200)]
    assert len(asked) <= 8
    with pytest.raises(OfflineError):
        workspace.discover(Query(), endpoint=nowhere)


def test_offline_everything_local_works(
    hub: LoopbackHub,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for n in range(2):
        hub.add_repo(f"ann/x{n}", folder=write_adapter(tmp_path / f"x{n}", SHAPES, seed=n))
    workspace.pull(["ann/x0", "ann/x1"])
    commit = hub.repo("ann/x0").sha
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    hub.log.clear()
    (pinned,) = workspace.pull([f"ann/x0@{commit}"])
    assert pinned.state == "up to date"
    recipe = {"method": "cat", "sources": [{"adapter": "ann/x0"}, {"adapter": "ann/x1"}]}
    merged = workspace.merge(make_recipe({**recipe, "output": {"name": "both"}}))
    workspace.verify("both")
    again = workspace.merge(make_recipe({**recipe, "output": {"folder": str(tmp_path / "again")}}))
    assert again.record.weights_sha256 == merged.record.weights_sha256
    (moving,) = workspace.pull(["ann/x0"])
    assert isinstance(moving.error, OfflineError)
    assert "offline mode" in moving.error.message
    assert {type(u.error) for u in workspace.update()} == {OfflineError}
    for call in (lambda: workspace.discover(Query()), lambda: workspace.push("both", "ann/both")):
        with pytest.raises(OfflineError, match="offline mode"):
            call()
    assert len(hub.log) == 0


def test_a_known_commit_whose_files_are_damaged_is_fetched_again(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    commit = hub.add_repo("ann/x", files).sha
    (pulled,) = workspace.pull([f"ann/x@{commit}"])
    assert pulled.adapter is not None
    weights = pulled.adapter.weights_path.resolve()
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    (again,) = workspace.pull([f"ann/x@{commit}"])
    assert again.state == "up to date"
    assert weights.read_bytes() == files[WEIGHTS]


# Update


def states(workspace: Workspace, *references: str) -> dict[str, str]:
    return {u.adapter.name: u.state for u in workspace.update(references)}


def test_what_moved_and_what_would_change(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes], tmp_path: Path
) -> None:
    fill(hub, files, 4)
    commit = hub.repo("ann/x3").sha
    workspace.pull(["ann/x0", "ann/x1", "ann/x2@main", f"ann/x3@{commit}"])
    assert set(states(workspace).values()) == {"up to date"}
    larger = (write_adapter(tmp_path / "new", {"q": (20, 20, 8)}) / WEIGHTS).read_bytes()
    hub.commit("ann/x0", {WEIGHTS: larger, "recipe.yaml": "a: 1", "README.md": None})
    hub.commit("ann/x1", {"training.log": "not an adapter's"})
    hub.commit("ann/x3", {WEIGHTS: larger})
    before = {a.name: a for a in workspace.catalog.hub_adapters()}
    updates = {u.adapter.name: u for u in workspace.update()}
    assert {n: u.state for n, u in updates.items()} == {
        "ann/x0": "changed",
        "ann/x1": "unchanged",
        "ann/x2": "up to date",
    }
    changed = updates["ann/x0"]
    assert changed.revision == hub.repo("ann/x0").sha
    assert [(c.name, c.size_here, c.size_there) for c in changed.changes] == [
        ("README.md", len(hub.files("ann/x0", before["ann/x0"].revision)["README.md"]), None),
        (WEIGHTS, len(files[WEIGHTS]), len(larger)),
        ("recipe.yaml", None, 4),
    ]
    pinned = next(a.name for a in before.values() if a.repo_id == "ann/x3")
    assert states(workspace, pinned) == {pinned: "pinned"}
    assert {a.name: a for a in workspace.catalog.hub_adapters()} == before


def test_the_name_follows_a_branch(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    hub.add_repo("ann/x", files)
    old = hub.commit("ann/x", {"README.md": "one"}, branch="dev")
    workspace.pull(["ann/x@dev"], name="mine")
    workspace.pull(["ann/x"])
    new = hub.commit("ann/x", {CONFIG: files[CONFIG] + b" "}, branch="dev")
    assert states(workspace) == {"mine": "changed", "ann/x": "up to date"}
    (taken,) = workspace.take(workspace.update())
    assert taken.adapter is not None
    assert (taken.adapter.name, taken.adapter.origin.revision) == ("mine", new)
    assert {a.name for a in workspace.catalog.hub_adapters()} == {
        "mine", f"mine@{old[:8]}", "ann/x"
    }  # fmt: skip
    assert set(states(workspace).values()) == {"up to date"}


def test_a_moved_main_never_changes_a_recorded_run(
    hub: LoopbackHub, workspace: Workspace, tmp_path: Path
) -> None:
    for n in range(2):
        hub.add_repo(f"ann/a{n}", folder=write_adapter(tmp_path / f"a{n}", SHAPES, seed=n))
    workspace.pull(["ann/a0"], name="law")
    workspace.pull(["ann/a1"])
    sources = [{"adapter": "law"}, {"adapter": "ann/a1"}]
    merged = workspace.merge(
        make_recipe({"method": "cat", "sources": sources, "output": {"name": "both"}})
    )
    parents = workspace.parents(merged.adapter)
    newer = write_adapter(tmp_path / "newer", SHAPES, seed=9)
    hub.commit("ann/a0", {WEIGHTS: newer / WEIGHTS})
    (taken,) = workspace.take(workspace.update())
    assert taken.adapter is not None
    assert taken.adapter.name == "law"  # the name follows, and so does nothing that was recorded
    assert states(workspace) == {"law": "up to date", "ann/a1": "up to date"}
    assert workspace.parents(workspace.get("both")) == parents
    workspace.verify("both")
    folder = merged.adapter.origin.folder
    pinned = tmp_path / "recipe.yaml"
    shutil.copy(folder / "recipe.yaml", pinned)
    from lorahub.recipe_file import load_recipe

    recipe = load_recipe(pinned)
    output = recipe.output.model_copy(update={"name": None, "folder": tmp_path / "again"})
    again = workspace.merge(recipe.model_copy(update={"output": output}))
    assert again.record.weights_sha256 == merged.record.weights_sha256
    fresh = workspace.merge(
        make_recipe({"method": "cat", "sources": sources, "output": {"name": "fresh"}})
    )
    assert fresh.record.weights_sha256 != merged.record.weights_sha256


def test_repositories_that_went_away(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    fill(hub, files, 6)
    workspace.pull([f"ann/x{n}" for n in range(6)])
    del hub.repos["ann/x0"]
    hub.repo("ann/x1").private = True
    hub.repo("ann/x2").disabled = True
    repo = hub.repos.pop("ann/x3")
    repo.id, hub.repos["ann/y3"], hub.moved["ann/x3"] = "ann/y3", repo, "ann/y3"
    hub.faults.add("GET", "ann/x4", Status(500))
    updates = {u.adapter.name: u for u in workspace.update()}
    failed = {name: type(u.error) for name, u in updates.items() if u.error}
    assert failed == {
        "ann/x0": NotFoundError,
        "ann/x1": NotFoundError,
        "ann/x2": NotFoundError,
        "ann/x4": NetworkError,
    }
    assert "private" in str(updates["ann/x1"].error)
    assert "disabled" in str(updates["ann/x2"].error)
    assert updates["ann/x3"].moved_to == "ann/y3"
    assert (updates["ann/x3"].state, updates["ann/x5"].state) == ("up to date", "up to date")
    for n in range(6):
        assert workspace.get(f"ann/x{n}").info.modules
    done = run("update")
    assert done.exit_code == ExitCode.PARTIAL
    assert "now ann/y3" in done.output
    one = run("update", "ann/x0")
    assert one.exit_code == ExitCode.NOT_FOUND


def test_a_gated_repository_says_so(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    hub.add_repo("ann/x", files)
    workspace.pull(["ann/x"])
    hub.repo("ann/x").gated = "manual"
    hub.commit("ann/x", {CONFIG: files[CONFIG] + b" "})
    (update,) = workspace.update()
    assert update.state == "changed"
    (taken,) = workspace.take([update])
    assert isinstance(taken.error, AuthError)
    assert "gated" in taken.error.message
    assert workspace.get("ann/x").origin.revision != hub.repo("ann/x").sha


def test_a_renamed_repository_is_pulled_with_a_warning(
    hub: LoopbackHub, workspace: Workspace, files: dict[str, bytes]
) -> None:
    repo = hub.add_repo("ann/y", files)
    hub.moved["ann/x"] = "ann/y"
    events: list[Event] = []
    (pulled,) = workspace.pull(["ann/x"], listener=events.append)
    assert pulled.adapter is not None
    assert pulled.adapter.origin.revision == repo.sha
    (warning,) = [e.message for e in events if isinstance(e, Warned)]
    assert "ann/x is now ann/y" in warning


def test_update_on_the_command_line(
    hub: LoopbackHub, home: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "local", SHAPES)
    hub.add_repo("ann/x", files)
    assert run("pull", "ann/x", folder).exit_code == 0
    hub.commit("ann/x", {CONFIG: files[CONFIG] + b"\n"})
    (row,) = json.loads(run("update", "--json").stdout)
    assert row["state"] == "changed"
    assert [c["name"] for c in row["changes"]] == [CONFIG]
    assert f"{CONFIG} {len(files[CONFIG])} B -> {len(files[CONFIG]) + 1} B" in run("update").stdout
    assert run("update", "local").exit_code == ExitCode.USAGE
    done = run("update", "--pull")
    assert done.exit_code == 0
    assert "ann/x\tadded" in done.stdout
    assert "up to date" in run("update").stdout
    names = {r["name"] for r in json.loads(run("ls", "--json").stdout)}
    assert {n.split("@")[0] for n in names} == {"ann/x", "local"}
    assert len(names) == 3
