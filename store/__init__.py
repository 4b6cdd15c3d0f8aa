"""The catalog: what adapters there are, and where each came from. No torch, no network."""

from store.catalog import Catalog
from store.values import (
    AdapterFilter,
    AdapterSummary,
    Evaluation,
    Export,
    HubAdapter,
    ParentLink,
    Push,
    Run,
    RunDraft,
)

__all__ = [
    "AdapterFilter",
    "AdapterSummary",
    "Catalog",
    "Evaluation",
    "Export",
    "HubAdapter",
    "ParentLink",
    "Push",
    "Run",
    "RunDraft",
]
