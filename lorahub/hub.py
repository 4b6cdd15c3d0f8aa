"""The Hub: resolve once, pin by commit, verify bytes, publish in one commit.

Everything goes through huggingface_hub, whose cache owns the bytes. What it leaves open is
closed here: content is checked against the recorded hashes, file names are checked before they
become paths, privacy is read back before weights go up, and errors become lorahub's.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lorahub.errors import (
    AuthError,
    ConflictError,
    IntegrityError,
    InvalidAdapterError,
    LorahubError,
    NetworkError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lorahub.events import Advanced, Listener, PhaseStarted, ignore

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "lorahub.json",
    "recipe.yaml",
    "README.md",
    "LICENSE*",
)
TIMEOUT_SECONDS = 15.0
_READ_TRIES = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; exactly one of the hashes is known for every real Hub."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit (40 hex)."""

    repo_id: str
    revision: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class Pushed:
    """Outcome of a publication: what went up, and where it is.

    ``changed`` is False when the repository already held the same files; ``revision`` is the
    commit, None for a dry run.
    """

    repo_id: str
    url: str
    revision: str | None
    pr_url: str | None
    changed: bool
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hub-compatible endpoint; None for endpoint or token leaves the choice to the client."""

    endpoint: str | None = None
    token: str | None = None

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token, library_name="lorahub")

    def resolve(self, repo_id: str, revision: str | None = None) -> Snapshot:
        """Pin a repository to a commit and list its files.

        A full commit that is wholly in the local cache needs no network.

        Raises:
            NotFoundError: No such repository or revision, or a private one.
            AuthError: The repository is gated, or the token is refused.
            NetworkError: The Hub does not answer.
            InvalidAdapterError: A file name would leave its folder.
        """
        api = self._api()

        def ask() -> Any:  # noqa: ANN401 - huggingface_hub's ModelInfo
            return api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
            )

        with self._translated(f"{repo_id}{f'@{revision}' if revision else ''}"):
            info = _with_retries(ask)
        files = tuple(
            RemoteFile(
                safe_name(s.rfilename, repo_id),
                s.size or 0,
                s.lfs.sha256 if s.lfs else None,
                None if s.lfs else s.blob_id,
            )
            for s in info.siblings or ()
        )
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise NetworkError(f"{repo_id}: the Hub names no commit to pin")
        return Snapshot(repo_id, info.sha, files)

    def fetch(
        self,
        snapshot: Snapshot,
        *,
        all_files: bool = False,
        allow_pickle: bool = False,
        listener: Listener = ignore,
    ) -> Path:
        """Bring a snapshot's adapter files into the Hub's cache and check every byte.

        A file whose content is wrong is fetched once more; finished files are kept.

        Returns:
            The snapshot's folder in the cache.

        Raises:
            IntegrityError: A file is not what the Hub says it is, twice.
            LorahubError: As `resolve`.
        """
        from huggingface_hub import constants

        wanted = _wanted(snapshot, all_files=all_files, allow_pickle=allow_pickle)
        listener(PhaseStarted(f"pull {snapshot.repo_id}", len(wanted), "files"))
        folder: Path | None = None
        for done, file in enumerate(wanted, 1):
            path = self._fetch_one(snapshot, file)
            folder = path.parents[file.name.count("/")]
            listener(Advanced(f"pull {snapshot.repo_id}", done, file.name))
        if folder is None:
            raise InvalidAdapterError(
                f"{snapshot.repo_id}: has no adapter files "
                f"({', '.join(f.name for f in snapshot.files[:5]) or 'it is empty'})",
                hint="pull a repository that holds adapter_config.json; a .bin adapter needs "
                "--allow-pickle",
            )
        if not folder.is_relative_to(Path(constants.HF_HUB_CACHE)):
            raise InvalidAdapterError(f"{snapshot.repo_id}: a file would leave the cache")
        return folder

    def _fetch_one(self, snapshot: Snapshot, file: RemoteFile) -> Path:
        for force in (False, True):
            path = self._download(snapshot, file, force=force)
            if _matches(path, file):
                return path
        # What is known to be wrong must not be found in the cache by anybody.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise IntegrityError(
            f"{snapshot.repo_id}: '{file.name}' arrived twice with a content that is not the "
            "one its hash names",
            hint="try again later; the connection or the Hub's storage alters files",
        )

    def _download(self, snapshot: Snapshot, file: RemoteFile, *, force: bool) -> Path:
        from huggingface_hub import (
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )

        repo_id, name, revision = snapshot.repo_id, file.name, snapshot.revision

        def ask() -> str:
            if force or not isinstance(
                try_to_load_from_cache(repo_id, name, revision=revision), str
            ):
                # The download would ask a Hub that is down again and again for 24 seconds.
                get_hf_file_metadata(
                    hf_hub_url(repo_id, name, revision=revision, endpoint=self.endpoint),
                    token=self.token,
                    timeout=TIMEOUT_SECONDS,
                    endpoint=self.endpoint,
                )
            return str(
                hf_hub_download(
                    repo_id,
                    name,
                    revision=revision,
                    endpoint=self.endpoint,
                    token=self.token,
                    force_download=force,
                    etag_timeout=TIMEOUT_SECONDS,
                )
            )

        with self._translated(f"{repo_id}/{name}"):
            return Path(_with_retries(ask))

    def push(
        self,
        files: Sequence[Path],
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        message: str = "Upload adapter",
        dry_run: bool = False,
    ) -> Pushed:
        """Publish files at the root of a model repository, in one commit.

        Args:
            files: Local files; their names become the repository's.
            repo_id: ``owner/name``; it is created where it does not exist.
            private: Ask for a private repository, and make sure that it is one.
            create_pr: Open a pull request instead of committing to main; one of ours that is
                open and holds these files is not opened again.
            message: Commit message.
            dry_run: Only look and say what would go up.

        Raises:
            AuthError: No token, or one that may not write there.
            ConflictError: The repository is public where a private one was asked for, moved
                while we pushed, or took a pull request as a commit.
            NetworkError: The Hub does not answer.
            UsageError: A malformed repository id.
        """
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
            raise UsageError(f"'{repo_id}' is not a repository id", hint="give it as owner/name")
        api = self._api()
        sizes = sum(f.stat().st_size for f in files)
        names = tuple(f.name for f in files)
        with self._translated(repo_id):
            user = str(api.whoami()["name"])
        head = self._head(repo_id)
        if private and head is not None:
            self._require_private(api, repo_id)
        changed = head is None or any(not _already(head, f) for f in files)
        url = f"{api.endpoint}/{repo_id}"
        if dry_run or (head is not None and not changed):
            revision = head.revision if head is not None else None
            return Pushed(repo_id, url, revision, None, changed, names, sizes)
        if head is None:
            with self._translated(repo_id):
                api.create_repo(repo_id, private=private, exist_ok=True)
            head = self.resolve(repo_id)
            if private:
                self._require_private(api, repo_id)
        if create_pr and (opened := self._pull_request(api, head, files, user)):
            pr_url, revision = opened
            return Pushed(repo_id, url, revision, pr_url, False, names, sizes)
        return self._commit(api, files, head, url, message, user if create_pr else None)

    def _head(self, repo_id: str) -> Snapshot | None:
        try:
            return self.resolve(repo_id)
        except NotFoundError:
            return None

    def _require_private(self, api: HfApi, repo_id: str) -> None:
        with self._translated(repo_id):
            info = api.model_info(repo_id, timeout=TIMEOUT_SECONDS)
        if info.private is not True:
            raise ConflictError(
                f"{repo_id} is public although a private repository was asked for; nothing was "
                "uploaded",
                hint="make it private in its settings on the Hub, or push without --private",
            )

    def _commit(
        self,
        api: HfApi,
        files: Sequence[Path],
        head: Snapshot,
        url: str,
        message: str,
        pr_author: str | None,
    ) -> Pushed:
        """Commit to main, or open a pull request as ``pr_author``; a lost answer is looked up."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(f.name, f) for f in files]
        names = tuple(f.name for f in files)
        sizes = sum(f.stat().st_size for f in files)
        try:
            with self._translated(head.repo_id):
                # The parent makes a repeated commit fail instead of landing twice.
                commit = api.create_commit(
                    head.repo_id,
                    operations,
                    commit_message=message,
                    create_pr=pr_author is not None,
                    parent_commit=head.revision,
                )
        except KeyError:
            if pr_author is None:
                raise
            raise _no_pull_request(head.repo_id, "an unnamed commit") from None
        except (NetworkError, ConflictError) as error:
            landed = self._landed(api, head, files, pr_author, error)
            if landed is None:
                raise
            pr_url, revision = landed
            return Pushed(head.repo_id, url, revision, pr_url, True, names, sizes)
        if pr_author is not None and not commit.pr_url:
            raise _no_pull_request(head.repo_id, commit.oid)
        return Pushed(head.repo_id, url, commit.oid, commit.pr_url, True, names, sizes)

    def _landed(
        self,
        api: HfApi,
        head: Snapshot,
        files: Sequence[Path],
        pr_author: str | None,
        error: LorahubError,
    ) -> tuple[str | None, str] | None:
        """Pull request and commit that went through although their answer was lost."""
        try:
            if pr_author is not None:
                return self._pull_request(api, head, files, pr_author)
            now = self._head(head.repo_id)
        except LorahubError:
            what = "commit" if pr_author is None else "pull request"
            raise NetworkError(
                f"{error.message}; whether the {what} went through is not known",
                hint="push again later: what went through is found, and not repeated",
            ) from error
        if now is None or not all(_already(now, f) for f in files):
            return None
        return None, now.revision

    def _pull_request(
        self, api: HfApi, head: Snapshot, files: Sequence[Path], author: str
    ) -> tuple[str, str] | None:
        """URL and commit of the author's newest open pull request that holds these files."""
        with self._translated(head.repo_id):
            found = _with_retries(
                lambda: list(
                    api.get_repo_discussions(
                        head.repo_id, author=author, discussion_type="pull_request"
                    )
                )
            )
        mine = [d for d in found if d.is_pull_request and d.author == author]
        for request in sorted(mine, key=lambda d: d.num, reverse=True):
            if request.status in {"open", "draft"}:
                proposed = self.resolve(head.repo_id, request.git_reference)
                if all(_already(proposed, f) for f in files):
                    return request.url, proposed.revision
        return None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except LorahubError:
            raise
        except Exception as error:
            translated = _translate(error, what)
            if translated is None:
                raise
            raise translated from _ClientError(type(error).__name__)


