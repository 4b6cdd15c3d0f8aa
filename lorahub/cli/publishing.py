"""Verbs that give adapters away: export, push."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Ref


def export(
    reference: Ref,
    place: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|URL", parser=sink.given, help="Folder to make, or a storage URL."
        ),
    ],
    format_name: Annotated[str, typer.Option("--format", help="peft, or equal-ranks.")] = "peft",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: sink.Json = False,
) -> None:
    """Write an adapter into a new folder: as it is, or with one rank for all modules."""
    from lorahub.workspace import Workspace

    with sink.errors("export", as_json=as_json), Workspace.open() as workspace:
        target = workspace.export(reference, place, format_name=format_name, replace=force)
        if as_json:
            sink.print_act("export", {"folder": str(target), "format": format_name})
        else:
            sink.print_text(str(target))


def push(
    reference: Ref,
    repo_id: Annotated[str, typer.Argument(metavar="owner/name", help="Repository.")],
    private: Annotated[bool, typer.Option("--private", help="Into a private one.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    message: Annotated[str | None, typer.Option("--message", help="Commit message.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go up.")] = False,
    remote: sink.Remote = None,
    endpoint: sink.Endpoint = None,
    token_env: sink.TokenEnv = None,
    as_json: sink.Json = False,
) -> None:
    """Publish an adapter on the Hub in one commit, with its card, record and recipe."""
    from lorahub.workspace import Workspace

    with sink.errors("push", as_json=as_json), Workspace.open() as workspace:
        pushed = workspace.push(
            reference,
            repo_id,
            private=private,
            create_pr=create_pr,
            message=message,
            dry_run=dry_run,
            remote=remote,
            endpoint=endpoint,
            token_env=token_env,
        )
        if as_json:
            sink.print_act("push", pushed)
            return
        state = "would push" if dry_run else "pushed" if pushed.changed else "unchanged"
        what = f"{len(pushed.files)} files, {sink.size(pushed.bytes)}"
        sink.print_text(f"{pushed.pr_url or pushed.url}\t{state}\t{what}")
