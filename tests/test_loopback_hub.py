"""The hub on loopback is what the real client takes for the Hub."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import huggingface_hub.errors as hf
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    close_session,
    constants,
    hf_hub_download,
    snapshot_download,
)

from .loopback_hub import (
    CutBody,
    Drop,
    Fault,
    FlipByte,
    Gate,
    LoopbackHub,
    NotJson,
    Stall,
    Status,
    WithoutHeaders,
    WrongLength,
    after,
    chance,
    every,
    first,
    nth,
)
from .waiting import PATIENCE

pytest_plugins = ["tests.loopback_hub.fixtures"]
# The client itself uploads by a spelling that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")

ROOT = Path(__file__).parents[1]
WEIGHTS = "adapter_model.safetensors"
CARD = """---
library_name: peft
base_model: org/base
license: apache-2.0
pipeline_tag: text-generation
tags: [lora]
---
# An adapter
"""


def safetensors_bytes(fill: int = 0) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([fill]) * 128


def adapter(fill: int = 0) -> dict[str, bytes]:
    return {
        "README.md": CARD.encode(),
        "adapter_config.json": b'{"peft_type": "LORA"}',
        WEIGHTS: safetensors_bytes(fill),
    }


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_ann")


@pytest.fixture
def stranger(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("bob"))


@pytest.fixture
def anonymous(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def status_of(error: pytest.ExceptionInfo[hf.HfHubHTTPError]) -> int:
    return error.value.response.status_code


def raw(
    url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request without the client's help; header names are given with underscores."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, f"{parts.path or '/'}?{parts.query}", body, named)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for clients that a test makes wait."""
    with ThreadPoolExecutor() as pool:
        yield pool


# Users


def test_whoami_tells_name_organisations_and_role(hub: LoopbackHub) -> None:
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_user("rea", role="read", orgs=["lab"]))
    who = reader.whoami()
    assert (who["name"], [org["name"] for org in who["orgs"]]) == ("rea", ["lab"])
    assert who["auth"]["accessToken"]["role"] == "read"
    (entry,) = hub.log.find("GET", "whoami")
    assert (entry.status, entry.had_token, entry.user) == (200, True, "rea")
    assert "hf_rea" not in repr(entry)


def test_whoami_without_a_token_sends_nothing(hub: LoopbackHub, anonymous: HfApi) -> None:
    with pytest.raises(hf.LocalTokenNotFoundError):
        HfApi(endpoint=hub.endpoint).whoami()
    assert len(hub.log) == 0


def test_unknown_token_is_no_missing_repo(hub: LoopbackHub) -> None:
    hub.add_repo("ann/x", adapter())
    with pytest.raises(hf.HfHubHTTPError, match="Invalid credentials") as error:
        HfApi(endpoint=hub.endpoint, token="hf_wrong").model_info("ann/x")
    assert status_of(error) == 401
    assert not isinstance(error.value, hf.RepositoryNotFoundError)


# Repositories


def test_create_repo_honours_privacy(hub: LoopbackHub, api: HfApi, anonymous: HfApi) -> None:
    url = api.create_repo("ann/new", private=True)
    assert url == f"{hub.endpoint}/ann/new"
    assert api.model_info("ann/new").private is True
    assert api.list_repo_files("ann/new") == [".gitattributes"]
    with pytest.raises(hf.RepositoryNotFoundError):
        anonymous.model_info("ann/new")


def test_create_repo_again_is_a_conflict_unless_exist_ok(api: HfApi) -> None:
    url = api.create_repo("twice")
    with pytest.raises(hf.HfHubHTTPError) as error:
        api.create_repo("ann/twice")
    assert status_of(error) == 409
    assert api.create_repo("ann/twice", exist_ok=True) == url


def test_create_repo_in_a_foreign_namespace(hub: LoopbackHub, api: HfApi) -> None:
    with pytest.raises(hf.HfHubHTTPError) as error:
        api.create_repo("lab/x", exist_ok=True)
    assert status_of(error) == 403
    hub.add_repo("lab/x")
    assert api.create_repo("lab/x", exist_ok=True).repo_id == "lab/x"
    hub.add_user("ann", orgs=["lab"])
    assert api.create_repo("lab/y").repo_id == "lab/y"


@pytest.mark.parametrize("name", ["a--b", "a..b", "-".join(["x"] * 60)])
def test_bad_repo_name_never_leaves_the_client(hub: LoopbackHub, api: HfApi, name: str) -> None:
    with pytest.raises(hf.HFValidationError):
        api.create_repo(f"ann/{name}")
    assert len(hub.log) == 0
    body = json.dumps({"name": name, "organization": None}).encode()
    url = f"{hub.endpoint}/api/repos/create"
    assert raw(url, "POST", body, Authorization="Bearer hf_ann")[0] == 400


def test_hub_that_lies_about_privacy(hub: LoopbackHub, api: HfApi, anonymous: HfApi) -> None:
    hub.lie_about_privacy = True
    api.create_repo("ann/secret", private=True)
    api.update_repo_settings("ann/secret", private=True)
    assert api.model_info("ann/secret").private is False
    assert anonymous.model_info("ann/secret").id == "ann/secret"


