"""How content gets onto the hub: preupload, LFS, commits and pull requests."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from . import views
from .state import Blob, Commit, Discussion, Repo, State, Upload, is_lfs
from .views import Json
from .wire import HubError, Reply, Request, Router

router, cdn = Router(), Router()

LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}


def _writable(hub: State, request: Request, repo_id: str, rev: str, *, by_pr: bool) -> Repo:
    """The repository, if this user may commit to a revision: their own pull request counts."""
    repo = hub.readable(repo_id, request.access)
    num = rev.removeprefix("refs/pr/")
    opened = repo.discussions.get(int(num)) if num != rev and num.isdigit() else None
    theirs = opened is not None and opened.author == hub.writer(request.access).user
    return hub.writable(repo_id, request.access, by_pr=by_pr or theirs)


@router.on("POST", "/api/models/{repo_id}/preupload/{rev}")
def preupload(hub: State, request: Request, repo_id: str, rev: str) -> Reply:
    """Say of each file how it is to be uploaded, whether at all, and what is there now."""
    repo = _writable(hub, request, repo_id, rev, by_pr=request.flag("create_pr"))
    commit, body = repo.at(rev), request.json()
    files = body.get("files", [])
    if len(files) > 256:
        raise HubError(400, "at most 256 files per call")
    ignored = body.get("gitIgnore")
    if ignored is None and ".gitignore" in commit.files:
        ignored = commit.files[".gitignore"].data.decode()
    patterns = [line.strip() for line in (ignored or "").splitlines()]
    patterns = [pattern for pattern in patterns if pattern and not pattern.startswith("#")]

    def answer(path: str, size: int) -> Json:
        lfs, now = is_lfs(path, size), commit.files.get(path)
        entry: Json = {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": any(_ignores(pattern, path) for pattern in patterns),
        }
        if now is not None:
            entry["oid"] = now.sha256 if now.lfs else now.oid
        return entry

    return Reply.json({"files": [answer(file["path"], file["size"]) for file in files]})


def _ignores(pattern: str, path: str) -> bool:
    """The common part of .gitignore: a glob over the path, a name, or a folder above."""
    steps = [path, *map(str, PurePosixPath(path).parents)]
    bare = pattern.strip("/")
    return any(fnmatch(step, bare) or fnmatch(PurePosixPath(step).name, bare) for step in steps)


@router.on("POST", "/{repo_id}.git/info/lfs/objects/batch")
def lfs_batch(hub: State, request: Request, repo_id: str) -> Reply:
    # Anyone who can read may open a pull request, whose large files come through here.
    repo = hub.writable(repo_id, request.access, by_pr=True)
    body = request.json()
    multipart = "multipart" in body.get("transfers", []) and hub.multipart_chunk is not None

    def instructions(oid: str, size: int) -> Json:
        entry: Json = {"oid": oid, "size": size}
        if oid in repo.lfs_objects:
            return entry
        key = f"{len(hub.uploads) + 1}"
        hub.uploads[key] = Upload(repo.id, oid)
        upload: Json = {"href": f"{hub.cdn_endpoint}/uploads/{key}"}
        chunk = hub.multipart_chunk
        if multipart and chunk is not None and size > chunk:
            parts = range(1, -(-size // chunk) + 1)
            urls = {f"{part:05d}": f"{hub.cdn_endpoint}/uploads/{key}/{part}" for part in parts}
            complete = f"{hub.endpoint}/api/complete_multipart?upload={key}"
            upload = {"href": complete, "header": {"chunk_size": str(chunk), **urls}}
        verify = {"href": f"{hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"}
        return {**entry, "actions": {"upload": upload, "verify": verify}}

    objects = [instructions(item["oid"], item["size"]) for item in body.get("objects", [])]
    answer = {"transfer": "multipart" if multipart else "basic", "objects": objects}
    return Reply(200, json.dumps(answer).encode(), LFS_JSON)


def _upload(hub: State, key: str | None) -> Upload:
    if key is None or key not in hub.uploads:
        raise HubError(403, f"No upload is expected at {key}")
    return hub.uploads[key]


@cdn.on("PUT", "/uploads/{key}")
def put_object(hub: State, request: Request, key: str) -> Reply:
    _upload(hub, key).data = request.body
    return Reply()


@cdn.on("PUT", "/uploads/{key}/{part}")
def put_part(hub: State, request: Request, key: str, part: str) -> Reply:
    _upload(hub, key).parts[int(part)] = request.body
    return Reply(headers={"ETag": f'"{_md5(request.body)}"'})


@router.on("POST", "/api/complete_multipart")
def complete_multipart(hub: State, request: Request) -> Reply:
    """Join the parts; no token is needed, the upload key is the secret."""
    upload, body = _upload(hub, request.value("upload")), request.json()
    told = {item["partNumber"]: item["etag"].strip('"') for item in body.get("parts", [])}
    have = {number: _md5(data) for number, data in upload.parts.items()}
    if body.get("oid") != upload.sha256 or told != have:
        raise HubError(400, "The parts are not those that were uploaded")
    upload.data = b"".join(upload.parts[number] for number in sorted(upload.parts))
    return Reply.json({})


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@router.on("POST", "/{repo_id}.git/info/lfs/objects/verify")
def lfs_verify(hub: State, request: Request, repo_id: str) -> Reply:
    """Accept an upload into the repository, if it is what was announced."""
    repo = hub.writable(repo_id, request.access, by_pr=True)
    body = request.json()
    for upload in hub.uploads.values():
        data = upload.data
        if data is not None and upload.repo_id == repo.id and upload.sha256 == body.get("oid"):
            if len(data) != body["size"] or hashlib.sha256(data).hexdigest() != body["oid"]:
                raise HubError(400, f"The bytes uploaded for {upload.sha256} are others")
            repo.lfs_objects[upload.sha256] = data
            return Reply.json({})
    raise HubError(404, f"Nothing was uploaded for {body.get('oid')}")


@router.on("POST", "/api/models/{repo_id}/commit/{rev}")
def commit(hub: State, request: Request, repo_id: str, rev: str) -> Reply:
    by_pr = request.flag("create_pr") and not hub.ignore_create_pr
    repo = _writable(hub, request, repo_id, rev, by_pr=by_pr)
    author = hub.writer(request.access).user
    base, ref = repo.at(rev), repo.ref(rev)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(400, f"{rev} is not a branch")
    header, files = _apply(repo, base, request.body)
    if header.get("parentCommit") not in {None, base.oid}:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    title, message = str(header.get("summary") or "Update"), str(header.get("description") or "")
    answer: Json = {}
    if by_pr:
        ref, num = _open_pr(hub, repo, title, message, author, rev)
        answer["pullRequestUrl"] = f"{hub.endpoint}/{repo.id}/discussions/{num}"
    elif request.flag("create_pr") and not hub.omit_pr_url:
        answer["pullRequestUrl"] = None
    new = repo.append(ref, files, title, message, author, hub.now())
    url = f"{hub.endpoint}/{repo.id}/commit/{new.oid}"
    return Reply.json({"success": True, "commitOid": new.oid, "commitUrl": url, **answer})


def _apply(repo: Repo, base: Commit, body: bytes) -> tuple[Json, dict[str, Blob]]:
    """The header of a commit's newline-delimited JSON, and the files that it leads to."""
    header: Json = {}
    files = dict(base.files)
    try:
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "header":
                header = item["value"]
            else:
                _operate(repo, files, item["key"], item["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise HubError(400, f"Malformed commit: {error!r}") from error
    return header, files


def _operate(repo: Repo, files: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
    path = str(value["path"])
    if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.rstrip("/").split("/")):
        raise HubError(400, f"Invalid path: {path}")
    if key == "file":
        if value["encoding"] != "base64":
            raise HubError(400, f"Unknown encoding of {path}")
        try:
            files[path] = Blob(base64.b64decode(value["content"], validate=True), lfs=False)
        except binascii.Error as error:
            raise HubError(400, f"The content of {path} is not base64") from error
    elif key == "lfsFile":
        if value["oid"] not in repo.lfs_objects:
            raise HubError(400, f"The LFS object of {path} was not uploaded")
        files[path] = Blob(repo.lfs_objects[value["oid"]], lfs=True)
    elif key in {"deletedFile", "deletedFolder"}:
        folder = path.rstrip("/") + "/"
        gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(folder))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")


def _open_pr(
    hub: State, repo: Repo, title: str, description: str, author: str, base: str
) -> tuple[str, int]:
    num = len(repo.discussions) + 1
    repo.discussions[num] = Discussion(
        num, title, description, author, hub.now(), is_pull_request=True, base=base
    )
    repo.refs[f"refs/pr/{num}"] = repo.at(base).oid
    return f"refs/pr/{num}", num


@router.on("POST", "/api/models/{repo_id}/discussions")
def open_discussion(hub: State, request: Request, repo_id: str) -> Reply:
    repo, body = hub.readable(repo_id, request.access), request.json()
    author, title = hub.writer(request.access).user, str(body.get("title"))
    description = str(body.get("description") or "")
    if body.get("pullRequest"):
        _, num = _open_pr(hub, repo, title, description, author, "main")
        repo.discussions[num].status = "draft"
    else:
        num = len(repo.discussions) + 1
        repo.discussions[num] = Discussion(
            num, title, description, author, hub.now(), is_pull_request=False, base="main"
        )
    return Reply.json({"num": num, "url": f"{hub.endpoint}/{repo.id}/discussions/{num}"})


@router.on("GET", "/api/models/{repo_id}/discussions")
def discussions(hub: State, request: Request, repo_id: str) -> Reply:
    repo = hub.readable(repo_id, request.access)
    found = [views.discussion(repo, item) for item in repo.discussions.values()]
    return Reply.json({"discussions": found, "count": len(found), "start": 0})


def _discussion(repo: Repo, num: str) -> Discussion:
    if not num.isdigit() or int(num) not in repo.discussions:
        raise HubError(404, f"Discussion {num} not found")
    return repo.discussions[int(num)]


@router.on("GET", "/api/models/{repo_id}/discussions/{num}")
def discussion(hub: State, request: Request, repo_id: str, num: str) -> Reply:
    repo = hub.readable(repo_id, request.access)
    return Reply.json(views.discussion(repo, _discussion(repo, num)))


@router.on("POST", "/api/models/{repo_id}/discussions/{num}/merge")
def merge_pull_request(hub: State, request: Request, repo_id: str, num: str) -> Reply:
    """Put what the pull request changed since it left its branch on top of that branch."""
    repo = hub.writable(repo_id, request.access)
    item = _discussion(repo, num)
    if not item.is_pull_request or item.status in {"merged", "closed"}:
        raise HubError(400, f"Discussion {num} can't be merged")
    head, base = repo.at(f"refs/pr/{num}"), repo.at(item.base)
    below = {older.oid for older in repo.history(base)}
    fork = next(older for older in repo.history(head) if older.oid in below)
    changed = {p for p in {*head.files, *fork.files} if head.files.get(p) != fork.files.get(p)}
    files = {path: blob for path, blob in base.files.items() if path not in changed}
    files |= {path: blob for path, blob in head.files.items() if path in changed}
    author = hub.writer(request.access).user
    ref = repo.ref(item.base) or "refs/heads/main"
    merged = repo.append(ref, files, f"{item.title} (#{num})", "", author, hub.now())
    item.status, item.merge_commit = "merged", merged.oid
    return Reply.json({})


@router.on("POST", "/api/models/{repo_id}/discussions/{num}/status")
def change_status(hub: State, request: Request, repo_id: str, num: str) -> Reply:
    repo = hub.writable(repo_id, request.access)
    item, status = _discussion(repo, num), request.json().get("status")
    if status not in {"open", "closed"}:
        raise HubError(400, f'"status" must be "open" or "closed", not {status!r}')
    item.status = status
    event = {
        "id": f"{item.num:024x}",
        "type": "status-change",
        "createdAt": views.date(hub.now()),
        "author": {"name": hub.writer(request.access).user},
        "data": {"status": status},
    }
    return Reply.json({"newStatus": event})
