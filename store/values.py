"""The values the catalog takes and returns, beside those of `lorahub.adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterFilter:
    """Conditions on a listing; all given ones must hold.

    Attributes:
        base: Part of the base model's name, any case.
        rank: Least and largest rank, either None for open; an adapter matches when the span
            from its smallest to its largest rank meets them.
        method: Name of the merge method that made it.
        source: ``hub``, ``folder`` or ``merge``.
    """

    base: str | None = None
    rank: tuple[int | None, int | None] | None = None
    method: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """One row of a listing."""

    id: int
    name: str
    source: str
    base_model: str | None
    rank_min: int
    rank_max: int
    targets: tuple[str, ...]
    dtype: str
    modules: int
    parameters: int
    weights_bytes: int
    license: str | None
    method: str | None
    repo_id: str | None
    revision: str | None
    content_hash: str
    mergeable: bool
    created_at: str
    folder: str


@dataclass(frozen=True, slots=True)
class RunDraft:
    """What is known of a run when it begins."""

    digest: str
    recipe: str
    method: str
    target: str


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a plan: ``state`` is running, finished, failed or interrupted."""

    id: int
    digest: str
    state: str
    recipe: str
    method: str
    target: str
    started_at: str
    ended_at: str | None
    error: str | None
    record: str | None
    adapter_id: int | None


@dataclass(frozen=True, slots=True)
class ParentLink:
    """A parent of a merged adapter; ``parent_id`` is None once it left the catalog."""

    reference: str
    content_hash: str
    weight: float
    repo_id: str | None
    revision: str | None
    parent_id: int | None


@dataclass(frozen=True, slots=True)
class Export:
    """One copy of an adapter elsewhere: ``folder`` is a folder, or the file of a pack."""

    folder: str
    format: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Push:
    """One publication on a Hub."""

    repo_id: str
    endpoint: str | None
    revision: str
    url: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a suite found of an adapter, the last time: figures by name."""

    suite: str
    figures: Mapping[str, float]
    created_at: str


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """Where a pulled adapter came from, without the rest of it."""

    id: int
    name: str
    folder: str
    repo_id: str
    revision: str
    requested_revision: str | None
    endpoint: str | None
