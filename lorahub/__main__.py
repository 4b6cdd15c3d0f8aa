"""The ``lorahub`` command, also as ``python -m lorahub``.

It imports next to nothing itself, so that Ctrl-C ends it in the same way from the start.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from lorahub.errors import ExitCode


def run() -> None:
    """Entry point of the ``lorahub`` command."""
    # The Hub client's own log lines and bars would mix with ours; it reads these when imported.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _run()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if end.code == ExitCode.INTERRUPTED:
            _interrupted()
        raise
    finally:
        # The interpreter's last collection would visit every object the imports made, to find
        # nothing; on a listing that is a fifth of its time.
        gc.freeze()


def _run() -> None:
    from lorahub.cli import sink
    from lorahub.cli.main import app

    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # of a file, not of stdout
            raise
        sink.unwritten(error)


def _interrupted() -> NoReturn:
    sys.stderr.write("interrupted: nothing half-written is left; repeat the command to go on\n")
    raise SystemExit(ExitCode.INTERRUPTED) from None


if __name__ == "__main__":
    run()
