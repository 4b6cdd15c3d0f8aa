"""Pages of adapters as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahub.adapter import Adapter
from lorahub.integrity import glance
from store import AdapterSummary, Catalog
from store.listing import SORTS
from tui import text
from tui.basket import why_not_row
from tui.query import Query
from tui.widgets.paged_table import PAGE, Column, Row

COLUMNS = (
    Column("name", 0),
    Column("base", 18, importance=5),
    Column("r", 5, importance=8, right=True),
    Column("a", 5, importance=4, right=True),
    Column("targets", 16, importance=0),
    Column("size", 8, importance=6, right=True),
    Column("licence", 10, importance=2),
    Column("from", 8, importance=3),
    Column("used", 4, importance=1, right=True),
)

EMPTY = (
    "The catalog is empty.\n"
    "L pulls a repository or a folder by its name; 6 finds adapters on the Hub.\n"
    "In a shell: lorahub pull owner/name"
)
NONE_MATCH = "No adapter matches the filter. escape clears it."
LONGEST_FIGURE = 16
"""Cells for the name of a figure that heads a column; of a longer one the end is shown."""
MOST_HITS = 1000
"""Of what a search finds, the best so many are shown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An adapter of the listing.

    Attributes:
        summary: Its row of the catalog.
        problem: What is wrong with its files; empty where nothing is known to be.
        children: How many were merged from it.
        figure: What a suite found of it, where that is the order and it was found.
    """

    summary: AdapterSummary
    problem: str = ""
    children: int = 0
    figure: float | None = None


def figure_shown(query: Query, sort: str) -> str | None:
    """The suite's figure that is the order, if one is: it is shown as a column."""
    return None if query.words or sort in SORTS else sort


def columns(figure: str | None) -> tuple[Column, ...]:
    """The columns; a figure that is shown stands beside the name."""
    if figure is None:
        return COLUMNS
    title = text.ending(figure, LONGEST_FIGURE)
    return (COLUMNS[0], Column(title, max(8, len(title)), right=True), *COLUMNS[1:])


def first_page(
    catalog: Catalog, query: Query, sort: str, *, descending: bool
) -> tuple[int, list[Entry]]:
    """How many adapters there are, and the first of them."""
    rows = page(catalog, query, sort, 0, descending=descending)
    if query.words or len(rows) < PAGE:
        return len(rows), rows
    return catalog.count(query.where), rows


def page(catalog: Catalog, query: Query, sort: str, first: int, *, descending: bool) -> list[Entry]:
    """One page, from that row on; of a search, all its hits at once."""
    if query.words:
        found = catalog.search(query.words, limit=MOST_HITS, where=query.where)
    else:
        found = catalog.adapters(
            query.where, sort=sort, descending=descending, limit=PAGE, offset=first
        )
    ids = [s.id for s in found]
    children = catalog.child_counts(ids)
    figure = figure_shown(query, sort)
    figures = {} if figure is None else catalog.figure(figure, ids)
    return [
        Entry(
            s,
            glance(Path(s.folder) / s.weights_file, s.weights_bytes) or "",
            children.get(s.id, 0),
            figures.get(s.id),
        )
        for s in found
    ]


def row(entry: Entry, basket: Sequence[Adapter], *, picked: bool, figure: bool) -> Row:
    """One adapter as a row of the columns with or without a figure.

    One that is damaged or cannot join the basket is dimmed and says so.
    """
    summary = entry.summary
    reason = entry.problem or (None if picked else why_not_row(summary, basket))
    name = f"{summary.name}  ({reason})" if reason else summary.name
    mark = "!" if entry.problem else "●" if picked else "-" if reason else " "
    return Row(entry, (name, *_cells(entry, figure=figure)), mark, dim=reason is not None)


def _cells(entry: Entry, *, figure: bool) -> tuple[str, ...]:
    summary = entry.summary
    value = "-" if entry.figure is None else text.number(entry.figure)
    return (
        *([value] if figure else []),
        (summary.base or summary.base_model or "-").rsplit("/", 1)[-1],
        text.ranks(summary.rank_min, summary.rank_max),
        text.ranks(summary.alpha_min, summary.alpha_max),
        ",".join(summary.targets),
        text.size(summary.weights_bytes),
        summary.license or "-",
        summary.method or summary.source,
        str(entry.children or ""),
    )
