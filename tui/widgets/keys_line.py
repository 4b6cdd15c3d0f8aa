"""The last line: the keys that do something where the focus is."""

from __future__ import annotations

from textual.binding import Binding
from textual.content import Content
from textual.events import Click
from textual.screen import Screen
from textual.style import Style
from textual.widgets import Static


class KeysLine(Static):
    """A click on a key presses it. One widget: textual's footer makes one of each key, anew."""

    def __init__(self) -> None:
        super().__init__(id="keys")
        self._keys: list[tuple[str, str, str]] = []

    def on_mount(self) -> None:
        """Follow the focus."""
        self.screen.bindings_updated_signal.subscribe(self, self._show)

    def _show(self, screen: Screen[object]) -> None:
        if not self.app.app_focus:  # the terminal lost it: the keys are the same when it is back
            return
        shown: dict[str, Binding] = {}
        for _, binding, _, _ in screen.active_bindings.values():
            if binding.show:
                shown.setdefault(binding.action, binding)
        display = self.app.get_key_display
        keys = [(b.key, display(b), b.description) for b in shown.values()]
        if keys != self._keys:
            self._keys = keys
            self.update(Content("").join(_shown(*one) for one in keys), layout=False)

    def on_click(self, event: Click) -> None:
        """Press the key under the mouse."""
        key = event.style.meta.get("key")
        if key is not None:
            self.app.simulate_key(key)


def _shown(key: str, display: str, description: str) -> Content:
    line = Content.assemble((f" {display} ", "bold $footer-key-foreground"), f"{description} ")
    return line.stylize(Style.from_meta({"key": key}))
