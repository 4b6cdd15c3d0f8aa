"""The values the catalog takes and returns, beside those of `lorahub.adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Span = tuple[float | None, float | None]
"""Least and largest value, either None for open."""


@dataclass(frozen=True, slots=True)
class AdapterFilter:
    """Conditions on a listing; all given ones must hold.

    Attributes:
        base: A base model by any of its names, or, where no adapter has that, a part of one.
        rank: An adapter matches when the span from its smallest to its largest rank meets this.
        alpha: The same for its alphas.
        targets: Module types, all of which it has.
        tags: Tags, all of which its card states.
        dtype: Dtype of its factors (``BF16``), or ``mixed``.
        size: Bytes of its weights file.
        license: Licence that its card states.
        task: PEFT task type.
        source: ``hub``, ``folder``, ``merge`` or ``extract``.
        method: Name of the merge method that made it.
        since: Catalogued at this time or later: ISO 8601 in UTC, or the beginning of it.
        until: Catalogued at this time or before, the whole of a day or hour that is named.
        used_in: Name of an adapter that was merged from it.
    """

    base: str | None = None
    rank: Span | None = None
    alpha: Span | None = None
    targets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    dtype: str | None = None
    size: Span | None = None
    license: str | None = None
    task: str | None = None
    source: str | None = None
    method: str | None = None
    since: str | None = None
    until: str | None = None
    used_in: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """One row of a listing; ``base`` is the canonical base model, None where nobody knows it."""

    id: int
    name: str
    source: str
    base_model: str | None
    base: str | None
    base_confidence: str
    rank_min: int
    rank_max: int
    alpha_min: float
    alpha_max: float
    targets: tuple[str, ...]
    dtype: str
    modules: int
    parameters: int
    weights_bytes: int
    license: str | None
    task_type: str | None
    method: str | None
    repo_id: str | None
    revision: str | None
    content_hash: str
    mergeable: bool
    created_at: str
    folder: str
    weights_file: str


@dataclass(frozen=True, slots=True)
class Alias:
    """A base model's name, and the base that the user says it means."""

    alias: str
    base: str
    created_at: str


@dataclass(frozen=True, slots=True)
class BaseSummary:
    """A base model of the catalog, None for unknown; ``stated`` are other names it goes by."""

    base: str | None
    adapters: int
    stated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import brought; ``known`` adapters were here already."""

    adapters: int
    known: int
    aliases: int
    runs: int


@dataclass(frozen=True, slots=True)
class Stats:
    """How much there is, and how much room it takes.

    Attributes:
        backend: ``sqlite`` or ``postgresql``.
        revision: Revision of the schema.
        bytes: Size of the database.
        adapters: Adapters by source.
        modules: Target modules of all adapters.
        weights_bytes: Bytes of their weights files, wherever those are.
        rows: Rows by table, for those that are not named above.
    """

    backend: str
    revision: str
    bytes: int
    adapters: Mapping[str, int]
    modules: int
    weights_bytes: int
    rows: Mapping[str, int]


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

    @property
    def text(self) -> str:
        """The figures in a line."""
        return ", ".join(f"{key} {value:.4g}" for key, value in self.figures.items())


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
