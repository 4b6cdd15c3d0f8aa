"""What becomes of running jobs when the application is left."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Button, Static

from tui import text
from tui.job import Job
from tui.screens.dialog import Dialog


class LeaveDialog(Dialog[str]):
    """``go on`` or ``stop``."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = [job for job in jobs if job.active]
        super().__init__(f"{len(self._jobs)} jobs are not done" if len(self._jobs) > 1 else
                         "A job is not done")  # fmt: skip

    def body(self) -> ComposeResult:
        """The jobs and the choice."""
        for job in self._jobs:
            yield Static(text.shown(f"  {job.state:8} {job.title}"))
        yield Static(
            "Running ones can go on without the application; waiting ones start when it is "
            "opened again. A stopped merge leaves nothing half-written."
        )
        with Horizontal(classes="buttons"):
            yield Button("Let them go on", id="go-on", variant="primary")
            yield Button("Stop them", id="stop", variant="error")
            yield Button("Stay", id="stay")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(None if event.button.id == "stay" else event.button.id)
