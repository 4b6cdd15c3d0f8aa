"""How content leaves the hub: resolve, and the CDN that large files redirect to."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from .state import Blob, State
from .wire import HubError, Reply, Request, Router, content

router, cdn = Router(), Router()


@router.on("GET HEAD", "/{repo_id}/resolve/{rev}/{path*}")
def resolve(hub: State, request: Request, repo_id: str, rev: str, path: str) -> Reply:
    repo = hub.downloadable(repo_id, request.access)
    commit = repo.at(rev)
    headers = {"X-Repo-Commit": commit.oid}
    blob = commit.files.get(path)
    if blob is None:
        raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers=headers)
    headers["Content-Disposition"] = f'inline; filename="{quote(path.rpartition("/")[2])}"'
    if blob.lfs:
        headers |= {"X-Linked-Etag": blob.etag, "X-Linked-Size": str(blob.size)}
        if hub.redirect_lfs:
            return Reply(302, headers={**headers, "Location": _cdn_url(hub, repo.id, path, blob)})
    return content(request, blob.data, {**headers, "ETag": blob.etag})


def _cdn_url(hub: State, repo_id: str, path: str, blob: Blob) -> str:
    name = quote(path, safe="")
    where = f"{hub.cdn_endpoint}/repos/{repo_id}/{blob.sha256}"
    return f"{where}?filename={name}&signature={_signature(repo_id, blob.sha256)}"


def _signature(repo_id: str, sha256: str) -> str:
    return hashlib.sha256(f"cdn:{repo_id}:{sha256}".encode()).hexdigest()[:32]


@cdn.on("GET HEAD", "/repos/{repo_id}/{sha256}")
def cdn_object(hub: State, request: Request, repo_id: str, sha256: str) -> Reply:
    """The bytes of a large file, to whoever has the signed address and sends no token."""
    if request.value("signature") != _signature(repo_id, sha256):
        raise HubError(403, "The signature does not match")
    repo = hub.repos.get(repo_id)
    if repo is None or sha256 not in repo.lfs_objects:
        raise HubError(404, "No such object")
    return content(request, repo.lfs_objects[sha256], {"ETag": f'"{sha256}"'})