class _ClientError(Exception):
    """Stands in for a client error as a cause: its own text could hold headers or tokens."""


def safe_name(name: str, repo_id: str) -> str:
    """A repository's file name that stays inside its folder on every system.

    Raises:
        InvalidAdapterError: It would not.
    """
    parts = name.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or "\\" in name
        or ":" in parts[0]
        or any(unicodedata.category(c) == "Cc" for c in name)
    ):
        raise InvalidAdapterError(
            f"{repo_id}: file name {name!r} would leave its folder; nothing was fetched",
            hint="do not use this repository",
        )
    return name


def _wanted(snapshot: Snapshot, *, all_files: bool, allow_pickle: bool) -> list[RemoteFile]:
    names = {f.name for f in snapshot.files}
    patterns = list(ADAPTER_FILES)
    if "adapter_model.safetensors" not in names:
        patterns += ["*.safetensors"]
        if allow_pickle:
            patterns += ["adapter_model.bin"]
    chosen = [
        f
        for f in snapshot.files
        if all_files
        or ("/" not in f.name and any(fnmatch.fnmatchcase(f.name, p) for p in patterns))
    ]
    card_only = {"README.md", "LICENSE"}
    return chosen if any(f.name not in card_only for f in chosen) else []


def _no_pull_request(repo_id: str, commit: str) -> ConflictError:
    return ConflictError(
        f"{repo_id}: the Hub ignored the pull request and committed to main ({commit})",
        hint="revert that commit there if it was not wanted",
    )


