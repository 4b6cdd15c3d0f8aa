"""Driving the terminal UI in tests: press keys, wait until it is idle, read the screen."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from textual.message_pump import MessagePump
from textual.notifications import Notification, Notifications
from textual.pilot import Pilot
from textual.worker import WorkerState

from lorahub.workspace import Workspace
from tests.waiting import PATIENCE
from tui.app import LorahubApp

NARROW, WIDE = (80, 24), (120, 36)
Scenario = Callable[["Terminal"], Awaitable[None]]


class Terminal:
    """One running application."""

    def __init__(self, app: LorahubApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def press(self, *keys: str) -> None:
        """Press keys, and wait until the application has answered each."""
        for key in keys:
            await self.pilot.press(key)
            await self.idle()

    async def type(self, text: str) -> None:
        """Type text without waiting in between."""
        await self.pilot.press(*("space" if c == " " else c for c in text))
        await self.idle()

    async def idle(self) -> None:
        """Wait until no worker but the watch over jobs runs and every message is handled."""
        quiet = rounds = 0
        while quiet < 2:
            await self.pilot.pause()
            rounds += 1
            busy = [
                w for w in self.app.workers
                if w.state in {WorkerState.PENDING, WorkerState.RUNNING} and w.name != "_watch_jobs"
            ]  # fmt: skip
            nodes = [self.app, *self.app.screen.walk_children(with_self=True)]
            # A message goes up widget by widget: each hop puts it into another queue.
            # A job that runs brings some all the time: then some rounds have to be enough.
            enough = rounds > 10 and any(job.active for job in self.app.running)
            waiting = all(_waits(node) for node in nodes if node.is_running)
            quiet = 0 if busy or not (waiting or enough) else quiet + 1
            await asyncio.sleep(0.005)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what another process does; fail with the screen if it does not come."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.screen
            await asyncio.sleep(0.02)
            await self.pilot.pause()
        await self.idle()

    async def done(self, verb: str) -> None:
        """Wait until the newest job of that verb has ended."""

        def ended() -> bool:
            jobs = [j for j in self.app.running if j.verb == verb]
            return bool(jobs) and not jobs[0].active

        await self.until(ended)

    @property
    def said(self) -> str:
        """What notifications have said, those too that are gone by now."""
        assert isinstance(self.app._notifications, Heard)
        return "\n".join(self.app._notifications.messages)

    @property
    def screen(self) -> str:
        """The screen as text, a line a line."""
        width, height = self.app.size
        console = Console(
            width=width, height=height, file=io.StringIO(), force_terminal=True, record=True,
            color_system=None, legacy_windows=False,
        )  # fmt: skip
        screen = self.app.screen
        console.print(
            screen._compositor.render_update(
                full=True, screen_stack=self.app._background_screens, simplify=True
            )
        )
        return console.export_text()


class Heard(Notifications):
    """Notifications whose messages are kept: on a busy machine they end before a test looks."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def add(self, notification: Notification) -> Notifications:
        self.messages.append(notification.message)
        return super().add(notification)


def _waits(node: MessagePump) -> bool:
    """Whether all of its messages are handled: a queue may be empty while one still is."""
    return not node.message_queue_size and bool(node._message_queue.ready_event._waiters)


def run(
    home: Path, scenario: Scenario, size: tuple[int, int] = WIDE, *, defects: bool = False
) -> LorahubApp:
    """Run a scenario on the application over a data folder; ``defects`` may show where expected."""

    async def main() -> LorahubApp:
        with Workspace.open(home) as workspace:
            app = LorahubApp(workspace)
            app._notifications = Heard()
            async with app.run_test(size=size) as pilot:
                terminal = Terminal(app, pilot)
                await terminal.idle()
                await scenario(terminal)
                assert defects or "defect of lorahub" not in terminal.said, terminal.said
            return app

    return asyncio.run(main())
