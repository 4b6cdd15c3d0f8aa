"""What the hub knows: users, repositories with their history, and who may do what."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Literal

from .wire import HubError

LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".zip"})
LFS_SIZE = 10 * 1024 * 1024
GITATTRIBUTES = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in sorted(LFS_SUFFIXES))

Role = Literal["read", "write"]
Gating = Literal[False, "auto", "manual"]
Content = bytes | str | Path


def is_lfs(path: str, size: int) -> bool:
    """Whether a file goes to large file storage; an empty one never does."""
    return size > 0 and (PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_SIZE)


def git_oid(data: bytes) -> str:
    """The git blob id (sha1) of some bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Access:
    """A user behind one token."""

    user: str
    role: Role
    orgs: tuple[str, ...] = ()

    def owns(self, repo: Repo) -> bool:
        return repo.author in {self.user, *self.orgs}


@dataclass(frozen=True)
class Blob:
    """The content of a file, in git itself or in large file storage."""

    data: bytes
    lfs: bool

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git holds in the place of a large file."""
        head = b"version https://git-lfs.github.com/spec/v1\n"
        return head + f"oid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        return git_oid(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return f'"{self.sha256 if self.lfs else self.oid}"'


@dataclass(frozen=True)
class Commit:
    """One immutable state of a repository."""

    oid: str  # 40 lower-case hexadecimal digits
    parent: str | None
    files: Mapping[str, Blob]
    title: str
    message: str
    author: str
    date: datetime


@dataclass
class Discussion:
    """A discussion or a pull request; the commits of the latter are at refs/pr/{num}."""

    num: int
    title: str
    description: str
    author: str
    created: datetime
    is_pull_request: bool
    base: str  # the revision that a pull request is to be merged into
    status: Literal["draft", "open", "closed", "merged"] = "open"
    merge_commit: str | None = None


@dataclass
class Repo:
    """A model repository; tests may set its fields at any time."""

    id: str
    created: datetime
    private: bool = False
    gated: Gating = False
    allowed: set[str] = field(default_factory=set)  # users let through the gate
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # full name -> commit
    discussions: dict[int, Discussion] = field(default_factory=dict)
    lfs_objects: dict[str, bytes] = field(default_factory=dict)  # sha256 -> bytes

    @property
    def author(self) -> str:
        return self.id.partition("/")[0]

    @property
    def sha(self) -> str:
        """The commit of the main branch."""
        return self.refs["refs/heads/main"]

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        """The commit that a ref, a sha or its first seven or more digits names."""
        ref = self.ref(revision)
        found = [self.refs[ref]] if ref else [o for o in self.commits if o.startswith(revision)]
        if len(found) != 1 or (ref is None and len(revision) < 7):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """A commit and its ancestors, newest first."""
        yield commit
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            yield commit

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit, at or before the one given, that last changed a file."""
        blob, found = commit.files.get(path), commit
        for older in self.history(commit):
            if older.files.get(path) != blob:
                break
            found = older
        return found

    def append(
        self, ref: str, files: Mapping[str, Blob], title: str, message: str, who: str, now: datetime
    ) -> Commit:
        """Add a commit with exactly these files on top of a ref, or as its first."""
        parent = self.refs.get(ref)
        content = [parent, sorted((p, b.oid) for p, b in files.items()), title, message, who, now]
        text = json.dumps(content, default=str).encode()
        oid = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        commit = Commit(oid, parent, dict(files), title, message, who, now)
        self.commits[oid] = commit
        self.refs[ref] = oid
        self.lfs_objects |= {b.sha256: b.data for b in files.values() if b.lfs}
        return commit


@dataclass
class Upload:
    """A large file on its way: whole bytes, or parts that a completion call joins."""

    repo_id: str
    sha256: str
    data: bytes | None = None
    parts: dict[int, bytes] = field(default_factory=dict)