def test_settings_change_privacy_and_gating(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x")
    api.update_repo_settings("ann/x", private=True, gated="manual")
    info = api.model_info("ann/x")
    assert (info.private, info.gated) == (True, "manual")
    api.update_repo_settings("ann/x", private=False, gated=False)
    assert (hub.repo("ann/x").private, hub.repo("ann/x").gated) == (False, False)


def test_delete_repo(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x")
    api.delete_repo("ann/x")
    assert not api.repo_exists("ann/x")
    api.delete_repo("ann/x", missing_ok=True)
    with pytest.raises(hf.RepositoryNotFoundError):
        api.delete_repo("ann/x")


def test_moved_repo_is_found_under_both_names(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/old", adapter(7))
    api.move_repo("ann/old", "ann/new")
    assert api.model_info("ann/old").id == "ann/new"
    path = hf_hub_download("ann/old", WEIGHTS)
    assert Path(path).read_bytes() == safetensors_bytes(7)
    hub.add_repo("ann/old", {"other.txt": "taken"})
    assert api.list_repo_files("ann/old") == ["other.txt"]


def test_write_needs_a_write_token_and_ownership(
    hub: LoopbackHub, api: HfApi, stranger: HfApi, anonymous: HfApi
) -> None:
    hub.add_repo("ann/x")
    hub.add_user("ann", "hf_read_only", role="read")
    reader = HfApi(endpoint=hub.endpoint, token="hf_read_only")
    for who, code in ((reader, 403), (stranger, 403), (anonymous, 401)):
        with pytest.raises(hf.HfHubHTTPError) as error:
            who.create_branch("ann/x", branch="dev")
        assert status_of(error) == code
    api.auth_check("ann/x", write=True)
    with pytest.raises(hf.HfHubHTTPError):
        stranger.auth_check("ann/x", write=True)


# Listing and looking


@pytest.fixture
def listed(hub: LoopbackHub) -> LoopbackHub:
    hub.add_repo("ann/one", adapter()).likes = 3
    hub.add_repo("ann/two", {"README.md": "---\ntags: [style]\nlicense: mit\n---\n"}).downloads = 9
    hub.add_repo("lab/One-more", adapter(), gated="auto").likes = 5
    hub.add_repo("ann/hidden", private=True)
    return hub


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({"author": "ann"}, ["ann/one", "ann/hidden", "ann/two"]),
        ({"search": "ONE"}, ["lab/One-more", "ann/one"]),
        ({"filter": "base_model:org/base"}, ["lab/One-more", "ann/one"]),
        ({"filter": ["lora", "license:mit"]}, []),
        ({"filter": ["peft", "base_model:adapter:org/base"]}, ["lab/One-more", "ann/one"]),
        ({"pipeline_tag": "text-generation", "gated": False}, ["ann/one"]),
        ({"sort": "downloads", "limit": 1}, ["ann/two"]),
        ({"sort": "created_at"}, ["ann/hidden", "lab/One-more", "ann/two", "ann/one"]),
    ],
)
def test_list_models(listed: LoopbackHub, api: HfApi, query: dict, ids: list[str]) -> None:
    assert [model.id for model in api.list_models(**query)] == ids


def test_list_models_pages_and_hides_private_ones(
    listed: LoopbackHub, api: HfApi, stranger: HfApi, anonymous: HfApi
) -> None:
    listed.page_size = 2
    assert len(list(api.list_models())) == 4
    assert len(listed.log.find("GET", r"/api/models\?.*cursor=")) == 1
    listed.page_size = 1
    assert len(list(stranger.list_models(search="one"))) == 2
    assert len(list(anonymous.list_models())) == 3


def test_list_models_fields(listed: LoopbackHub, api: HfApi) -> None:
    (brief,) = api.list_models(author="lab")
    assert (brief.sha, brief.siblings, brief.card_data) == (None, None, None)
    (full,) = api.list_models(author="lab", full=True, cardData=True)
    assert full.sha == listed.repo("lab/One-more").sha
    assert full.card_data is not None
    assert full.card_data.base_model == "org/base"
    assert full.siblings is not None
    (expanded,) = api.list_models(author="lab", expand=["likes", "gated"])
    assert (expanded.likes, expanded.gated, expanded.tags) == (5, "auto", None)


def test_model_info_with_files(hub: LoopbackHub, api: HfApi) -> None:
    repo = hub.add_repo("ann/x", adapter())
    info = api.model_info("ann/x", files_metadata=True)
    found = [vars(info)[field] for field in ("sha", "author", "library_name")]
    assert found == [repo.sha, "ann", "peft"]
    assert info.tags == [
        *("peft", "safetensors", "text-generation", "lora"),
        *("base_model:org/base", "base_model:adapter:org/base", "license:apache-2.0"),
    ]
    assert info.safetensors is not None
    assert info.safetensors.parameters == {"F32": 32}
    siblings = {s.rfilename: s for s in info.siblings or []}
    weights, config = siblings[WEIGHTS], siblings["adapter_config.json"]
    assert weights.size == len(safetensors_bytes())
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(safetensors_bytes()).hexdigest()
    assert config.lfs is None
    content = adapter()["adapter_config.json"]
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert config.blob_id == git
    assert api.model_info("ann/x", expand=["sha"]).tags is None


def test_revisions(hub: LoopbackHub, api: HfApi) -> None:
    old = hub.add_repo("ann/x", adapter(1)).sha
    api.create_tag("ann/x", tag="v1", tag_message="first")
    api.create_branch("ann/x", branch="exp/a", revision="v1")
    new = hub.commit("ann/x", {WEIGHTS: safetensors_bytes(2)})
    assert old != new
    for revision in ("v1", "exp/a", "refs/heads/exp/a", old, old[:8]):
        assert api.model_info("ann/x", revision=revision).sha == old
    assert api.resolve_revision("ann/x").resolved == new
    refs = api.list_repo_refs("ann/x", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": new, "exp/a": old}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", old)]
    assert refs.pull_requests == []
    with pytest.raises(hf.HfHubHTTPError) as error:
        api.create_tag("ann/x", tag="v1")
    assert status_of(error) == 409
    api.create_tag("ann/x", tag="v1", exist_ok=True)
    api.create_branch("ann/x", branch="main", exist_ok=True)
    api.delete_tag("ann/x", tag="v1")
    api.delete_branch("ann/x", branch="exp/a")
    with pytest.raises(hf.RevisionNotFoundError):
        api.delete_tag("ann/x", tag="v1")
    with pytest.raises(hf.HfHubHTTPError) as error:
        api.delete_branch("ann/x", branch="main")
    assert status_of(error) == 403
    with pytest.raises(hf.BadRequestError):
        api.create_branch("ann/x", branch="refs/pr/5")


