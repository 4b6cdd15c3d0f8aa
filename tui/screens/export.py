"""Copy an adapter into a folder: which files, how many bytes, then a job."""

from __future__ import annotations

import shlex
from pathlib import Path

from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Button, Input, Select, Static

from lorahub.errors import LorahubError
from lorahub.publishing import FORMATS
from tui import text
from tui.acting import app_of
from tui.messages import Complaint
from tui.screens.dialog import Dialog


class ExportDialog(Dialog[bool]):
    """True once the job is asked for."""

    class Weighed(Message):
        """The files that will be copied, with their sizes."""

        def __init__(self, files: tuple[tuple[str, int], ...]) -> None:
            super().__init__()
            self.files = files

    def __init__(self, name: str) -> None:
        super().__init__(f"Export {name}")
        self._adapter = name

    def body(self) -> ComposeResult:
        """Where to, what, and the command."""
        folder = Path.cwd() / self._adapter.rsplit("/", 1)[-1]
        yield Static("Folder, which must be new:")
        yield Input(str(folder), id="folder")
        yield Select(
            [(name, name) for name in FORMATS], value=FORMATS[0], allow_blank=False, id="format"
        )
        yield Static("reading ...", id="files")
        yield Static(id="made", classes="command")
        with Horizontal(classes="buttons"):
            yield Button("Cancel", id="no")
            yield Button("Export", id="yes", variant="primary")

    def on_mount(self) -> None:
        """Count bytes."""
        self._weigh()
        self._show_command()

    @work(thread=True, exit_on_error=False)
    def _weigh(self) -> None:
        workspace = app_of(self).workspace
        try:
            files = workspace.files(self._adapter)
            sizes = tuple((file.name, file.stat().st_size) for file in files)
        except LorahubError as error:
            self.post_message(Complaint(error))
            return
        except OSError as error:
            self.post_message(Complaint(LorahubError(f"{self._adapter}: {error}")))
            return
        self.post_message(self.Weighed(sizes))

    def on_export_dialog_weighed(self, event: Weighed) -> None:
        """Show the files."""
        total = sum(count for _, count in event.files)
        lines = [f"  {count:>14,}  {name}" for name, count in event.files]
        lines.append(f"  {total:>14,}  bytes in all ({text.size(total)})")
        self.query_one("#files", Static).update(text.shown("\n".join(lines)))

    def _words(self) -> list[str]:
        words = ["export", self._adapter, self.query_one("#folder", Input).value.strip()]
        chosen = str(self.query_one("#format", Select).value)
        return words if chosen == FORMATS[0] else [*words, "--format", chosen]

    def _show_command(self) -> None:
        line = f"$ lorahub {shlex.join(self._words())}"
        self.query_one("#made", Static).update(text.shown(line))

    def on_input_changed(self) -> None:
        """The command follows."""
        self._show_command()

    def on_select_changed(self) -> None:
        """Likewise."""
        self._show_command()

    def on_input_submitted(self) -> None:
        """Enter exports."""
        self._export()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        if event.button.id == "yes":
            self._export()
        else:
            self.dismiss(None)

    def _export(self) -> None:
        words = self._words()
        problem = None
        if not words[2]:
            problem = "name a folder"
        elif Path(words[2]).expanduser().exists():
            problem = f"{words[2]} exists: name a folder that does not"
        if problem:
            self.query_one("#files", Static).update(text.shown(problem))
            return
        app_of(self).submit([*words, "--json"], f"export {self._adapter}")
        self.dismiss(True)
