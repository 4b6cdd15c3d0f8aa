"""The terminal UI: a reader of the catalog, and a caller of the workspace and of ``lorahub``."""

import gc
import signal
import sys


def open_application() -> None:
    """Open the application on the workspace in effect, until the user leaves it.

    Raises:
        LorahubError: The configuration or the catalog cannot be used.
    """
    # All that a start makes stays; collections would go through it, find nothing, and take a
    # tenth of the time to the first paint. The application allows them after that.
    gc.disable()
    from lorahub.workspace import Workspace
    from tui.app import LorahubApp

    # Threads that read must not keep a key waiting: the interpreter's own 5 ms are a third of a
    # frame, and each of several waits in a paint can take them.
    sys.setswitchinterval(0.001)
    heed_interrupts()
    with Workspace.open() as workspace:
        LorahubApp(workspace).run()


def heed_interrupts() -> None:
    """Take SIGINT again where a shell that started this in its background had it ignored.

    Jobs would inherit that, and could not be cancelled.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