def _matches(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        if file.sha256 is not None:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
        if file.git_sha1 is not None:
            return _git_sha1(stream.read()) == file.git_sha1
    return True


def _git_sha1(content: bytes) -> str:
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _already(head: Snapshot, path: Path) -> bool:
    remote = next((f for f in head.files if f.name == path.name), None)
    return remote is not None and _matches(path, remote)


def _with_retries(ask: Callable[[], T]) -> T:
    """Repeat a read that failed for a passing reason, waiting as the Hub asks, at most 20 s."""
    import time

    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(_READ_TRIES):
        try:
            return ask()
        except (httpx2.RemoteProtocolError, httpx2.ReadError):
            if attempt == _READ_TRIES - 1:
                raise
            time.sleep(0.2 * 2**attempt)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in {429, 500, 502, 503, 504} or attempt == _READ_TRIES - 1:
                raise
            after = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(after), 20) if after.isdigit() else 0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _translate(error: Exception, what: str) -> LorahubError | None:
    """Lorahub's error for one of the client's, or None for what is not the client's."""
    import httpx2
    from huggingface_hub import errors as hf

    login = "log in with `hf auth login`, set HF_TOKEN, or pass --token-env NAME"
    if isinstance(error, hf.LocalTokenNotFoundError):
        return AuthError("there is no Hub token", hint=login)
    if isinstance(error, hf.HFValidationError):
        return UsageError(f"'{what}' is not a valid repository id", hint="give it as owner/name")
    if isinstance(error, hf.GatedRepoError):
        return AuthError(
            f"{what} is gated", hint=f"ask for access on its page on the Hub, then {login}"
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return NotFoundError(
            f"{what}: there is no such revision", hint="it may be gone; see its page"
        )
    if isinstance(error, hf.RemoteEntryNotFoundError):
        return NotFoundError(f"{what}: there is no such file")
    if isinstance(error, hf.RepositoryNotFoundError):
        return NotFoundError(
            f"{what} does not exist, or is private and this token may not see it",
            hint=f"check the spelling; for a private one {login}",
        )
    cause = error.__cause__
    wraps = isinstance(error, hf.LocalEntryNotFoundError | RuntimeError)
    if wraps and isinstance(cause, hf.HfHubHTTPError):
        return _translate(cause, what)  # the client hides a refused file or upload behind these
    if isinstance(error, hf.LocalEntryNotFoundError | RuntimeError | hf.OfflineModeIsEnabled):
        return _unreachable(what)
    if isinstance(error, hf.HfHubHTTPError):
        # Before its base class, which is httpx2's.
        return _translate_status(error, what, login)
    if isinstance(error, httpx2.HTTPError):
        return _unreachable(what)
    return _translate_plain(error, what)


def _unreachable(what: str) -> NetworkError:
    return NetworkError(
        f"{what}: the Hub cannot be reached", hint="check the connection and try again"
    )


def _translate_plain(error: Exception, what: str) -> LorahubError | None:
    """For what the client lets through of Python's own errors."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, json.JSONDecodeError):
        return NetworkError(
            f"{what}: the answer is not one of a Hub",
            hint="check the endpoint, and that no login page stands in between",
        )
    if isinstance(error, ValueError) and isinstance(error.__cause__, HfHubHTTPError):
        return InvalidAdapterError(
            f"{what}: the Hub does not accept the metadata of README.md",
            hint="correct the block between the --- lines at its top",
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return NetworkError(f"{what}: the connection failed", hint="try again")
    if isinstance(error, OSError) and error.errno is None:
        return NetworkError(f"{what}: the file arrived incomplete", hint="try again")
    if isinstance(error, OSError):
        return StorageError(
            f"{what}: the Hub's cache cannot be written ({error.strerror})",
            hint="free some space, or set HF_HOME to a folder you may write to",
        )
    return None


def _translate_status(error: Any, what: str, login: str) -> LorahubError:  # noqa: ANN401 - HfHubHTTPError
    status = error.response.status_code if error.response is not None else 0
    if status in {401, 403}:
        return AuthError(f"{what}: the Hub refuses this token ({status})", hint=login)
    if status == 404:
        return NotFoundError(f"{what}: not found")
    if status in {409, 412}:
        return ConflictError(
            f"{what}: the repository changed meanwhile ({status})",
            hint="look at it, then push again",
        )
    return NetworkError(f"{what}: the Hub answered {status}", hint="try again later")
