"""Run as a child: one command, interrupted in one function of ours after the other.

    python -m tests.interrupting FUNCTION,FUNCTION... WORD...

Each function (``module:qualified.name``) gets a round: the command is run and gets SIGINT at the
function's first call, in whatever thread that is; then the catalog is checked, and the same
command is run undisturbed. ``{n}`` in a word is the number of the round, so that each can have
its own output. Prints one JSON object per round.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

import lorahub.__main__
import store
from lorahub import formats
from lorahub.workspace import Workspace
from tests.waiting import PATIENCE

OURS = tuple(str(Path(str(m.__file__)).parent) + os.sep for m in (lorahub, store))


class Interruption:
    """A profile function that sends this process SIGINT at the first call of one of ours."""

    def __init__(self, at: str | None) -> None:
        self.sent = False
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if self.sent or event != "call" or not code.co_filename.startswith(OURS):
            return
        if self._at == f"{Path(code.co_filename).stem}:{code.co_qualname}":
            self.sent = True
            # CPython 3.11 spins in a profiled thread until the main one has seen the signal, which
            # it does not where it was about to wait for just that thread.
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGINT)


def run(words: list[str], at: str | None = None) -> dict[str, object]:
    """Exit code, output and errors of a command, and whether it was interrupted."""
    interruption, code = Interruption(at), None
    out, err = io.StringIO(), io.StringIO()
    sys.argv[1:] = words
    threading.setprofile(interruption)
    sys.setprofile(interruption)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            lorahub.__main__.run()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    # What an interrupted command left behind must do no harm: let it come to its end.
    for thread in threading.enumerate():
        if thread.name == "pull_one":
            thread.join(PATIENCE)
    return {"sent": interruption.sent, "code": code, "out": out.getvalue(), "err": err.getvalue()}


def problems() -> list[str]:
    """What is wrong with the catalog and the files that it names."""
    with Workspace.open() as workspace:
        found = list(workspace.catalog.check())
        for row in workspace.adapters(limit=1000):
            adapter = workspace.get(row.name)
            if formats.inspect(adapter.origin.folder).content_hash != adapter.info.content_hash:
                found.append(f"{row.name} is not what was catalogued")
    return found


def main(functions: list[str], words: list[str]) -> None:
    assert problems() == []  # and the catalog is made
    for n, name in enumerate(functions):
        numbered = [word.replace("{n}", str(n)) for word in words]
        report = {"at": name} | run(numbered, name)
        report |= {"problems": problems(), "again": run(numbered)}
        sys.stdout.write(json.dumps(report) + "\n")
    assert problems() == []


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
