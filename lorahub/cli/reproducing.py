"""The verb that makes a published merge again: repro."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.errors import ExitCode


def repro(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF|CARD", help="A merged adapter, its folder, README.md or recipe.yaml."
        ),
    ],
    device: sink.Device = "cpu",
    workers: sink.Workers = None,
    remote: sink.Remote = None,
    endpoint: sink.Endpoint = None,
    token_env: sink.TokenEnv = None,
    as_json: sink.Json = False,
) -> None:
    """Pull the sources of a published merge, merge them again and compare the bytes."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("repro", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        done = workspace.repro(
            reference,
            device=device,
            workers=workers,
            remote=remote,
            endpoint=endpoint,
            token_env=token_env,
            listener=listener,
        )
        if as_json:
            body = {**sink.plain(done), "same": done.same}
            sink.print_act("repro", body, status="ok" if done.same else "error")
        else:
            sink.print_table(
                ("file", "published", "made again", "same"),
                (
                    (f.name, f.published, f.remade, "yes" if f.published == f.remade else "no")
                    for f in done.files
                ),
            )
        if not done.same:
            differ = ", ".join(f.name for f in done.files if f.published != f.remade)
            sink.note(f"error: {done.where}: made again, {differ} has other bytes")
            for note in done.notes:
                sink.note(f"hint: {note}")
            raise typer.Exit(ExitCode.FAILURE)
