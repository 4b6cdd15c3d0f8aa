"""Giving adapters away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import UsageError
from lorahub.integrity import check_unchanged
from lorahub.publishing import check_license, export, prepared, publishable
from lorahub.urls import canonical, is_url, seems_url
from lorahub.workspace.finding import Finding

if TYPE_CHECKING:
    from lorahub.hub import Pushed


class Publishing(Finding):
    """Exports and publications."""

    def files(self, reference: str) -> tuple[Path, ...]:
        """The files of an adapter that an export copies and a push uploads.

        Raises:
            NotFoundError: The reference names nothing.
        """
        return publishable(self.get(reference))

    def export(
        self,
        reference: str,
        place: Path | str,
        *,
        format_name: str = "peft",
        replace: bool = False,
    ) -> Path | str:
        """Write an adapter into a new folder, or to a storage URL, as PEFT reads it.

        ``peft`` copies its files; ``equal-ranks`` writes its deltas with one rank for all
        modules and scaling 1, for programs that know no patterns (llama.cpp, vLLM).

        Args:
            reference: A catalogued adapter.
            place: The folder; a storage URL is a text with ``://``, see `lorahub.storage`.
            format_name: ``peft`` or ``equal-ranks``.
            replace: Whether what is there is replaced.

        Returns:
            The absolute path of the folder, or the URL.

        Raises:
            UsageError: An unknown format, a URL of no store, or one that cannot be written to.
            UnsupportedAdapterError: The adapter is not in PEFT's format.
            ConflictError: There is something else already.
            IntegrityError: Its files changed since they were catalogued.
            LorahubError: As `lorahub.storage.put_files`.
        """
        adapter = self.get(reference)
        check_unchanged(adapter)
        locks = self.config.home / "locks"
        where: Path | str = Path(place).expanduser().absolute()
        if isinstance(place, str) and is_url(place):
            where = canonical(place)
        elif seems_url(str(place)):
            raise UsageError(f"'{place}' is no storage URL", hint="write e.g. s3://BUCKET/FOLDER")
        export(adapter, where, locks, format_name=format_name, replace=replace)
        self.catalog.record_export(adapter.id, where, format_name)
        return where

    def push(
        self,
        reference: str,
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        message: str | None = None,
        dry_run: bool = False,
        remote: str | None = None,
        endpoint: str | None = None,
        token_env: str | None = None,
    ) -> Pushed:
        """Publish an adapter on the Hub in one commit, with its card, record and recipe.

        Args:
            reference: A catalogued adapter.
            repo_id: ``owner/name``; it is created where it does not exist.
            private: Ask for a private repository, and make sure that it is one.
            create_pr: Open a pull request instead of committing to main.
            message: Commit message.
            dry_run: Only look and say what would go up.
            remote: Name of a configured Hub instead of the default one.
            endpoint: Address of a Hub instead of the default one.
            token_env: Environment variable that holds the token.

        Raises:
            AuthError: No token, or one that may not write there.
            ConflictError: The repository is public where a private one was asked for.
            LicenseError: Its card states a licence that its parents do not allow.
            NetworkError: The Hub does not answer.
            IntegrityError: Its files changed since they were catalogued.
        """
        adapter = self.get(reference)
        check_unchanged(adapter)
        check_license(adapter)
        hub = self.hub(remote=remote, endpoint=endpoint, token_env=token_env)
        scored = self.catalog.evaluations([adapter.id]).get(adapter.id, ())
        figures = {e.suite: e.figures for e in scored}
        with prepared(adapter, repo_id, figures) as files:
            pushed = hub.push(
                files,
                repo_id,
                private=private,
                create_pr=create_pr,
                message=message or f"Upload {adapter.name}",
                dry_run=dry_run,
            )
        if pushed.changed and not dry_run:
            self.catalog.record_push(
                adapter.id, repo_id, hub.endpoint, pushed.revision or "", pushed.url
            )
        return pushed
