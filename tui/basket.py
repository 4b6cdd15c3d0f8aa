"""Which adapters may stand in one basket: those that one merge could take."""

from __future__ import annotations

from collections.abc import Sequence

from lorahub.adapter import Adapter, canonical_base
from store import AdapterSummary


def why_not_row(row: AdapterSummary, basket: Sequence[Adapter]) -> str | None:
    """Why a row of the table cannot join the basket, in a few words; None if it can."""
    if not row.mergeable:
        return "cannot be merged"
    mine = row.base or canonical_base(row.base_model)
    return "other base" if mine and _others(mine, row.name, basket) else None


def why_not(adapter: Adapter, basket: Sequence[Adapter]) -> str | None:
    """Why an adapter cannot join the basket, as a sentence; None if it can."""
    if adapter.info.refusals:
        reasons = "; ".join(r.message for r in adapter.info.refusals)
        return f"{adapter.name} cannot be merged: {reasons}"
    mine = base_of(adapter)
    other = _others(mine, adapter.name, basket) if mine else None
    if other is not None:
        return f"{adapter.name} is for {mine}, the basket holds {other.name} for {base_of(other)}"
    shapes = {m.name: (m.d_in, m.d_out) for m in adapter.info.modules}
    for other in basket:
        for module in other.info.modules:
            if shapes.get(module.name, (module.d_in, module.d_out)) != (module.d_in, module.d_out):
                return (
                    f"{adapter.name} and {other.name} have another shape in module "
                    f"{module.name}: they are for different base models"
                )
    return None


def _others(base: str, name: str, basket: Sequence[Adapter]) -> Adapter | None:
    """An adapter of the basket that is for another base model."""
    for other in basket:
        theirs = base_of(other)
        if other.name != name and theirs is not None and theirs != base:
            return other
    return None


def base_of(adapter: Adapter) -> str | None:
    """The base model as the catalog knows it, or as the adapter names it."""
    known = adapter.base.name if adapter.base is not None else None
    return known or canonical_base(adapter.info.base_model)
