"""The basket in one line: what is picked, for which base model, at which weights."""

from __future__ import annotations

from textual.widgets import Static

from tui import text
from tui.acting import app_of
from tui.basket import base_of


class BasketStrip(Static):
    """Always in sight; what is picked here is what Compose merges."""

    def __init__(self) -> None:
        super().__init__(id="basket")

    def on_mount(self) -> None:
        """Follow the recipe and what its inputs were found to be."""
        self.watch(app_of(self), "draft", self._show)
        self.watch(app_of(self), "basket", self._show)

    def _show(self) -> None:
        draft, basket = app_of(self).draft, app_of(self).basket
        if not draft.inputs:
            self.update("Basket empty: space in Browse puts an adapter in", layout=False)
            return
        shown = []
        for one in draft.inputs:
            weight = "" if one.weight == 1 else f":{text.number(one.weight)}"
            shown.append(f"({one.adapter})" if one.muted else f"{one.adapter}{weight}")
        base = next((b for a in basket if (b := base_of(a))), None)
        line = f"Basket {len(draft.inputs)}: {' + '.join(shown)}"
        shown_line = text.shown(line + (f"  [{base}]" if base else ""), wrap=False)
        self.update(shown_line, layout=False)
