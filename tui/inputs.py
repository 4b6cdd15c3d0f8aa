"""The inputs of a recipe as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from lorahub.adapter import Adapter
from tui import text
from tui.draft import Draft
from tui.widgets.paged_table import PAGE, Column, Row

COLUMNS = (
    Column("input", 0),
    Column("weight", 7, importance=8, right=True),
    Column("share", 10, importance=4),
    Column("r", 5, importance=2, right=True),
)
EMPTY = "Nothing to merge yet.\nPick adapters in Browse (1) with space,\nor write the recipe."


def rows(draft: Draft, basket: Sequence[Adapter], first: int) -> list[Row]:
    """The page of inputs from ``first``; ranks are those of the adapters that are known."""
    found = {a.name: a for a in basket}
    top = max((abs(i.weight) for i in draft.inputs), default=1.0) or 1.0
    made = []
    for one in draft.inputs[first : first + PAGE]:
        adapter = found.get(one.adapter)
        ranks = adapter.info.ranks if adapter is not None else ()
        rank = text.ranks(ranks[0], ranks[-1]) if ranks else "?"
        name = f"{one.adapter}  (muted)" if one.muted else one.adapter
        share = text.bar(abs(one.weight) / top, 10)
        mark = "m" if one.muted else "-" if one.weight < 0 else " "
        cells = (name, text.number(one.weight), share, rank)
        made.append(Row(one, cells, mark, dim=one.muted))
    return made