class State:
    """Users and repositories, by the names that the wire uses, and the hub's bad habits.

    `add_...`, `commit`, `files` and `repo` are for tests, which act as an administrator: nothing
    is checked, so that hostile content (`{"../evil": b""}`) can be put anywhere. The endpoints
    take their repositories from `readable`, `downloadable` and `writable`, which check.
    Time is counted, not measured: every run gives the same commits.
    """

    lie_about_privacy = False  # say yes to private=True and make the repository public
    ignore_create_pr = False  # commit to the branch itself, with a null pullRequestUrl
    omit_pr_url = False  # leave pullRequestUrl out of the answer
    redirect_lfs = True  # resolve large files by a redirect to the CDN
    multipart_chunk: int | None = None  # larger uploads come in parts of so many bytes
    page_size = 1000  # entries per page of every listing
    endpoint = cdn_endpoint = ""  # where the ports are, without a slash at the end

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}  # old id -> new id
        self.tokens: dict[str, Access] = {}
        self.uploads: dict[str, Upload] = {}
        self._ticks = count()

    def now(self) -> datetime:
        """The next second of the hub's own calendar."""
        return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self._ticks))

    def add_user(
        self, name: str, token: str | None = None, *, role: Role = "write", orgs: Iterable[str] = ()
    ) -> str:
        """Make a user known by a token (default `hf_{name}`), which is returned.

        A second call with another token gives the same user a second one.
        """
        token = token or f"hf_{name}"
        with self.lock:
            self.tokens[token] = Access(name, role, tuple(orgs))
        return token

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, Content] | None = None,
        *,
        folder: Path | None = None,
        private: bool = False,
        gated: Gating = False,
        allowed: Iterable[str] = (),
    ) -> Repo:
        """Make a repository whose first commit holds the files given, or those of a folder.

        With neither it holds a .gitattributes, as one made through the API does.
        """
        given = {path: to_bytes(content) for path, content in (files or {}).items()}
        if folder is not None:
            found = sorted(path for path in folder.rglob("*") if path.is_file())
            given |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        if files is None and folder is None:
            given = {".gitattributes": GITATTRIBUTES.encode()}
        blobs = {path: Blob(data, is_lfs(path, len(data))) for path, data in given.items()}
        with self.lock:
            repo = Repo(repo_id, self.now(), private, gated, set(allowed))
            repo.append("refs/heads/main", blobs, "initial commit", "", repo.author, repo.created)
            self.repos[repo_id] = repo
            self.moved.pop(repo_id, None)
        return repo

    def repo(self, repo_id: str) -> Repo:
        """A repository to look at or to change; KeyError if there is none."""
        return self.repos[repo_id]

    def commit(
        self,
        repo_id: str,
        changes: Mapping[str, Content | None],
        *,
        branch: str = "main",
        message: str = "Update",
    ) -> str:
        """Commit new contents (None deletes the file) and return the commit's sha."""
        with self.lock:
            repo = self.repos[repo_id]
            ref = repo.ref(branch) or f"refs/heads/{branch}"
            files = dict(repo.at(repo.refs.get(ref, repo.sha)).files)
            for path, content in changes.items():
                if content is None:
                    del files[path]
                else:
                    data = to_bytes(content)
                    files[path] = Blob(data, is_lfs(path, len(data)))
            return repo.append(ref, files, message, "", repo.author, self.now()).oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The contents at a revision, by path."""
        with self.lock:
            return {path: b.data for path, b in self.repos[repo_id].at(revision).files.items()}

    def visible(self, repo: Repo, access: Access | None) -> bool:
        return not repo.private or (access is not None and access.owns(repo))

    def readable(self, repo_id: str, access: Access | None) -> Repo:
        """A repository that this user may know of; gating does not hide it."""
        repo = self.repos.get(repo_id)
        if repo is None or not self.visible(repo, access):
            # To a stranger a private repository looks as if it did not exist.
            status = 401 if access is None else 404
            raise HubError(status, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise HubError(403, "Access to this resource is disabled.")
        return repo

    def downloadable(self, repo_id: str, access: Access | None) -> Repo:
        """A repository whose files this user may read."""
        repo = self.readable(repo_id, access)
        if not repo.gated or (access and (access.owns(repo) or access.user in repo.allowed)):
            return repo
        if access is None:
            message = f"Access to model {repo_id} is restricted. You must be authenticated."
            raise HubError(401, message, "GatedRepo")
        message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
        raise HubError(403, message, "GatedRepo")

    def writable(self, repo_id: str, access: Access | None, *, by_pr: bool = False) -> Repo:
        """A repository that this user may change; anyone who can read may open a PR."""
        repo = self.readable(repo_id, access)
        writer = self.writer(access)
        if not (by_pr or writer.owns(repo)):
            message = "Forbidden: you must be the owner or a member with write access"
            raise HubError(403, message)
        return repo

    def writer(self, access: Access | None) -> Access:
        """The user, whose token allows writing at all."""
        if access is None:
            raise HubError(401, "Invalid username or password.")
        if access.role != "write":
            raise HubError(403, "Forbidden: this token has no write permission")
        return access


def to_bytes(content: Content) -> bytes:
    if isinstance(content, Path):
        return content.read_bytes()
    return content.encode() if isinstance(content, str) else content
