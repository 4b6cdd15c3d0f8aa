"""What Browse does with one adapter: copy, look, verify, remove, pull, export, push.

Dialogs are imported when they are opened: the first paint does not wait for them.
"""

from __future__ import annotations

from store import AdapterSummary
from tui.acting import app_of
from tui.screens.browse_reading import BrowseReading


class BrowseDeeds(BrowseReading):
    """The deeds that are done elsewhere: in a job, a dialog or another screen."""

    @property
    def row(self) -> AdapterSummary | None:
        """The adapter under the cursor."""
        raise NotImplementedError

    @property
    def chosen(self) -> str:
        """Its name, where there is one."""
        assert self.row is not None
        return self.row.name

    def do_copy(self) -> None:
        """The adapter's name."""
        app_of(self).copy(self.chosen)

    def do_look(self) -> None:
        """To Inspect."""
        app_of(self).action_do("inspect")

    def do_verify(self) -> None:
        """As a job."""
        words = ["verify", self.chosen, "--json"]
        app_of(self).submit(words, f"verify {self.chosen}")

    def do_remove(self) -> None:
        """After a question."""
        from tui.screens.confirm import ConfirmDialog

        name = self.chosen
        dialog = ConfirmDialog(
            f"Take {name} out of the catalog?",
            "Its files stay where they are; `lorahub pull` brings it back.",
            f"lorahub rm {name}",
        )

        def answered(yes: bool | None) -> None:
            if yes:
                self.take_out(name)

        self.app.push_screen(dialog, answered)

    def do_pull(self) -> None:
        """Ask for a reference."""
        from tui.screens.ask import AskDialog

        dialog = AskDialog("Pull", "owner/name[@revision], or a folder", "lorahub pull")
        self.app.push_screen(dialog, self._pull)

    def _pull(self, reference: str | None) -> None:
        if reference:
            app_of(self).submit(["pull", reference, "--events", "jsonl"], f"pull {reference}")

    def do_export(self) -> None:
        """Ask where to."""
        from tui.screens.export import ExportDialog

        self.app.push_screen(ExportDialog(self.chosen))

    def do_push(self) -> None:
        """Ask where to."""
        from tui.screens.push import PushDialog

        self.app.push_screen(PushDialog(self.chosen))
