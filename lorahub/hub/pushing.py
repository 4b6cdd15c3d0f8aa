"""Publications: privacy read back first, then one commit or one pull request, never two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import (
    ConflictError,
    LorahubError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from lorahub.hub import client
from lorahub.hub.client import with_retries
from lorahub.hub.errors import no_token
from lorahub.hub.snapshots import Resolving, Snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi


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


class Pushing(Resolving):
    """Files from here onto the Hub."""

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
                while we pushed, was renamed, or took a pull request as a commit.
            NetworkError: The Hub does not answer.
            UsageError: A malformed repository id.
        """
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
            raise UsageError(f"'{repo_id}' is not a repository id", hint="give it as owner/name")
        api = self._api()
        sizes = sum(f.stat().st_size for f in files)
        names = tuple(f.name for f in files)
        self._require_token()
        # First what has a timeout: who am I would wait minutes for a Hub that is not there.
        head = self._head(repo_id)
        if head is not None and head.moved_to is not None:
            raise ConflictError(
                f"{repo_id} is now {head.moved_to}", hint="push to it under that name"
            )
        with self._translated(repo_id):
            user = str(with_retries(api.whoami)["name"])
        if private and head is not None:
            self._require_private(api, repo_id)
        changed = head is None or any(not head.holds(f) for f in files)
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

    def _require_token(self) -> None:
        from huggingface_hub import get_token

        if not (self.token or (self.token is None and get_token())):
            raise no_token()

    def _head(self, repo_id: str) -> Snapshot | None:
        try:
            return self.resolve(repo_id)
        except NotFoundError:
            return None

    def _require_private(self, api: HfApi, repo_id: str) -> None:
        with self._translated(repo_id):
            info = api.model_info(repo_id, timeout=client.TIMEOUT_SECONDS)
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
        if now is None or not all(now.holds(f) for f in files):
            return None
        return None, now.revision

    def _pull_request(
        self, api: HfApi, head: Snapshot, files: Sequence[Path], author: str
    ) -> tuple[str, str] | None:
        """URL and commit of the author's newest open pull request that holds these files."""
        with self._translated(head.repo_id):
            found = with_retries(
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
                if all(proposed.holds(f) for f in files):
                    return request.url, proposed.revision
        return None


def _no_pull_request(repo_id: str, commit: str) -> ConflictError:
    return ConflictError(
        f"{repo_id}: the Hub ignored the pull request and committed to main ({commit})",
        hint="revert that commit there if it was not wanted",
    )
