"""The terminal UI: a reader of the catalog, and a caller of the workspace and of ``lorahub``."""


def open_application() -> None:
    """Open the application on the workspace in effect, until the user leaves it.

    Raises:
        LorahubError: The configuration or the catalog cannot be used.
    """
    from lorahub.workspace import Workspace
    from tui.app import LorahubApp

    with Workspace.open() as workspace:
        LorahubApp(workspace).run()
