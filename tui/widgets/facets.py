"""The facets: what there is of each base, rank, task, licence, source and method, with counts."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui import text
from tui.query import pairs

SHOWN = ("base", "rank", "task", "license", "source", "method", "target", "tag")
MOST_VALUES = 8


class Facets(OptionList):
    """Choosing a value puts it into the filter line, or takes it out."""

    class Chosen(Message):
        """A value was chosen."""

        def __init__(self, key: str, value: str) -> None:
            super().__init__()
            self.key, self.value = key, value

    def __init__(self) -> None:
        super().__init__(id="facets")
        self._values: dict[str, tuple[str, str]] = {}

    def show(self, facets: Mapping[str, Mapping[str, int]], filter_text: str) -> None:
        """Show other counts; what the filter line asks for is ticked."""
        asked = set(pairs(filter_text))
        before = self.highlighted
        self.clear_options()
        self._values.clear()
        options: list[Option] = []
        for key, counts in facets.items():
            values = [(v, n) for v, n in counts.items() if v]
            if key not in SHOWN or not values:
                continue
            options.append(Option(Text(key.title(), style="bold"), disabled=True))
            for value, count in values[:MOST_VALUES]:
                name = f"{key}:{value}"
                self._values[name] = key, value
                tick = "x" if (key, value) in asked else " "
                line = text.shown(f"[{tick}] {value}", wrap=False)
                line.truncate(max(8, 18 - len(f"{count}")), overflow="ellipsis", pad=True)
                options.append(Option(line + Text(f" {count:,}"), id=name))
        self.add_options(options)
        if before is not None and self.option_count:
            self.highlighted = min(before, self.option_count - 1)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Tell the screen."""
        event.stop()
        if event.option_id in self._values:
            self.post_message(self.Chosen(*self._values[event.option_id]))
