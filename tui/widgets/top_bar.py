"""The first line: the screens with their keys, and how many jobs run."""

from __future__ import annotations

from textual.widgets import Static

from tui.acting import app_of
from tui.job import Job
from tui.screens.modes import NAMES


class TopBar(Static):
    """Screens by number; the present one stands in brackets."""

    def __init__(self, here: str) -> None:
        super().__init__(id="top-bar")
        self._here = here
        self._line = ""

    def on_mount(self) -> None:
        """Follow the jobs."""
        self.watch(app_of(self), "running", self._show)

    def _show(self, jobs: tuple[Job, ...]) -> None:
        active = sum(job.active for job in jobs)
        parts = []
        for number, name in enumerate(NAMES, 1):
            title = name.title() + (f" ({active})" if name == "run" and active else "")
            text = f"{number} {title}"
            shown = rf"[b]\[{text}][/b]" if name == self._here else f" {text} "
            parts.append(f"[@click=app.do('{name}')]{shown}[/]")
        line = "".join(parts)
        if line != self._line:
            self._line = line
            self.update(line, layout=False)