def test_commits_are_listed_newest_first_in_pages(hub: LoopbackHub, api: HfApi) -> None:
    hub.page_size = 2
    shas = [hub.add_repo("ann/x", {"a": "0"}).sha]
    shas += [hub.commit("ann/x", {"a": str(n)}, message=f"step {n}") for n in range(1, 5)]
    commits = api.list_repo_commits("ann/x", formatted=True)
    assert [commit.commit_id for commit in commits] == shas[::-1]
    assert (commits[0].title, commits[0].authors) == ("step 4", ["ann"])
    assert commits[0].created_at > commits[1].created_at
    assert [c.commit_id for c in api.list_repo_commits("ann/x", revision=shas[1])] == shas[1::-1]


def test_tree(hub: LoopbackHub, api: HfApi) -> None:
    start = hub.add_repo("ann/x", {"a.txt": "a", "d/e/f.bin": "f", "d/g.txt": "g"}).sha
    later = hub.commit("ann/x", {"d/g.txt": "new"})

    def paths(**options: object) -> list[str]:
        return [entry.path for entry in api.list_repo_tree("ann/x", **options)]

    assert paths() == ["a.txt", "d"]
    assert paths(recursive=True) == ["a.txt", "d", "d/e", "d/e/f.bin", "d/g.txt"]
    assert paths(path_in_repo="d") == ["d/e", "d/g.txt"]
    hub.page_size = 2
    assert paths(recursive=True) == ["a.txt", "d", "d/e", "d/e/f.bin", "d/g.txt"]
    entries = {entry.path: entry for entry in api.list_repo_tree("ann/x", "d", expand=True)}
    assert entries["d/g.txt"].last_commit.oid == later
    assert entries["d/e"].last_commit.oid == start
    with pytest.raises(hf.RemoteEntryNotFoundError):
        paths(path_in_repo="nowhere")


