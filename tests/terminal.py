"""Driving the terminal UI in tests: press keys, wait until it is idle, read the screen."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from textual.pilot import Pilot
from textual.worker import WorkerState

from lorahub.workspace import Workspace
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
        quiet = 0
        while quiet < 2:
            await self.pilot.pause()
            busy = [
                w for w in self.app.workers
                if w.state in {WorkerState.PENDING, WorkerState.RUNNING} and w.name != "_watch_jobs"
            ]  # fmt: skip
            nodes = [self.app, *self.app.screen.walk_children(with_self=True)]
            # A message goes up widget by widget: each hop puts it into another queue.
            # A job that runs brings some all the time: then two rounds have to be enough.
            going = any(job.active for job in self.app.running)
            waiting = any(node.message_queue_size for node in nodes if node.is_running)
            quiet = 0 if busy or (waiting and not going) else quiet + 1
            await asyncio.sleep(0.005)

    async def until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Wait for what another process does; fail with the screen if it does not come."""
        end = time.monotonic() + seconds
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
        """What notifications say."""
        return "\n".join(n.message for n in self.app._notifications)

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


def run(
    home: Path, scenario: Scenario, size: tuple[int, int] = WIDE, *, defects: bool = False
) -> LorahubApp:
    """Run a scenario on the application over a data folder; ``defects`` may show where expected."""

    async def main() -> LorahubApp:
        with Workspace.open(home) as workspace:
            app = LorahubApp(workspace)
            async with app.run_test(size=size) as pilot:
                terminal = Terminal(app, pilot)
                await terminal.idle()
                await scenario(terminal)
                assert defects or "defect of lorahub" not in terminal.said, terminal.said
            return app

    return asyncio.run(main())
