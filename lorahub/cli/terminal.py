"""The verb that opens the terminal UI, which is also what plain ``lorahub`` does on a terminal."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.errors import ExitCode, UsageError


def plain(context: typer.Context) -> None:
    """Without a verb: the terminal UI on a terminal, the help elsewhere."""
    if context.invoked_subcommand is not None:
        return
    if _posix() and sys.stdin.isatty() and sys.stdout.isatty():
        tui()
        return
    sink.print_text(context.get_help())
    raise typer.Exit(ExitCode.USAGE)


def tui(
    web: Annotated[
        bool, typer.Option("--web", help="Serve it to a browser, at an address with a token.")
    ] = False,
    port: Annotated[int, typer.Option("--port", help="Port for --web; 0 takes a free one.")] = 0,
    host: Annotated[
        str, typer.Option("--host", help="Interface for --web; others than this machine's see it.")
    ] = "127.0.0.1",
) -> None:
    """Open the terminal UI: browse, compose, run, export."""
    with sink.errors("tui"):
        if not _posix():
            raise UsageError(
                "the terminal UI holds its jobs by POSIX locks and signals, which are missing here",
                hint="use the commands of `lorahub --help`, or WSL on Windows",
            )
        if web:
            from tui.web import serve

            serve(host, port, sink.note)
            return
        served = "TEXTUAL_DRIVER" in os.environ  # textual-serve draws it elsewhere
        if not (served or (sys.stdin.isatty() and sys.stdout.isatty())):
            raise UsageError("the terminal UI needs a terminal", hint="or --web, for a browser")
        from tui import open_application

        open_application()


def _posix() -> bool:
    return find_spec("fcntl") is not None
