"""The catalog: what adapters there are, and where each came from. No torch, no network."""

from store.catalog import Catalog
from store.session import is_local
from store.values import (
    AdapterFilter,
    AdapterSummary,
    Alias,
    BaseSummary,
    Evaluation,
    Export,
    HubAdapter,
    Imported,
    ParentLink,
    Push,
    Run,
    RunDraft,
    Stats,
)

__all__ = [
    "AdapterFilter",
    "AdapterSummary",
    "Alias",
    "BaseSummary",
    "Catalog",
    "Evaluation",
    "Export",
    "HubAdapter",
    "Imported",
    "ParentLink",
    "Push",
    "Run",
    "RunDraft",
    "Stats",
    "is_local",
]
