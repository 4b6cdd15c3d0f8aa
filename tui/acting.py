"""How screens, widgets and the application answer to the actions of `tui.actions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.message_pump import MessagePump
from textual.worker import Worker, WorkerState

from tui.actions import Action, of_scope

if TYPE_CHECKING:
    from tui.app import LorahubApp


class Working(MessagePump):
    """Says when one of its workers fails for a reason that nobody foresaw, and goes on."""

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Show the error; everything foreseen comes as a message instead."""
        if event.state is WorkerState.ERROR:
            self.app.notify(
                f"{type(event.worker.error).__name__}: {event.worker.error}\n"
                "This is a defect of lorahub: please report it.",
                severity="error", timeout=20, markup=False,
            )  # fmt: skip


class Acting(Working):
    """Answers action ``x`` of its scope with its method ``do_x``, or says why not."""

    scope: str = ""

    def why_not(self, name: str) -> str | None:
        """Why the action cannot be done now, as a sentence with what to do; None if it can."""
        return None

    def actions_now(self) -> tuple[Action, ...]:
        """The actions of its scope that can be done now."""
        return tuple(a for a in of_scope(self.scope) if self.why_not(a.name) is None)

    def action_do(self, name: str) -> None:
        """Do an action, or say why it cannot be done."""
        reason = self.why_not(name)
        if reason is not None:
            self.app.notify(reason, severity="warning", timeout=4, markup=False)
            return
        getattr(self, f"do_{name}")()


def app_of(node: MessagePump) -> LorahubApp:
    """The application a widget or screen lives in."""
    return cast("LorahubApp", node.app)
