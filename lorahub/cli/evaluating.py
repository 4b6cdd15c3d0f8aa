"""Verbs that score adapters."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Refs
from lorahub.errors import ExitCode, LorahubError
from lorahub.events import Finished

With = Annotated[
    str, typer.Option("--with", metavar="SUITE", help="factors, or the file of a suite.")
]


def evaluate(
    references: Refs,
    suite: With = "factors",
    events: sink.Events = None,
    as_json: sink.Json = False,
) -> None:
    """Score adapters by their factors, or by a command or function of yours."""
    lines = events is not None
    with sink.errors("eval", as_json=as_json, events=lines):
        from lorahub.workspace import Workspace

        with sink.progress(events=lines) as listener, Workspace.open() as workspace:
            found = list(workspace.evaluate(references, suite, listener=listener))
        failed = [error for _, error in found if isinstance(error, LorahubError)]
        if failed and len(found) == 1:
            raise failed[0]
        status = "ok" if not failed else "partial" if len(failed) < len(found) else "error"
        rows = [
            {"name": name, "figures": None, "error": {"code": f.code, "message": f.message}}
            if isinstance(f, LorahubError)
            else {"name": name, "figures": f, "error": None}
            for name, f in found
        ]
        if lines:
            sink.print_event(Finished({"status": status, "adapters": rows}))
        elif as_json:
            sink.print_act("eval", rows, status=status)
        else:
            sink.print_table(
                ("adapter", "figure", "value"),
                (
                    (name, key, f"{value:.4g}")
                    for name, figures in found
                    if not isinstance(figures, LorahubError)
                    for key, value in figures.items()
                ),
            )
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)
