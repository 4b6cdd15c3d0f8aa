"""What Compose reads: the plan in a thread, conflicts and suggestions from child processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual import work
from textual.markup import escape
from textual.message import Message
from textual.worker import get_current_worker

from lorahub.errors import LorahubError
from tui.acting import app_of
from tui.draft import Draft
from tui.jobs import ask
from tui.messages import Complaint
from tui.planning import Energy, Outlook, outlook
from tui.screens.room import Room
from tui.widgets.page import Page


class ComposeReading(Room):
    """The reads of Compose and their messages."""

    problem = ""
    energy = Energy()

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
        """Keys of the recipe and weights that were suggested, and what else was said."""

        def __init__(
            self,
            changes: Mapping[str, Any],
            weights: Mapping[str, float],
            found: Mapping[str, Any],
        ) -> None:
            super().__init__()
            self.changes, self.weights, self.found = changes, weights, found

        @property
        def reason(self) -> str:
            """Why, and the runners-up, in plain words."""
            others = (f"or {o['method']}: {o['reason']}" for o in self.found["others"])
            choice = self.found["choice"]
            return "\n".join([f"{choice['method']}: {choice['reason']}", *others])

    @work(thread=True, exclusive=True, group="plan", exit_on_error=False)
    def read_outlook(self, draft: Draft) -> None:
        """Plan a draft."""
        found = outlook(app_of(self).workspace, draft, self.energy)
        if not get_current_worker().is_cancelled:
            self.post_message(self.Planned(draft, found))

    @work(exclusive=True, group="compare", exit_on_error=False)
    async def read_conflicts(self, names: list[str]) -> None:
        """Compare the inputs."""
        try:
            self.post_message(self.Compared(await ask(app_of(self).home, ["compare", *names])))
        except LorahubError as error:
            self.post_message(self.Compared(error))

    @work(exclusive=True, group="suggest", exit_on_error=False)
    async def read_suggestion(self, names: list[str]) -> None:
        """Ask for a method."""
        try:
            found = await ask(app_of(self).home, ["suggest", *names])
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        choice = found["choice"]
        keys = ("method", "scale", "parameters", "budget", "normalize")
        changes = {key: choice[key] or None for key in keys}
        changes["scale"] = _short(choice["scale"])
        weights = {n: _short(w) for n, w in zip(names, found["weights"], strict=True)}
        self.post_message(self.Suggested(changes, weights, found))

    def say_plan(self, outlook: Outlook) -> None:
        """Show a plan, or what stands in its way."""
        warnings = (("warning", warning) for warning in outlook.warnings)
        facts = [("problem", outlook.problem), *outlook.facts, *warnings]
        self.query_one("#plan", Page).show_facts(facts)
        # In sight from every tab: the text that is wrong is not on the plan's.
        first = outlook.problem.partition("\n")[0]
        self.query_one("#compose-right").border_subtitle = f"! {escape(first)}" if first else ""
        self.problem = outlook.problem


def _short(value: float) -> float:
    """A number that a user reads and changes: four digits of it."""
    return float(f"{value:.4g}")
