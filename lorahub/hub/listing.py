"""Looking for adapters on a Hub: its listing page by page, and the headers of their weights."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lorahub import formats
from lorahub.adapter import Outline
from lorahub.bases import known
from lorahub.errors import InvalidAdapterError, NetworkError, UsageError
from lorahub.formats.safetensors import TensorEntry
from lorahub.formats.text import printable
from lorahub.hub import client
from lorahub.hub.client import Client, with_retries

Sort = Literal["downloads", "likes", "recent"]

_KEYS: Mapping[str, str] = {"downloads": "downloads", "likes": "likes", "recent": "lastModified"}
_FIELDS = ("sha", "lastModified", "downloads", "likes", "tags", "gated", "pipeline_tag", "siblings")
_PAGE = 100
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; all that is given must hold.

    Attributes:
        base: Hub id of the base model.
        task: Task of the Hub (``text-generation`` ...).
        author: User or organisation.
        license: Licence by its id on the Hub.
        search: Part of the repository's name.
        sort: What comes first: most ``downloads``, most ``likes``, most ``recent`` change.
        limit: How many at most.
    """

    base: str | None = None
    task: str | None = None
    author: str | None = None
    license: str | None = None
    search: str | None = None
    sort: Sort = "downloads"
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Listed:
    """One adapter as a Hub lists it.

    ``weights_file`` is None where there is nothing but a pickle, ``configured`` tells of an
    adapter_config.json beside it; ``modified`` is ISO 8601 UTC.
    """

    repo_id: str
    revision: str
    base_model: str | None
    task: str | None
    license: str | None
    downloads: int
    likes: int
    modified: str
    gated: bool
    configured: bool
    weights_file: str | None


class Listing(Client):
    """The Hub's listing of adapters."""

    def find(self, query: Query) -> tuple[Listed, ...]:
        """Repositories that hold an adapter at their root, in the order asked for.

        With a base they are those that state it (``base_model:adapter:...``) under any of its
        known ids, else those tagged ``peft`` or ``lora``.

        Raises:
            UsageError: An unknown sort key, or a limit below 1.
            OfflineError: There is no connection to the Hub.
            NetworkError: The Hub does not answer, or is none.
        """
        if query.sort not in _KEYS or query.limit < 1:
            raise UsageError(
                f"cannot list {query.limit} sorted by '{query.sort}'",
                hint=f"at least 1, by one of {', '.join(_KEYS)}",
            )
        tags = _base_tags(query.base) if query.base else ["peft", "lora"]
        key = _KEYS[query.sort]
        listings = (self._items(query, tag) for tag in tags)
        number = query.sort != "recent"
        items = heapq.merge(
            *listings,
            key=lambda item: _count(item.get(key)) if number else str(item.get(key)),
            reverse=True,
        )
        return tuple(islice(_adapters(items), query.limit))

    def outline(self, listed: Listed) -> Outline:
        """What the header of its weights says, read by Range requests.

        Raises:
            InvalidAdapterError: They are no adapter's, or damaged.
            AuthError: The repository is gated.
            NetworkError: The Hub does not answer.
        """
        from huggingface_hub.errors import SafetensorsParsingError

        api, name = self._api(), listed.weights_file or _WEIGHTS
        where = Path(listed.repo_id) / name

        def ask() -> Any:  # noqa: ANN401 - huggingface_hub's SafetensorsFileMetadata
            return api.parse_safetensors_file_metadata(
                listed.repo_id, name, revision=listed.revision, timeout=client.TIMEOUT_SECONDS
            )

        with self._translated(str(where)):
            try:
                found = with_retries(ask)
                tensors = {
                    str(key): TensorEntry(str(t.dtype), tuple(map(int, t.shape)), *t.data_offsets)
                    for key, t in found.tensors.items()
                }
            except (SafetensorsParsingError, TypeError, ValueError, AttributeError, KeyError):
                raise InvalidAdapterError(f"{where}: has no readable safetensors header") from None
            return formats.outline(where, tensors, configured=listed.configured)

    def _items(self, query: Query, tag: str) -> Iterator[dict[str, Any]]:
        """Raw entries of one listing, page after page.

        The client's own listing waits without end for a Hub that stalls, and 24 seconds for one
        that is down.
        """
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        filters = [tag, *([f"license:{query.license}"] if query.license else [])]
        wanted = {"author": query.author, "search": query.search, "pipeline_tag": query.task}
        params: dict[str, Any] | None = {
            "filter": filters,
            "sort": _KEYS[query.sort],
            "limit": min(query.limit, _PAGE),
            "expand": list(_FIELDS),
            **{k: v for k, v in wanted.items() if v},
        }
        url: str | None = f"{self._api().endpoint}/api/models"
        headers = build_hf_headers(token=self.token, library_name="lorahub")

        def ask() -> Any:  # noqa: ANN401 - httpx2.Response
            assert url is not None
            response = get_session().get(
                url, params=params, headers=headers, timeout=client.TIMEOUT_SECONDS
            )
            hf_raise_for_status(response)
            return response

        while url is not None:
            with self._translated("the Hub's listing"):
                response = with_retries(ask)
                page = response.json()
            if not isinstance(page, list):
                raise NetworkError(
                    "the Hub's listing: the answer is not one of a Hub", hint="check the endpoint"
                )
            yield from (item for item in page if isinstance(item, dict))
            url, params = response.links.get("next", {}).get("url"), None


def _base_tags(base: str) -> list[str]:
    found = known(base)
    names = (base, found.id, *found.also) if found else (base,)
    return [f"base_model:adapter:{name}" for name in dict.fromkeys(names)]


def _adapters(items: Iterator[dict[str, Any]]) -> Iterator[Listed]:
    """Each repository once, if it is one that a pull could take."""
    seen: set[str] = set()
    for item in items:
        listed = _listed(item)
        if listed is not None and listed.repo_id not in seen:
            seen.add(listed.repo_id)
            yield listed


def _listed(item: Mapping[str, Any]) -> Listed | None:
    repo_id, revision = str(item.get("id")), str(item.get("sha"))
    names = {str(s.get("rfilename")) for s in item.get("siblings") or () if isinstance(s, dict)}
    weights = _weights(names)
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII)
    pinned = re.fullmatch(r"[0-9a-f]{40}", revision)
    if not (known and pinned) or (weights is None and "adapter_model.bin" not in names):
        return None
    tags = [tag for tag in item.get("tags") or () if printable(tag)]
    return Listed(
        repo_id=repo_id,
        revision=revision,
        base_model=_tagged(tags, "base_model:adapter:"),
        task=printable(item.get("pipeline_tag")),
        license=_tagged(tags, "license:"),
        downloads=_count(item.get("downloads")),
        likes=_count(item.get("likes")),
        modified=printable(item.get("lastModified")) or "",
        gated=bool(item.get("gated")),
        configured="adapter_config.json" in names,
        weights_file=weights,
    )


def _weights(names: set[str]) -> str | None:
    """The weights file at the root, if it is clear which one it is."""
    if _WEIGHTS in names:
        return _WEIGHTS
    found = [n for n in names if n.endswith(".safetensors") and "/" not in n and n.isprintable()]
    return found[0] if len(found) == 1 else None


def _tagged(tags: list[str], prefix: str) -> str | None:
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)), None)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
