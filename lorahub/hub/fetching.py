"""Downloads: only what an adapter needs, every byte checked."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from lorahub.errors import IntegrityError, InvalidAdapterError
from lorahub.events import Advanced, Listener, PhaseStarted, ignore
from lorahub.hub import client
from lorahub.hub.client import with_retries
from lorahub.hub.snapshots import RemoteFile, Resolving, Snapshot

ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "lorahub.json",
    "extracted.json",
    "recipe.yaml",
    "adapter.mos",
    "README.md",
    "LICENSE*",
)


class Fetching(Resolving):
    """Bytes from the Hub into its client's cache."""

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
        wanted = adapter_files(snapshot, all_files=all_files, allow_pickle=allow_pickle)
        if not wanted:
            raise InvalidAdapterError(
                f"{snapshot.repo_id}: has no adapter files "
                f"({', '.join(f.name for f in snapshot.files[:5]) or 'it is empty'})",
                hint="pull a repository that holds adapter_config.json; a .bin adapter needs "
                "--allow-pickle",
            )
        return self.fetch_files(snapshot, wanted, listener=listener)

    def fetch_files(
        self, snapshot: Snapshot, files: Sequence[RemoteFile], *, listener: Listener = ignore
    ) -> Path:
        """As `fetch`, of these files (at least one) of the snapshot."""
        from huggingface_hub import constants

        phase = f"pull {snapshot.repo_id}"
        listener(PhaseStarted(phase, len(files), "files"))
        for done, file in enumerate(files, 1):
            path = self._fetch_one(snapshot, file)
            folder = path.parents[file.name.count("/")]
            listener(Advanced(phase, done, file.name))
        if not folder.is_relative_to(Path(constants.HF_HUB_CACHE)):
            raise InvalidAdapterError(f"{snapshot.repo_id}: a file would leave the cache")
        return folder

    def _fetch_one(self, snapshot: Snapshot, file: RemoteFile) -> Path:
        for _ in range(2):
            path = self._download(snapshot, file)
            if file.is_at(path):
                return path
            # What is known to be wrong must not be found in the cache by anybody.
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise IntegrityError(
            f"{snapshot.repo_id}: '{file.name}' arrived twice with a content that is not the "
            "one its hash names",
            hint="try again later; the connection or the Hub's storage alters files",
        )

    def _download(self, snapshot: Snapshot, file: RemoteFile) -> Path:
        from huggingface_hub import (
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )

        repo_id, name, revision = snapshot.repo_id, file.name, snapshot.revision

        def ask() -> str:
            if not isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str):
                # The download would ask a Hub that is down again and again for 24 seconds.
                get_hf_file_metadata(
                    hf_hub_url(repo_id, name, revision=revision, endpoint=self.endpoint),
                    token=self.token,
                    timeout=client.TIMEOUT_SECONDS,
                    endpoint=self.endpoint,
                )
            return str(
                hf_hub_download(
                    repo_id,
                    name,
                    revision=revision,
                    endpoint=self.endpoint,
                    token=self.token,
                    etag_timeout=client.TIMEOUT_SECONDS,
                )
            )

        with self._translated(f"{repo_id}/{name}"):
            return Path(with_retries(ask))


def adapter_files(
    snapshot: Snapshot, *, all_files: bool = False, allow_pickle: bool = False
) -> list[RemoteFile]:
    """The files of a snapshot that a pull takes; none where it holds no adapter."""
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
