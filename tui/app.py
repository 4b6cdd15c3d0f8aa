"""The application: it wires screens to one workspace and to the jobs, and remembers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from textual import work
from textual.app import App, SystemCommand
from textual.message import Message
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.worker import get_current_worker

from lorahub.adapter import Adapter
from lorahub.errors import LorahubError
from lorahub.workspace import Workspace
from tui import text, themes
from tui.acting import Acting
from tui.actions import bindings
from tui.draft import Draft, Edits, from_body
from tui.job import Job
from tui.jobs import Jobs
from tui.messages import CatalogChanged, Complaint
from tui.screens import modes
from tui.state import State, load_keymap, load_state, save_state

BEAT = 0.05
"""Seconds between two looks at running jobs: 20 a second at most reach the screen."""
IDLE_BEAT = 1.0
PATIENCE = 10.0
"""Seconds until the next try where jobs could not be started."""


class LorahubApp(Acting, App[None]):
    """lorahub in a terminal."""

    scope = "app"
    TITLE = "lorahub"
    CSS_PATH = "styles.tcss"
    BINDINGS = bindings("app")
    MODES = modes.MODES
    DEFAULT_MODE = "browse"
    ENABLE_COMMAND_PALETTE = False  # its key would hide the one of `tui.actions`
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 - as textual declares it
        (0, "-narrow"),
        (100, "-wide"),
        (160, "-huge"),
    ]

    basket: reactive[tuple[Adapter, ...]] = reactive(())
    draft: reactive[Draft] = reactive(Draft())
    command: reactive[str] = reactive("lorahub")
    running: reactive[tuple[Job, ...]] = reactive(())

    class Resolved(Message):
        """The recipe's inputs as adapters of the catalog; what is not there is left out."""

        def __init__(self, basket: tuple[Adapter, ...]) -> None:
            super().__init__()
            self.basket = basket

    class Polled(Message):
        """What is known of the jobs now."""

        def __init__(self, jobs: tuple[Job, ...]) -> None:
            super().__init__()
            self.jobs = jobs

    def __init__(self, workspace: Workspace) -> None:
        self.state: State = load_state(workspace.config.home)
        # The screen of the last end is the first one: to make textual's own and switch would
        # lay out, style and paint twice.
        if self.state.screen in modes.MODES:
            self.DEFAULT_MODE = self.state.screen  # type: ignore[misc]  # read once, by the next
        super().__init__()
        self.use_command_palette = True
        self.workspace = workspace
        self.home: Path = workspace.config.home
        self.jobs = Jobs(self.home)
        self.edits = Edits(_draft_of(self.state))
        for theme in themes.THEMES:
            self.register_theme(theme)
        names = {theme.name for theme in themes.THEMES}
        self.theme = self.state.theme if self.state.theme in names else themes.DARK.name

    def on_mount(self) -> None:
        """Put everything back where it was."""
        keys, problems = load_keymap(self.home)
        self.set_keymap(dict(keys))
        for problem in problems:
            self.notify(problem, severity="warning", timeout=10, markup=False)
        self.draft = self.edits.draft
        self._watch_jobs()
        self.call_after_refresh(_spare_collections)

    def on_unmount(self) -> None:
        """Remember where the user was."""
        self.jobs.close()
        self.remember()
        gc.unfreeze()

    def remember(self, **changes: object) -> None:
        """Change the state and keep it for the next start."""
        inputs = self.draft.inputs
        state = replace(
            self.state,
            theme=self.theme,
            recipe=self.draft.body if inputs else {},
            muted=[dict(i.source) for i in inputs if i.muted],
        )
        self.state = replace(state, **changes)  # type: ignore[arg-type]  # a State's own fields
        save_state(self.home, self.state)

    # Work in threads

    @work(thread=True, exclusive=True, group="resolve", exit_on_error=False)
    def _resolve(self, names: tuple[str, ...]) -> None:
        found = []
        for name in names:
            try:
                found.append(self.workspace.get(name))
            except LorahubError:
                continue  # the plan says what is wrong with it
        if not get_current_worker().is_cancelled:
            self.post_message(self.Resolved(tuple(found)))

    @work(thread=True, exit_on_error=False)
    def _watch_jobs(self) -> None:
        worker = get_current_worker()
        before: tuple[Job, ...] | None = None
        while not (worker.is_cancelled or self.jobs.closed):
            self.jobs.changed.clear()
            try:
                now = self.jobs.poll()
            except LorahubError as error:
                self.post_message(Complaint(error))
                self.jobs.changed.wait(PATIENCE)
                continue
            if now != before:
                self.post_message(self.Polled(now))
                before = now
            self.jobs.changed.wait(BEAT if any(j.active for j in now) else IDLE_BEAT)

    def watch_draft(self, before: Draft, now: Draft) -> None:
        """The basket is the recipe's inputs."""
        self.remember()
        names = tuple(i.adapter for i in now.inputs)
        if names != tuple(a.name for a in self.basket):
            self._resolve(names)

    def on_lorahub_app_resolved(self, event: Resolved) -> None:
        """Take over what was found."""
        self.basket = event.basket

    def on_lorahub_app_polled(self, event: Polled) -> None:
        """Show the jobs, and say what ended well or badly."""
        before = {j.name: j for j in self.running}
        self.running = event.jobs
        for job in event.jobs:
            earlier = before.get(job.name)
            if job.active or earlier is None or not earlier.active:
                continue
            if job.state == "finished":
                self.notify(f"{job.title}: done", markup=False)
                self.announce_change()
            else:
                self.notify(f"{job.title}: {job.error}", severity="error", timeout=8, markup=False)

    def on_complaint(self, event: Complaint) -> None:
        """Something could not be done."""
        self.complain(event.error)

    def announce_change(self) -> None:
        """Tell every screen that the catalog changed."""
        for stack in self._screen_stacks.values():
            for screen in stack:
                screen.post_message(CatalogChanged())

    # What screens ask for

    def submit(self, words: Iterable[str], title: str, recipe: str | None = None) -> None:
        """Start a job, or say why it cannot start."""
        try:
            self.jobs.submit(list(words), title, recipe)
        except LorahubError as error:
            self.complain(error)
        else:
            self.notify(f"{title}: asked for; see Run (3)", markup=False)

    def complain(self, error: LorahubError) -> None:
        """Show an error with what to do about it."""
        self.notify(text.spoken(error), severity="error", timeout=10, markup=False)

    def edit(self, draft: Draft, *, typing: bool = False) -> None:
        """Take a changed recipe; it can be undone."""
        if self.edits.change(draft, typing=typing):
            self.draft = draft

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: what can be done now, by the screen in sight and everywhere."""
        for node in (screen, self):
            if isinstance(node, Acting):
                for action in node.actions_now():
                    yield SystemCommand(action.title, action.help, _caller(node, action.name))

    # Actions

    def why_not(self, name: str) -> str | None:
        """Dialogs keep to themselves: screens change only where none is open."""
        if name in modes.MODES and len(self.screen_stack) > 1:
            return "finish the dialog first, or leave it with escape"
        return None

    def action_do(self, name: str) -> None:
        """Screens are actions by their names; the others as everywhere."""
        if name in modes.MODES and self.why_not(name) is None:
            self.call_next(self._go, name)
            return
        super().action_do(name)

    async def _go(self, screen: str) -> None:
        await self.switch_mode(screen)
        self.remember(screen=screen)

    def do_help(self) -> None:
        """Show the keys."""
        from tui.screens.help import HelpDialog

        self.push_screen(HelpDialog(self.screen))

    def do_palette(self) -> None:
        """Open the palette."""
        self.action_command_palette()

    def do_jump(self) -> None:
        """Letters on every pane."""
        from tui.screens.jump import JumpDialog

        screen = self.screen

        def focus(pane: Widget | None) -> None:
            if pane is not None:
                screen.set_focus(pane)

        self.push_screen(JumpDialog(screen), focus)

    def do_theme(self) -> None:
        """The next theme."""
        self.theme = themes.following(self.theme)
        self.remember()

    def do_copy_command(self) -> None:
        """Copy the command line."""
        self.copy(self.command)

    def copy(self, text: str) -> None:
        """Put text into the clipboard and say so."""
        self.copy_to_clipboard(text)
        self.notify(f"copied: {text.splitlines()[0] if text else ''}", markup=False)

    def do_quit(self) -> None:
        """Leave; where jobs run, ask what becomes of them."""
        if any(job.active for job in self.running):
            from tui.screens.leave import LeaveDialog

            self.push_screen(LeaveDialog(self.running), self._leave)
        else:
            self.exit()

    def _leave(self, answer: str | None) -> None:
        if answer == "stop":
            self.jobs.stop_all()
        if answer is not None:
            self.exit()


def _spare_collections() -> None:
    """What is there at the first paint stays: no later collection visits it, while a key waits."""
    gc.freeze()
    gc.enable()


def _draft_of(state: State) -> Draft:
    """The recipe as it was left; an empty one where it cannot be read."""
    try:
        return from_body(state.recipe, state.muted) if state.recipe else Draft()
    except (LorahubError, KeyError, TypeError):
        return Draft()


def _caller(node: Acting, name: str) -> Callable[[], None]:
    return lambda: node.action_do(name)
