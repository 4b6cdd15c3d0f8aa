"""What Compose reads: the plan in a thread, conflicts and suggestions from child processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual import work
from textual.message import Message
from textual.worker import get_current_worker

from lorahub.errors import LorahubError
from tui.acting import app_of
from tui.draft import Draft
from tui.jobs import ask
from tui.messages import Complaint
from tui.planning import Outlook, outlook
from tui.screens.room import Room


class ComposeReading(Room):
    """The reads of Compose and their messages."""

    problem = ""

    class Planned(Message):
        """What a draft would come to."""

        def __init__(self, draft: Draft, outlook: Outlook) -> None:
            super().__init__()
            self.draft, self.outlook = draft, outlook

    class Compared(Message):
        """How the inputs conflict, or why that is not known."""

        def __init__(self, outcome: Mapping[str, Any] | LorahubError) -> None:
            super().__init__()
            self.outcome = outcome

    class Suggested(Message):
        """Keys of the recipe that were suggested, and why."""

        def __init__(self, changes: Mapping[str, Any], reason: str) -> None:
            super().__init__()
            self.changes, self.reason = changes, reason

    @work(thread=True, exclusive=True, group="plan")
    def read_outlook(self, draft: Draft) -> None:
        """Plan a draft."""
        found = outlook(app_of(self).workspace, draft)
        if not get_current_worker().is_cancelled:
            self.post_message(self.Planned(draft, found))

    @work(exclusive=True, group="compare")
    async def read_conflicts(self, names: list[str]) -> None:
        """Compare the inputs."""
        try:
            self.post_message(self.Compared(await ask(app_of(self).home, ["compare", *names])))
        except LorahubError as error:
            self.post_message(self.Compared(error))

    @work(exclusive=True, group="suggest")
    async def read_suggestion(self, names: list[str]) -> None:
        """Ask for a method."""
        try:
            found = await ask(app_of(self).home, ["suggest", *names])
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        keys = ("method", "parameters", "scale", "normalize", "budget", "allocate")
        changes = {k: found.get(k) for k in keys}
        reasons = found.get("reasons") or found.get("reason") or ""
        why = "; ".join(reasons) if isinstance(reasons, list) else str(reasons)
        self.post_message(self.Suggested(changes, f"{found.get('method')}: {why}"))
