"""Folders at storage URLs: whole or not there, on a disk, in memory and on a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub import storage
from lorahub.adapter import content_hash_of
from lorahub.errors import (
    AuthError,
    ConflictError,
    IntegrityError,
    LorahubError,
    NetworkError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lorahub.events import Advanced, Event
from lorahub.storage import MANIFEST, UPLOAD, get_folder, put_folder, stored
from lorahub.urls import canonical, is_url
from tests.s3 import KEY, S3, SECRET, s3_server

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ONE = {"adapter_config.json": b"{}", "README.md": b"one", WEIGHTS: b"w" * 100}
TWO = {"adapter_config.json": b"{}", "notes.txt": b"", WEIGHTS: b"v" * 100}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "bucket") as server:
        yield server


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place in a store where nothing is."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    places = {"file": tmp_path / "store", "memory": "", "s3": "bucket"}
    return f"{request.param}://{places[request.param]}/{uuid4().hex}/law"


def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    made = tmp_path / uuid4().hex
    made.mkdir(parents=True)
    for name, data in files.items():
        (made / name).write_bytes(data)
    return made


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fetched(url: str, tmp_path: Path) -> dict[str, bytes]:
    target = tmp_path / uuid4().hex
    get_folder(url, target, tmp_path / "locks")
    return read(target)


def raw(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """A store by another way than the one under test."""
    files, path = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    return files, path


class Stop(BaseException):
    """Stands for whatever ends a process at that point."""


def after(count: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts once ``count`` files are there."""

    def listen(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == count:
            act()

    return listen


def stop() -> None:
    raise Stop


def test_what_was_put_is_what_is_got(url: str, tmp_path: Path) -> None:
    made = folder(tmp_path, ONE)
    assert stored(url) is None
    manifest = put_folder(made, url)
    assert manifest == stored(url) == storage.Manifest.of_folder(made)
    assert fetched(url, tmp_path) == ONE
    assert storage.read_file(url, "README.md") == b"one"
    files, path = raw(url)
    names = {name.rpartition("/")[2] for name in files.ls(path, detail=False)}
    assert names == {*ONE, MANIFEST}  # plain files, for every other tool
    assert manifest.content_hash == content_hash_of(*(sha256(ONE[n]) for n in (CONFIG, WEIGHTS)))


def test_the_same_again_uploads_nothing(url: str, tmp_path: Path) -> None:
    made = folder(tmp_path, ONE)
    put_folder(made, url)
    events: list[Event] = []
    assert put_folder(made, url + "/", listener=events.append) == stored(url)
    assert events == []


def test_other_content_is_a_conflict_until_it_is_replaced(url: str, tmp_path: Path) -> None:
    put_folder(folder(tmp_path, ONE), url)
    with pytest.raises(ConflictError, match="law: holds something else") as caught:
        put_folder(folder(tmp_path, TWO), url)
    assert "--force" in str(caught.value.hint)
    assert fetched(url, tmp_path) == ONE
    put_folder(folder(tmp_path, TWO), url, replace=True)
    assert fetched(url, tmp_path) == TWO
    files, path = raw(url)
    assert not files.exists(f"{path}/README.md")  # it was of the first only


def test_files_of_others_are_neither_taken_nor_touched(url: str, tmp_path: Path) -> None:
    """What nobody put there as a whole is no result, and is not written over unasked."""
    files, path = raw(url)
    files.makedirs(path, exist_ok=True)
    files.pipe_file(f"{path}/{WEIGHTS}", b"theirs")
    files.pipe_file(f"{path}/mine.txt", b"theirs")
    assert stored(url) is None
    with pytest.raises(ConflictError):
        put_folder(folder(tmp_path, ONE), url)
    assert files.cat_file(f"{path}/{WEIGHTS}") == b"theirs"
    put_folder(folder(tmp_path, ONE), url, replace=True)
    assert fetched(url, tmp_path) == ONE
    assert files.cat_file(f"{path}/mine.txt") == b"theirs"


@pytest.mark.parametrize("count", range(len(ONE) + 1))
def test_an_upload_that_does_not_end_is_never_seen(url: str, count: int, tmp_path: Path) -> None:
    made = folder(tmp_path, ONE)
    with pytest.raises(Stop):
        put_folder(made, url, listener=after(count, stop) if count else lambda _: stop())
    assert stored(url) is None
    with pytest.raises(NotFoundError, match="did not end"):
        fetched(url, tmp_path)
    other = folder(tmp_path, TWO)
    put_folder(other, url)  # whoever comes next needs no --force
    assert fetched(url, tmp_path) == TWO
    files, path = raw(url)
    assert not files.exists(f"{path}/{UPLOAD}")


def test_what_is_left_of_an_upload_can_be_removed(url: str, tmp_path: Path) -> None:
    put_folder(folder(tmp_path, ONE), url + "/whole")
    with pytest.raises(Stop):
        put_folder(folder(tmp_path, ONE), url + "/half", listener=after(2, stop))
    files, path = raw(url)
    files.pipe_file(f"{path}/half/mine.txt", b"theirs")
    assert storage.unfinished(url) == []  # it may still be under way
    begun = json.loads(files.cat_file(f"{path}/half/{UPLOAD}"))
    begun["begun"] = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    files.pipe_file(f"{path}/half/{UPLOAD}", json.dumps(begun).encode())
    (left,) = storage.unfinished(url)
    assert left.url == canonical(url + "/half")
    found = files.ls(f"{path}/half", detail=True)
    assert left.bytes == sum(f["size"] for f in found if not f["name"].endswith("mine.txt"))
    storage.remove_unfinished(left.url)
    names = [name.rpartition("/")[2] for name in files.ls(f"{path}/half", detail=False)]
    assert names == ["mine.txt"]
    storage.remove_unfinished(url + "/whole")
    assert fetched(url + "/whole", tmp_path) == ONE


@pytest.mark.parametrize("name", [WEIGHTS, "README.md"])
def test_a_file_that_is_cut_short_or_changed_is_not_taken(
    url: str, name: str, tmp_path: Path
) -> None:
    made = folder(tmp_path, ONE)
    put_folder(made, url)
    files, path = raw(url)
    files.pipe_file(f"{path}/{name}", ONE[name][:-1])
    assert stored(url) is None
    with pytest.raises(IntegrityError, match=f"law/{name}: has .* bytes, its manifest says"):
        fetched(url, tmp_path)
    files.pipe_file(f"{path}/{name}", ONE[name][:-1] + b"!")
    with pytest.raises(IntegrityError, match=f"law/{name}: has sha256"):
        fetched(url, tmp_path)
    with pytest.raises(IntegrityError, match="has sha256"):
        storage.read_file(url, name)
    files.rm_file(f"{path}/{name}")
    with pytest.raises(IntegrityError, match=f"law/{name}: is missing"):
        fetched(url, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    put_folder(made, url)  # the same content again mends it
    assert fetched(url, tmp_path) == ONE


def test_a_manifest_of_strangers_leads_nowhere_else(tmp_path: Path) -> None:
    put_folder(folder(tmp_path, ONE), "memory://hostile")
    files, path = raw("memory://hostile")
    body = json.loads(files.cat_file(f"{path}/{MANIFEST}"))
    for name in ("../evil", "/evil", "..", "a\\b", ""):
        hostile = body | {"files": {name: body["files"][WEIGHTS]}}
        files.pipe_file(f"{path}/{MANIFEST}", json.dumps(hostile).encode())
        with pytest.raises(IntegrityError, match="cannot be the name of a file"):
            fetched("memory://hostile", tmp_path)
    files.pipe_file(f"{path}/{MANIFEST}", json.dumps(body | {"version": 2}).encode())
    with pytest.raises(IntegrityError, match="version 2"):
        stored("memory://hostile")
    for text in (b"", b"{", b"[]", b"[" * 100_000, b'{"version": 1}'):
        files.pipe_file(f"{path}/{MANIFEST}", text)
        assert stored("memory://hostile") is None


contents = st.dictionaries(st.sampled_from("abc"), st.binary(max_size=3), min_size=1)
acts = st.lists(st.tuples(contents, st.booleans(), st.none() | st.integers(0, 3)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(acts=acts)
def test_a_reader_sees_one_whole_content_or_nothing(
    acts: list[tuple[dict[str, bytes], bool, int | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was put, replaced and interrupted before: never a mixture."""
    tmp_path = tmp_path_factory.mktemp("law")
    url = f"memory://{uuid4().hex}"
    there: dict[str, bytes] | None = None
    for files, replace, count in acts:
        refused = there not in (None, files) and not replace
        try:
            put_folder(
                folder(tmp_path, files),
                url,
                replace=replace,
                listener=(lambda _: None) if count is None else after(count, stop),
            )
            assert not refused
            there = files
        except ConflictError:
            assert refused
        except Stop:
            assert not refused
            there = None
        if there is None:
            assert stored(url) is None
        else:
            assert fetched(url, tmp_path) == there


def test_two_uploads_at_the_same_time(tmp_path: Path) -> None:
    """Of one content both succeed; of two, a mixture is found by whoever reads it."""
    one, two, url = folder(tmp_path, ONE), folder(tmp_path, TWO), f"file://{tmp_path}/both"
    put_folder(one, url, listener=after(2, lambda: put_folder(one, url)))
    assert fetched(url, tmp_path) == ONE
    url = f"file://{tmp_path}/mixed"
    with pytest.raises(StorageError, match="does not hold what was sent") as caught:
        put_folder(one, url, listener=after(1, lambda: put_folder(two, url)))
    assert "another process" in str(caught.value.hint)
    with pytest.raises(IntegrityError, match="has sha256"):
        fetched(url, tmp_path)
    put_folder(one, url, replace=True)
    assert fetched(url, tmp_path) == ONE


KILLED = """
import os, signal, sys
from pathlib import Path
from lorahub.events import Advanced
from lorahub.storage import put_folder

def kill(event):
    if isinstance(event, Advanced) and event.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

put_folder(Path(sys.argv[1]), sys.argv[2], listener=kill)
"""


def test_a_killed_process_leaves_nothing_that_is_seen(s3: S3, tmp_path: Path) -> None:
    made, url = folder(tmp_path, ONE), f"s3://bucket/{uuid4().hex}"
    done = subprocess.run([sys.executable, "-c", KILLED, str(made), url], check=False)
    assert done.returncode == -signal.SIGKILL
    keys = [f["Key"] for f in s3.client().list_objects_v2(Bucket="bucket")["Contents"]]
    assert len([k for k in keys if url.endswith(k.partition("/")[0])]) == 3  # two files, the note
    assert stored(url) is None
    put_folder(made, url)
    assert fetched(url, tmp_path) == ONE


def test_a_server_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    made, url = folder(tmp_path, ONE), f"s3://bucket/{uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "bucket") as server:
        with pytest.raises(NetworkError, match=f"{url}: the store does not answer") as caught:
            put_folder(made, url, listener=after(1, server.stop))
        assert caught.value.hint == "try again later"
        with pytest.raises(NetworkError):
            stored(url)
    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "bucket"):
        assert stored(url) is None
        put_folder(made, url)
        assert fetched(url, tmp_path) == ONE


def test_errors_say_what_where_and_what_to_do(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And show no key."""
    import s3fs

    made = folder(tmp_path, ONE)

    def refused(url: str, kind: type[LorahubError], *words: str) -> None:
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(kind) as caught:
            put_folder(made, url)
        told = f"{caught.value.message}\n{caught.value.hint}"
        assert all(word in told for word in words), told
        shown = told + caplog.text + "".join(traceback.format_exception(caught.value))
        assert SECRET not in shown

    refused("s3://nobody-has-this/x", NotFoundError, "s3://nobody-has-this/x", "check the bucket")
    refused("s3://No_Bucket!/x", StorageError, "s3://No_Bucket!/x", "check the URL")
    refused("gs://bucket/x", UsageError, "no driver for gs", "gcsfs")
    refused("zz://bucket/x", UsageError, "'zz'", "s3://BUCKET/FOLDER")
    for text in (f"s3://{KEY}:{SECRET}@bucket/x", f"s3://{KEY}:{SECRET}/+x@bucket/x"):
        refused(text, UsageError, "carries a password", "AWS_ACCESS_KEY_ID")
    refused("s3://bucket/x?sig=" + SECRET, UsageError, "no storage URL")
    refused("file:///proc/nothing/x", NotFoundError, "file:///proc/nothing/x")
    denied = {"Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "arn:aws:s3:::shut/*"}
    s3.client().create_bucket(Bucket="shut")
    s3.client().put_bucket_policy(Bucket="shut", Policy=json.dumps({"Statement": [denied]}))
    refused("s3://shut/x", AuthError, "s3://shut/x: the store refuses", "AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused("s3://bucket/x", AuthError, "credentials", "AWS_ACCESS_KEY_ID")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(UsageError, match="no driver for s3") as caught:
        stored("s3://bucket/x")
    assert caught.value.hint == "pip install 'lorahub-kit[s3]'"


def test_a_full_disk_is_told_apart_from_a_failing_store(s3: S3, tmp_path: Path) -> None:
    """The child may write no file of more than 2 kB; each side says whose disk it is."""
    made, url = folder(tmp_path, ONE | {WEIGHTS: b"w" * 4000}), f"s3://bucket/{uuid4().hex}"
    put_folder(made, url)
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from lorahub.storage import get_folder, put_folder;"
        "from lorahub.errors import StorageError;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "made, url, local, out = sys.argv[1:]\n"
        "for act in (lambda: get_folder(url, Path(out), Path(out + '-locks')),"
        " lambda: put_folder(Path(made), local)):\n"
        "  try: act()\n"
        "  except StorageError as error: print(error.message)"
    )
    local = f"file://{tmp_path}/local"
    told = subprocess.run(
        [sys.executable, "-c", code, str(made), url, local, str(tmp_path / "out")],
        check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    ).stdout.splitlines()  # fmt: skip
    assert told[0].endswith(f"{WEIGHTS}: cannot be read or written (File too large)")
    assert url not in told[0]
    assert told[1].startswith(f"{local}: cannot be read or written")
    assert not (tmp_path / "out").exists()
    assert stored(local) is None


def test_what_is_a_url_and_how_it_is_recorded(tmp_path: Path) -> None:
    here = Path("~").expanduser()
    for text, wanted in (
        ("s3://b/p/", "s3://b/p"),
        ("S3://b/p", "s3://b/p"),
        ("file:///a/b/", "file:///a/b"),
        ("file://~/b", f"file://{here}/b"),
        ("local:///a", "file:///a"),
        ("sftp://me@host:22/a", "sftp://me@host:22/a"),
    ):
        assert is_url(text)
        assert canonical(text) == wanted
        assert canonical(wanted) == wanted
    for text in (
        "hf://o/n",
        "https://h/o/n",
        "http://h/o/n",
        "./a",
        "C:\\a",
        "law",
        "a/b",
        "s3:/b",
    ):
        assert not is_url(text)
    for text in ("simplecache::s3://b/p", "s3://b?x", "https://h/o", "law"):
        with pytest.raises(UsageError, match="no storage URL"):
            canonical(text)
