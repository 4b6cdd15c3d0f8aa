"""The terminal UI: a reader of the catalog, and a caller of the workspace and of ``lorahub``."""

import sys


def open_application() -> None:
    """Open the application on the workspace in effect, until the user leaves it.

    Raises:
        LorahubError: The configuration or the catalog cannot be used.
    """
    from lorahub.workspace import Workspace
    from tui.app import LorahubApp

    # Threads that read must not keep a key waiting: the interpreter's own 5 ms are a third of a
    # frame, and each of several waits in a paint can take them.
    sys.setswitchinterval(0.001)
    with Workspace.open() as workspace:
        LorahubApp(workspace).run()
