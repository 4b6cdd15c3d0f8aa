"""Text that scrolls: only the lines in sight are drawn, and other text needs no new layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text
from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from tui import text

HEAD = Style(bold=True)


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it was given: a head in bold, where it has one, and what follows."""

    words: str
    head: str = ""


class Page(ScrollView, can_focus=True):
    """Words or facts; long lines go on in the next one, or are scrolled to."""

    def __init__(self, *, id: str | None = None, classes: str = "", wrap: bool = True) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._wrap = wrap
        self._given: tuple[Line, ...] = ()
        self._lines: list[Text] = []
        self._stale = False

    def show(self, words: str) -> None:
        """Show text from anywhere; control characters are shown as question marks."""
        self._take(Line(line) for line in text.clean(words).split("\n"))

    def show_facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Show fields in bold with their values beside them; what is empty is left out."""
        self._take(
            Line(line, key if first else " ")
            for key, value in pairs if value
            for first, line in _numbered(text.clean(value))
        )  # fmt: skip

    def _take(self, lines: Iterable[Line]) -> None:
        given = tuple(lines)
        if given != self._given:
            self._given = given
            self._stale = True
            if self.region.area:  # else once it comes into sight: its width is known then
                self._break()

    def _break(self) -> None:
        """Break what was given into lines of the present width."""
        indent = max((len(line.head) for line in self._given), default=0)
        indent += bool(indent)
        room = max(8, self.scrollable_content_region.width - indent)
        self._lines = []
        for line in self._given:
            fits = not self._wrap or cell_len(line.words) <= room
            parts = [line.words] if fits else [
                part.plain.rstrip() for part in Text(line.words).wrap(self.app.console, room)
            ]  # fmt: skip
            for head, part in zip([line.head, *[""] * len(parts)], parts, strict=False):
                made = Text(set_cell_size(head, indent), style=HEAD, no_wrap=True)
                self._lines.append(Text.assemble(made, part))
        widest = 0 if self._wrap else max((line.cell_len for line in self._lines), default=0)
        self._stale = False
        self.virtual_size = Size(widest, len(self._lines))
        self.refresh()

    def on_resize(self, event: Resize) -> None:
        """Lines depend on the width."""
        self._break()

    def on_show(self) -> None:
        """Text that came while it was out of sight."""
        if self._stale:
            self._break()

    def render_line(self, y: int) -> Strip:
        """One line in sight, with what of it is selected."""
        left, top = self.scroll_offset
        width, index = self.scrollable_content_region.width, top + y
        style = self.rich_style
        if index >= len(self._lines):
            return Strip.blank(width, style)
        line = self._lines[index].copy()
        chosen = self.text_selection.get_span(index) if self.text_selection else None
        if chosen is not None:
            start, end = chosen
            marked = self.screen.get_component_rich_style("screen--selection")
            line.stylize(marked, start, len(line) if end == -1 else end)
        strip = Strip(line.render(self.app.console)).apply_style(style)
        return strip.crop_extend(left, left + width, style).apply_offsets(left, index)

    def get_selection(self, selection: Selection) -> tuple[str, str]:
        """What is selected, as text."""
        return selection.extract("\n".join(line.plain for line in self._lines)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Draw what is selected anew."""
        self.refresh()


def _numbered(words: str) -> Iterable[tuple[bool, str]]:
    return ((number == 0, line) for number, line in enumerate(words.split("\n")))