def test_paths_info(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", {**adapter(), "d/file": "x"})
    found = api.get_paths_info("ann/x", [WEIGHTS, "d", "nowhere"], expand=True)
    assert [entry.path for entry in found] == [WEIGHTS, "d"]
    assert found[0].lfs.sha256 == hashlib.sha256(safetensors_bytes()).hexdigest()
    assert found[0].last_commit.oid == hub.repo("ann/x").sha


# Upload


def test_upload_folder_is_one_commit(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("ann/x")
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, data in adapter().items():
        (folder / name).write_bytes(data)
    before = hub.repo("ann/x").sha
    info = api.upload_folder(repo_id="ann/x", folder_path=folder, commit_message="All of it")
    assert info.oid == hub.repo("ann/x").sha
    assert hub.repo("ann/x").commits[info.oid].parent == before
    files = hub.files("ann/x")
    assert files.pop(".gitattributes")
    assert files == adapter()
    again = api.upload_folder(repo_id="ann/x", folder_path=folder)
    assert again.oid == info.oid


def test_lfs_upload_basic_sends_no_token_to_the_cdn(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x")
    upload(api, safetensors_bytes(3))
    (put,) = hub.log.find("PUT")
    assert (put.origin, put.status, put.had_token) == ("cdn", 200, False)
    (verify,) = hub.log.find("POST", "/verify$")
    assert (verify.status, verify.had_token) == (200, True)
    assert hub.files("ann/x")[WEIGHTS] == safetensors_bytes(3)


def upload(api: HfApi, data: bytes, path: str = WEIGHTS, **options: object) -> str:
    info = api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id="ann/x", **options)
    return info.oid


@pytest.mark.parametrize("size", [65, 128, 129, 1000])
def test_lfs_upload_multipart(hub: LoopbackHub, api: HfApi, size: int) -> None:
    hub.add_repo("ann/x")
    hub.multipart_chunk = 64
    data = bytes(n % 251 for n in range(size))
    upload(api, data)
    assert hub.files("ann/x")[WEIGHTS] == data
    puts = hub.log.find("PUT", r"/uploads/1/\d+")
    assert len(puts) == -(-size // 64)
    (complete,) = hub.log.find("POST", "complete_multipart")
    assert not any(entry.had_token for entry in (*puts, complete))


def test_small_file_is_not_multipart(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x")
    hub.multipart_chunk = 64
    upload(api, bytes(64))
    assert not hub.log.find("POST", "complete_multipart")


def test_lfs_content_that_is_there_is_not_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", adapter(1))
    upload(api, safetensors_bytes(1), "copy.safetensors")
    assert not hub.log.find("PUT")
    assert hub.files("ann/x")["copy.safetensors"] == safetensors_bytes(1)


def test_other_bytes_than_announced_are_refused(hub: LoopbackHub) -> None:
    hub.add_repo("ann/x")
    data = safetensors_bytes(5)
    named = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    token = {"Authorization": "Bearer hf_ann"}
    lfs = f"{hub.endpoint}/ann/x.git/info/lfs/objects"
    body = json.dumps({"operation": "upload", "transfers": ["basic"], "objects": [named]}).encode()
    _, _, answer = raw(f"{lfs}/batch", "POST", body, **token)
    href = json.loads(answer)["objects"][0]["actions"]["upload"]["href"]
    verify = json.dumps(named).encode()
    assert raw(f"{lfs}/verify", "POST", verify, **token)[0] == 404
    assert raw(href, "PUT", data[:-1] + b"?")[0] == 200
    assert raw(f"{lfs}/verify", "POST", verify, **token)[0] == 400
    assert raw(href, "PUT", data, **token)[0] == 400  # the token has no business there
    pointer = {"key": "lfsFile", "value": {"path": WEIGHTS, "algo": "sha256", **named}}
    commit = json.dumps(pointer).encode()
    status, _, answer = raw(f"{hub.endpoint}/api/models/ann/x/commit/main", "POST", commit, **token)
    assert (status, "was not uploaded" in answer.decode()) == (400, True)


def test_client_that_goes_away_in_the_middle_of_a_body(hub: LoopbackHub) -> None:
    hub.add_repo("ann/x")
    parts = urlsplit(hub.cdn_endpoint)
    for head in ("Content-Length: 100", "Transfer-Encoding: chunked"):
        connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
        connection.connect()
        connection.sock.sendall(f"PUT /uploads/1 HTTP/1.1\r\n{head}\r\n\r\n5\r\nabcd".encode())
        connection.close()
    raw(hub.cdn_endpoint)  # connections are taken in turn, so the two before are being served
    hub.close()  # waits until they are done with
    assert [entry.path for entry in hub.log] == ["/"]


def test_commit_operations(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", {"a": "1", "d/b": "2", "d/c": "3", "w.bin": b"45", "e": ""})
    api.create_commit(
        "ann/x",
        [
            CommitOperationDelete("d/"),
            CommitOperationDelete("a"),
            CommitOperationCopy("w.bin", "v.bin"),
            CommitOperationCopy("e", "f"),
            CommitOperationAdd("empty.safetensors", b""),
        ],
        commit_message="Reshape",
        commit_description="At length",
    )
    wanted = {"w.bin": b"45", "v.bin": b"45", "e": b"", "f": b"", "empty.safetensors": b""}
    assert hub.files("ann/x") == wanted
    commit = api.list_repo_commits("ann/x")[0]
    assert (commit.title, commit.message) == ("Reshape", "At length")
    with pytest.raises(hf.RemoteEntryNotFoundError, match="trailing '/'"):
        api.delete_file("nowhere", "ann/x")


def test_files_that_gitignore_names_are_left_out(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", {".gitignore": "# scratch\n*.log\ntmp/\n"})
    files = {"a.log": b"1", "d/b.log": b"2", "tmp/c": b"3", "kept": b"4"}
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit("ann/x", operations, commit_message="Some")
    assert set(hub.files("ann/x")) == {".gitignore", "kept"}


def test_stale_parent_commit_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    old = hub.add_repo("ann/x", {"a": "1"}).sha
    new = upload(api, b"2", "a", parent_commit=old)
    with pytest.raises(hf.HfHubHTTPError) as error:
        upload(api, b"3", "a", parent_commit=old)
    assert status_of(error) == 412
    assert hub.repo("ann/x").sha == new


@pytest.mark.parametrize("path", ["../evil", "/abs", "a/../../b", "a//b", ""])
def test_commit_refuses_paths_that_leave_the_repo(hub: LoopbackHub, path: str) -> None:
    hub.add_repo("ann/x")
    line = json.dumps({"key": "file", "value": {"path": path, "encoding": "base64", "content": ""}})
    url = f"{hub.endpoint}/api/models/ann/x/commit/main"
    assert raw(url, "POST", line.encode(), Authorization="Bearer hf_ann")[0] == 400


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: [\n---\n",
        "---\n- a list\n---\n",
        "---\nbase_model: 3\n---\n",
        "---\nlibrary_name: [peft]\n---\n",
    ],
)
def test_bad_card_stops_before_any_upload(hub: LoopbackHub, api: HfApi, card: str) -> None:
    sha = hub.add_repo("ann/x").sha
    operations = [CommitOperationAdd("README.md", card.encode()), CommitOperationAdd(WEIGHTS, b"1")]
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.create_commit("ann/x", operations, commit_message="Bad")
    assert hub.repo("ann/x").sha == sha
    assert not hub.log.find("POST", "preupload|lfs|commit")


def test_card_without_metadata_is_a_warning(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        upload(api, b"# Nothing", "README.md")


def test_model_card_round_trip(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", {WEIGHTS: safetensors_bytes()})
    data = ModelCardData(
        base_model=["org/a", "org/b"], base_model_relation="merge", library_name="peft", tags=["x"]
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n# Merged\n").push_to_hub("ann/x", token="hf_ann")
    assert ModelCard.load("ann/x").data.base_model == ["org/a", "org/b"]
    assert (api.model_info("ann/x").tags or [])[-4:] == [
        *("base_model:org/a", "base_model:org/b"),
        *("base_model:merge:org/a", "base_model:merge:org/b"),
    ]


# Pull requests


def test_pull_request_leaves_main_alone_until_it_is_merged(
    hub: LoopbackHub, api: HfApi, stranger: HfApi
) -> None:
    main = hub.add_repo("ann/x", {"a": "1", "gone": "x"}).sha
    operations = [CommitOperationAdd("a", b"2"), CommitOperationDelete("gone")]
    info = stranger.create_commit("ann/x", operations, commit_message="Mine", create_pr=True)
    assert info.pr_revision == "refs/pr/1"
    assert hub.repo("ann/x").sha == main
    assert hub.files("ann/x", "refs/pr/1") == {"a": b"2"}
    upload(stranger, b"more", "b", revision="refs/pr/1")
    hub.commit("ann/x", {"c": "meanwhile"})
    details = api.get_discussion_details("ann/x", 1)
    assert (details.author, details.target_branch, details.status) == ("bob", "main", "open")
    api.merge_pull_request("ann/x", 1)
    assert hub.files("ann/x") == {"a": b"2", "b": b"more", "c": b"meanwhile"}
    merged = api.get_discussion_details("ann/x", 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", hub.repo("ann/x").sha)


def test_create_pull_request_then_fill_it(hub: LoopbackHub, api: HfApi, stranger: HfApi) -> None:
    hub.add_repo("ann/x", {"a": "1"})
    opened = stranger.create_pull_request("ann/x", "A better one")
    assert (opened.num, opened.status, opened.git_reference) == (1, "draft", "refs/pr/1")
    upload(stranger, safetensors_bytes(9), revision=opened.git_reference)
    assert hub.files("ann/x", "refs/pr/1")[WEIGHTS] == safetensors_bytes(9)
    assert WEIGHTS not in hub.files("ann/x")
    talk = stranger.create_discussion("ann/x", "Why?")
    assert not talk.is_pull_request
    assert api.change_discussion_status("ann/x", 1, "closed").new_status == "closed"
    listed = [(d.num, d.status) for d in api.get_repo_discussions("ann/x")]
    assert listed == [(1, "closed"), (2, "open")]
    refs = api.list_repo_refs("ann/x", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]


def test_hub_that_ignores_create_pr(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", {"a": "1"})
    hub.ignore_create_pr = True
    operation = CommitOperationAdd("a", b"2")
    info = api.create_commit("ann/x", [operation], commit_message="PR?", create_pr=True)
    assert info.pr_url is None
    assert hub.files("ann/x") == {"a": b"2"}
    hub.omit_pr_url = True
    with pytest.raises(KeyError):
        upload(api, b"3", "a", create_pr=True)
    assert hub.files("ann/x") == {"a": b"3"}


# Download


@pytest.mark.parametrize("redirect", [True, False])
def test_snapshot_download(hub: LoopbackHub, redirect: bool) -> None:
    hub.redirect_lfs = redirect
    repo = hub.add_repo("ann/x", {**adapter(4), "sub/ünï %2F#?.txt": "é"}, private=True)
    folder = Path(snapshot_download("ann/x", token="hf_ann"))
    assert folder.name == repo.sha
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    assert found == hub.files("ann/x")
    cdn = [entry for entry in hub.log if entry.origin == "cdn"]
    assert [entry.had_token for entry in cdn] == ([False] if redirect else [])
    hub.log.clear()
    assert snapshot_download("ann/x", token="hf_ann") == str(folder)
    assert not hub.log.find("GET", "/resolve/|/repos/")


def test_cdn_wants_a_signature_and_no_token(hub: LoopbackHub) -> None:
    hub.add_repo("ann/x", adapter())
    _, headers, _ = raw(f"{hub.endpoint}/ann/x/resolve/main/{WEIGHTS}")
    address = headers["location"]
    assert address.startswith(hub.cdn_endpoint)
    assert raw(address)[2] == safetensors_bytes()
    assert raw(address, Authorization="Bearer hf_ann")[0] == 400
    assert raw(address.partition("&signature")[0])[0] == 403


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=3-100000", 206, slice(3, None)),
        ("bytes=100000-", 416, slice(0, 0)),
        ("lines=1-2", 200, slice(None)),
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_range(hub: LoopbackHub, name: str, asked: str, status: int, span: slice) -> None:
    hub.redirect_lfs = False
    hub.add_repo("ann/x", adapter())
    answer = raw(f"{hub.endpoint}/ann/x/resolve/main/{name}", Range=asked)
    assert (answer[0], answer[2]) == (status, adapter()[name][span])


def test_safetensors_header_is_read_by_range(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", adapter())
    metadata = api.parse_safetensors_file_metadata("ann/x", WEIGHTS)
    assert metadata.tensors["a"].shape == [4, 8]
    assert [e.status for e in hub.log if e.origin == "cdn" and "range" in e.headers] == [206]
    with pytest.raises(hf.NotASafetensorsRepoError):
        api.get_safetensors_metadata("ann/x")


def test_gated_repo_lets_the_allowed_in(
    hub: LoopbackHub, api: HfApi, stranger: HfApi, anonymous: HfApi
) -> None:
    repo = hub.add_repo("ann/x", adapter(), gated="manual")
    for who, code in ((stranger, 403), (anonymous, 401)):
        assert who.model_info("ann/x").gated == "manual"
        with pytest.raises(hf.GatedRepoError) as error:
            who.snapshot_download("ann/x")
        assert status_of(error) == code
    repo.allowed.add("bob")
    stranger.auth_check("ann/x")
    folder = Path(stranger.snapshot_download("ann/x"))
    assert (folder / WEIGHTS).read_bytes() == safetensors_bytes()


@pytest.mark.parametrize("name", ["../evil.txt", "/abs/evil.txt", "a/../../../evil.txt"])
def test_hostile_names_are_listed_as_they_are(
    hub: LoopbackHub, api: HfApi, name: str, tmp_path: Path
) -> None:
    hub.add_repo("ann/x", {"good.txt": "good", name: "evil"})
    assert name in api.list_repo_files("ann/x")
    assert name in [s.rfilename for s in api.model_info("ann/x").siblings or []]
    inside = tmp_path / "inside"
    with pytest.raises(ValueError, match="Invalid filename"):
        api.snapshot_download("ann/x", local_dir=inside)
    strays = [path for path in tmp_path.rglob("evil.txt") if inside not in path.parents]
    assert strays == []


# Errors


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (hf.RepositoryNotFoundError, lambda api: api.model_info("ann/missing")),
        (hf.RepositoryNotFoundError, lambda api: api.hf_hub_download("ann/missing", "f")),
        (hf.RepositoryNotFoundError, lambda api: api.snapshot_download("ann/missing")),
        (hf.RepositoryNotFoundError, lambda api: api.list_repo_files("ann/private")),
        (
            hf.RepositoryNotFoundError,
            lambda api: api.upload_folder(
                repo_id="ann/private",
                folder_path=ROOT / "tests/loopback_hub",
                allow_patterns="__init__.py",
            ),
        ),
        (hf.GatedRepoError, lambda api: api.hf_hub_download("ann/gated", WEIGHTS)),
        (hf.RevisionNotFoundError, lambda api: api.model_info("ann/x", revision="gone")),
        (hf.RevisionNotFoundError, lambda api: api.snapshot_download("ann/x", revision="gone")),
        (hf.RevisionNotFoundError, lambda api: api.hf_hub_download("ann/x", "f", revision="gone")),
        (hf.RemoteEntryNotFoundError, lambda api: api.hf_hub_download("ann/x", "missing")),
        (hf.DisabledRepoError, lambda api: api.model_info("ann/disabled")),
        (hf.LocalEntryNotFoundError, lambda api: api.hf_hub_download("ann/disabled", WEIGHTS)),
        (hf.BadRequestError, lambda api: api.create_repo("x", repo_type="dataset")),
        (hf.HFValidationError, lambda api: api.model_info("not a repo id")),
        (hf.HfHubHTTPError, lambda api: api.create_repo("ann/x")),
    ],
)
def test_error_classes(
    hub: LoopbackHub, stranger: HfApi, error: type[Exception], call: Callable[[HfApi], object]
) -> None:
    hub.add_repo("ann/x", adapter())
    hub.add_repo("ann/private", adapter(), private=True)
    hub.add_repo("ann/gated", adapter(), gated="auto")
    hub.add_repo("ann/disabled", adapter()).disabled = True
    with pytest.raises(error) as caught:
        call(stranger)
    assert type(caught.value) is error


def test_error_message_and_request_id_reach_the_user(hub: LoopbackHub, stranger: HfApi) -> None:
    with pytest.raises(hf.HfHubHTTPError, match="You don't have the rights") as error:
        stranger.create_repo("ann/x")
    assert error.value.request_id
    assert error.value.server_message


def test_missing_file_is_remembered_by_the_client(hub: LoopbackHub) -> None:
    hub.add_repo("ann/x", adapter())
    with pytest.raises(hf.EntryNotFoundError) as error:
        hf_hub_download("ann/x", "missing")
    assert error.value.response.headers["X-Repo-Commit"] == hub.repo("ann/x").sha


@pytest.mark.parametrize(
    "fault",
    [
        WithoutHeaders(("X-Repo-Commit",)),
        WithoutHeaders(("ETag", "X-Linked-Etag")),
        Status(403),
        Status(404),
    ],
)
def test_answer_without_metadata_looks_like_offline(hub: LoopbackHub, fault: Fault) -> None:
    hub.add_repo("ann/x", adapter())
    hub.faults.add("HEAD", "/resolve/", fault)
    with pytest.raises(hf.LocalEntryNotFoundError):
        hf_hub_download("ann/x", WEIGHTS)


def test_offline_snapshot(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("ann/x", adapter())
    snapshot_download("ann/x", allow_patterns="*.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    with pytest.raises(hf.IncompleteSnapshotError):
        snapshot_download("ann/x")
    with pytest.raises(hf.OfflineModeIsEnabled):
        HfApi(endpoint=hub.endpoint).model_info("ann/x")
    with pytest.raises(hf.RevisionResolutionError):
        HfApi(endpoint=hub.endpoint).resolve_revision("ann/other")
    assert len(hub.log) == 0


def test_closed_hub_refuses_connections(hub: LoopbackHub) -> None:
    other = LoopbackHub()
    with other:
        other.add_repo("ann/x")
    with pytest.raises(httpx2.ConnectError):
        HfApi(endpoint=other.endpoint).model_info("ann/x")


# Faults


def test_rate_limit_is_waited_for(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", adapter())
    limit = Status(429, {"Retry-After": "0"})
    rule = hub.faults.add("GET", "/tree/", limit, first(1))
    assert len(api.list_repo_files("ann/x")) == 3
    assert (rule.seen, rule.fired) == (2, 1)
    assert [entry.status for entry in hub.log.find("GET", "/tree/")] == [429, 200]


def test_upload_is_repeated_from_its_start(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x")
    hub.faults.add("PUT", "/uploads/", Status(503), first(1))
    upload(api, safetensors_bytes(8))
    assert [entry.status for entry in hub.log.find("PUT")] == [503, 200]
    assert hub.files("ann/x")[WEIGHTS] == safetensors_bytes(8)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_model_info_is_not_retried(hub: LoopbackHub, api: HfApi, status: int) -> None:
    hub.add_repo("ann/x", adapter())
    hub.faults.add("*", "/api/models/ann/x", Status(status, message="too bad"))
    with pytest.raises(hf.HfHubHTTPError, match="too bad") as error:
        api.model_info("ann/x")
    assert status_of(error) == status
    assert len(hub.log) == 1


def test_cut_body_is_resumed_by_range(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    data = bytes(n % 251 for n in range(1000))
    hub.add_repo("ann/x", {"w.bin": data})
    hub.faults.add("GET", r"/repos/.*w\.bin", CutBody(450), first(1))
    assert Path(hf_hub_download("ann/x", "w.bin")).read_bytes() == data
    asked = [(e.status, e.headers.get("range")) for e in hub.log.find("GET", "/repos/")]
    assert asked == [(200, None), (206, "bytes=400-")]


def test_flipped_byte_is_accepted_by_the_client(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", adapter())
    hub.faults.add("GET", "/repos/", FlipByte(200))
    wrong = Path(snapshot_download("ann/x")) / WEIGHTS
    assert sum(a != b for a, b in zip(wrong.read_bytes(), safetensors_bytes(), strict=True)) == 1
    report = api.verify_repo_checksums("ann/x")
    assert [mismatch["path"] for mismatch in report.mismatches] == [WEIGHTS]


@pytest.mark.parametrize("fault", [WrongLength(-5), CutBody(0)])
def test_short_file_is_an_error(hub: LoopbackHub, fault: WrongLength | CutBody) -> None:
    hub.add_repo("ann/x", {"a.txt": "0123456789"})
    hub.faults.add("GET", "/resolve/.*", fault, first(1))
    if isinstance(fault, WrongLength):
        with pytest.raises(OSError, match="Consistency check failed"):
            hf_hub_download("ann/x", "a.txt")
        assert not list(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/a.txt"))
    else:
        assert Path(hf_hub_download("ann/x", "a.txt")).read_text() == "0123456789"


def test_answer_that_is_not_json(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("ann/x", adapter())
    hub.faults.add("GET", "/api/models/", NotJson())
    with pytest.raises(ValueError, match="Expecting value"):
        api.model_info("ann/x")


@pytest.mark.parametrize("lands", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [(Drop, httpx2.RemoteProtocolError, 0), (partial(Status, 500), hf.HfHubHTTPError, 500)],
)
def test_commit_whose_answer_is_lost(
    hub: LoopbackHub,
    api: HfApi,
    lands: bool,
    fault: Callable[..., Fault],
    error: type[Exception],
    status: int,
) -> None:
    sha = hub.add_repo("ann/x", {"a": "1"}).sha
    hub.faults.add("POST", "/commit/", fault(lands=lands))
    with pytest.raises(error):
        upload(api, b"2", "a")
    assert (hub.repo("ann/x").sha != sha) == lands
    assert [entry.status for entry in hub.log.find("POST", "/commit/")] == [status]


def test_stall_ends_with_its_gate_or_the_hub(
    hub: LoopbackHub, api: HfApi, background: ThreadPoolExecutor
) -> None:
    hub.add_repo("ann/x", adapter())
    gate = Gate()
    rule = hub.faults.add("GET", "/api/models/ann/x", Stall(gate))
    waiting = background.submit(api.model_info, "ann/x")
    gate.wait_arrived()
    assert len(hub.log) == 0
    gate.release()
    assert isinstance(waiting.exception(PATIENCE), httpx2.RemoteProtocolError)
    assert rule.fired == 1
    with LoopbackHub() as other:
        other.add_repo("ann/x")
        stuck, half = Gate(), Gate()
        other.faults.add("GET", "/api/", Stall(stuck))
        other.faults.add("GET", "/resolve/", CutBody(1, half))
        waiting = background.submit(raw, f"{other.endpoint}/api/models/ann/x")
        reading = background.submit(raw, f"{other.endpoint}/ann/x/resolve/main/.gitattributes")
        stuck.wait_arrived()
        half.wait_arrived()
    assert isinstance(waiting.exception(PATIENCE), http.client.RemoteDisconnected)
    assert isinstance(reading.exception(PATIENCE), http.client.IncompleteRead)


def test_gate_stops_a_commit_before_or_after_it_lands(
    hub: LoopbackHub, api: HfApi, background: ThreadPoolExecutor
) -> None:
    hub.add_repo("ann/x", {"a": "1"})
    before = hub.gates.hold("POST", "/api/models/ann/x/commit/")
    landed = hub.gates.hold("POST", "/commit/", landed=True)
    pushing = background.submit(upload, api, b"2", "a")
    before.wait_arrived()
    assert hub.files("ann/x") == {"a": b"1"}
    before.release()
    landed.wait_arrived()
    assert hub.files("ann/x") == {"a": b"2"}
    landed.release()
    assert pushing.result(PATIENCE) == hub.repo("ann/x").sha
    with pytest.raises(TimeoutError):
        landed.wait_arrived(0)


def test_killed_client_leaves_no_half_upload(hub: LoopbackHub) -> None:
    sha = hub.add_repo("ann/x").sha
    gate = hub.gates.hold("PUT", "/uploads/")
    code = (
        "import huggingface_hub as h; h.HfApi().upload_file("
        f"path_or_fileobj=b'123', path_in_repo='{WEIGHTS}', repo_id='ann/x', token='hf_ann')"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as client:
        gate.wait_arrived()
        client.kill()
    gate.release()
    hub.gates.clear()
    upload(HfApi(endpoint=hub.endpoint, token="hf_ann"), b"123")
    commits = list(hub.repo("ann/x").history(hub.repo("ann/x").at("main")))
    assert [commit.oid for commit in commits][1:] == [sha]


def test_occurrences_are_counted_not_timed() -> None:
    def fired(when: Callable[[int], bool]) -> list[int]:
        return [n for n in range(1, 11) if when(n)]

    assert fired(first(2)) == [1, 2]
    assert fired(after(8)) == [9, 10]
    assert fired(nth(2, 5)) == [2, 5]
    assert fired(every(3)) == [3, 6, 9]
    assert fired(chance(0.5, seed=1)) == fired(chance(0.5, seed=1))
    assert fired(chance(0.5, seed=1)) != fired(chance(0.5, seed=2))
    hits = sum(chance(0.3, seed=3)(n) for n in range(1, 2001))
    assert 500 < hits < 700


def test_first_rule_that_fires_wins(hub: LoopbackHub) -> None:
    hub.faults.add("GET", "/x", Status(500), nth(2))
    hub.faults.add("*", r"\?q=1$", Status(503))
    codes = [raw(f"{hub.endpoint}/x?q=1")[0] for _ in range(3)]
    assert codes == [503, 500, 503]
    hub.faults.clear()
    assert raw(f"{hub.endpoint}/x?q=1")[0] == 404


def test_bug_in_the_hub_is_no_fault() -> None:
    class Broken:
        lands = False

        def spoil(self, reply: object) -> None:
            raise ZeroDivisionError

    with LoopbackHub() as hub:
        hub.faults.add("GET", "", Broken())
        with pytest.raises(http.client.RemoteDisconnected):
            raw(hub.endpoint)
    assert [type(crash) for crash in hub.crashes] == [ZeroDivisionError]


def test_two_hubs_make_the_same_commits() -> None:
    shas = []
    for _ in range(2):
        hub = LoopbackHub()
        with hub:
            hub.add_repo("ann/x", adapter())
            shas.append(hub.commit("ann/x", {"README.md": None, "b": "x"}, branch="dev"))
    assert shas[0] == shas[1]


# In a process of its own


def test_script_serves_the_hf_command(hf_home: Path, tmp_path: Path) -> None:
    close_session()
    for name, data in adapter(6).items():
        path = tmp_path / "seeds/ann/x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    command = [
        *(sys.executable, "-m", "tests.loopback_hub", "--seed-folder", str(tmp_path / "seeds")),
        *("--user", "ann:hf_secret", "--private", "ann/x", "--exit-with-stdin"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"}
        target = tmp_path / "out"
        subprocess.run(
            [
                *(sys.executable, "-m", "huggingface_hub.cli.hf", "download", "ann/x"),
                *("--local-dir", str(target)),
            ],
            env=environment,
            check=True,
            capture_output=True,
        )
        assert (target / WEIGHTS).read_bytes() == safetensors_bytes(6)
        with pytest.raises(hf.RepositoryNotFoundError):
            HfApi(endpoint=endpoint, token=False).model_info("ann/x")
        server.stdin.close()
        assert server.wait(PATIENCE) == 0
