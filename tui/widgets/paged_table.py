"""A table that holds only the pages around what is in sight, however long it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.acting import Acting
from tui.actions import bindings

PAGE = 100
MOST_PAGES = 12
GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        title: Its heading.
        width: Cells it takes; 0 takes what the others leave.
        importance: Where there is little room, columns of the least importance go first.
        right: Whether values stand to the right.
    """

    title: str
    width: int
    importance: int = 9
    right: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what it stands for, its cells, a mark of one cell before them, and its look."""

    value: Any
    cells: tuple[str, ...]
    mark: str = " "
    dim: bool = False


class PagedTable(Acting, ScrollView, can_focus=True):
    """Rows by page; its owner answers `Wanted` with `put`."""

    scope = "table"
    BINDINGS = bindings("table")
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "paged-table--header",
        "paged-table--cursor",
        "paged-table--dim",
        "paged-table--row",
    }
    LEAST_FLEXIBLE = 26

    cursor: reactive[int] = reactive(0, repaint=False)
    empty: reactive[str] = reactive("")

    class Wanted(Message):
        """Rows from ``first`` are needed; ``generation`` goes back with them."""

        def __init__(self, first: int, generation: int) -> None:
            super().__init__()
            self.first, self.generation = first, generation

    class Highlighted(Message):
        """The cursor stands on another row, or on none."""

        def __init__(self, row: Row | None) -> None:
            super().__init__()
            self.row = row

    class Opened(Highlighted):
        """The row was chosen with enter or a second click."""

    def __init__(self, columns: Sequence[Column], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.columns = tuple(columns)
        self.count = 0
        self.generation = 0
        self._pages: OrderedDict[int, Sequence[Row]] = OrderedDict()
        self._asked: set[int] = set()
        self._fitted: tuple[int, list[Column]] | None = None

    def reset(
        self,
        count: int,
        rows: Sequence[Row] = (),
        *,
        cursor: int = 0,
        columns: Sequence[Column] | None = None,
    ) -> int:
        """Show other rows: ``count`` of them, of which the first ones may be given.

        Other columns, too, where ``columns`` are given.

        Returns:
            The generation that pages must be put with.
        """
        if columns is not None:
            self.columns, self._fitted = tuple(columns), None
        self.count = count
        self.generation += 1
        self._pages.clear()
        self._asked.clear()
        for first in range(0, len(rows), PAGE):
            self._pages[first // PAGE] = rows[first : first + PAGE]
        self.virtual_size = Size(self.size.width, count + 1)
        self.set_reactive(PagedTable.cursor, max(0, min(cursor, count - 1)))
        self._show_cursor()
        self.refresh()
        self.post_message(self.Highlighted(self.row))
        return self.generation

    def put(self, first: int, rows: Sequence[Row], generation: int) -> None:
        """Take a page that was wanted; one of an older generation is left alone."""
        if generation != self.generation:
            return
        self._pages[first // PAGE] = rows
        self._asked.discard(first // PAGE)
        while len(self._pages) > MOST_PAGES:
            self._pages.popitem(last=False)
        self.refresh()
        if first <= self.cursor < first + PAGE:
            self.post_message(self.Highlighted(self.row))

    def update(self, index: int, row: Row) -> None:
        """Draw one row anew, if its page is here."""
        page = list(self._pages.get(index // PAGE, ()))
        if index % PAGE < len(page):
            if page[index % PAGE] == row:
                return
            page[index % PAGE] = row
            self._pages[index // PAGE] = page
            self.refresh_line(index + 1)

    @property
    def row(self) -> Row | None:
        """The row under the cursor, or None where there is none (yet)."""
        return self._row(self.cursor) if self.count else None

    def loaded(self) -> list[tuple[int, Row]]:
        """The rows that are here, with their index."""
        return [(p * PAGE + i, r) for p, rows in self._pages.items() for i, r in enumerate(rows)]

    def _row(self, index: int) -> Row | None:
        number = index // PAGE
        page = self._pages.get(number)
        if page is None:
            if number not in self._asked:
                self._asked.add(number)
                self.post_message(self.Wanted(number * PAGE, self.generation))
            return None
        self._pages.move_to_end(number)
        return page[index % PAGE] if index % PAGE < len(page) else None

    # Drawing

    def render_line(self, y: int) -> Strip:
        """The heading, then the rows in sight."""
        width = self.size.width
        if y == 0:
            style = self.get_component_rich_style("paged-table--header")
            return self._line([c.title for c in self._shown()], " ", style, width)
        index = self.scroll_offset.y + y - 1
        base = self.get_component_rich_style("paged-table--row")
        if index >= self.count:
            text = [] if self.count else [
                part
                for line in self.empty.split("\n")
                for part in wrap(line, max(1, width - 3)) or [""]
            ]  # fmt: skip
            line = text[y - 2] if 0 <= y - 2 < len(text) else ""
            return Strip([Segment(set_cell_size(f"  {line}", width), base)], width)
        row = self._row(index)
        style = base
        if row is not None and row.dim:
            style = self.get_component_rich_style("paged-table--dim")
        if index == self.cursor:
            cursor = self.get_component_rich_style("paged-table--cursor")
            style = style + (cursor if self.has_focus else Style(underline=True, bold=True))
        if row is None:
            return Strip([Segment(set_cell_size("  ...", width), style)], width)
        wanted = {id(c) for c in self._shown()}
        cells = [v for c, v in zip(self.columns, row.cells, strict=True) if id(c) in wanted]
        return self._line(cells, row.mark, style, width)

    def _shown(self) -> list[Column]:
        width = self.size.width
        if self._fitted is None or self._fitted[0] != width:
            shown = list(self.columns)
            while len(shown) > 1 and self._fixed(shown) + self.LEAST_FLEXIBLE > width:
                shown.remove(min((c for c in shown if c.width), key=lambda c: c.importance))
            self._fitted = width, shown
        return self._fitted[1]

    def _fixed(self, columns: Sequence[Column]) -> int:
        return 2 + sum(c.width + GAP for c in columns if c.width)

    def _line(self, cells: Sequence[str], mark: str, style: Style, width: int) -> Strip:
        columns = self._shown()
        flexible = width - self._fixed(columns)
        parts = [f"{mark} "]
        for column, cell in zip(columns, cells, strict=True):
            room = column.width or flexible
            # Only fixed columns bring a gap after them.
            last = column is columns[-1]
            text = fit(cell, room if column.width or last else room - GAP)
            pad = room - cell_len(text)
            parts.append(" " * pad + text if column.right else text + " " * pad)
            if column.width:
                parts.append(" " * GAP)
        return Strip([Segment(set_cell_size("".join(parts), width), style)], width)

    # Moving

    def watch_cursor(self, before: int, now: int) -> None:
        """Keep the cursor in sight and say where it stands."""
        top = self.scroll_offset.y
        self._show_cursor()
        if self.scroll_offset.y == top:
            for index in (before, now):
                self.refresh_line(index + 1)
        else:
            self.refresh()
        self.post_message(self.Highlighted(self.row))

    def _show_cursor(self) -> None:
        # The heading covers the first line in sight: a row lies one line below its index.
        self.scroll_to_region(Region(0, self.cursor, 1, 2), animate=False, force=True)

    def on_resize(self, event: Resize) -> None:
        """Columns depend on the width."""
        self.virtual_size = Size(event.size.width, self.count + 1)
        self._show_cursor()
        self.refresh()

    def _move(self, index: int) -> None:
        self.cursor = max(0, min(index, self.count - 1))

    def do_down(self) -> None:
        """One row down."""
        self._move(self.cursor + 1)

    def do_up(self) -> None:
        """One row up."""
        self._move(self.cursor - 1)

    def do_page_down(self) -> None:
        """One page down."""
        self._move(self.cursor + max(1, self.size.height - 2))

    def do_page_up(self) -> None:
        """One page up."""
        self._move(self.cursor - max(1, self.size.height - 2))

    def do_first(self) -> None:
        """To the first row."""
        self._move(0)

    def do_last(self) -> None:
        """To the last row."""
        self._move(self.count - 1)

    def do_open(self) -> None:
        """Open the row under the cursor."""
        if self.row is not None:
            self.post_message(self.Opened(self.row))

    def on_click(self, event: Click) -> None:
        """A click moves the cursor, a second one opens."""
        index = self.scroll_offset.y + event.y - 1
        if event.y > 0 and index < self.count:
            if index == self.cursor and event.chain > 1:
                self.do_open()
            self._move(index)


def fit(text: str, width: int) -> str:
    """The text in at most that many cells; control characters are shown as question marks."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…"
