"""The verb that brings adapters in: pull."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import discovering, sink
from lorahub.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from lorahub.pulling import Pulled


def pull(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REF...]", help="owner/name[@revision], a folder, or its URL."),
    ] = None,
    base: discovering.Base = None,
    task: discovering.Task = None,
    author: discovering.Author = None,
    license_name: discovering.License = None,
    words: discovering.Search = None,
    sort: discovering.Sorted = "downloads",
    limit: discovering.Limit = 20,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Fetch every file of the repository.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Catalog name.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Convert .bin weights (plain tensors only).")
    ] = False,
    remote: sink.Remote = None,
    endpoint: sink.Endpoint = None,
    token_env: sink.TokenEnv = None,
    events: sink.Events = None,
    as_json: sink.Json = False,
) -> None:
    """Bring adapters into the catalog: those named, or those that `discover` finds."""
    from lorahub.workspace import Workspace

    lines = events is not None
    with (
        sink.errors("pull", as_json=as_json, events=lines),
        sink.progress(events=lines) as listener,
        Workspace.open() as workspace,
    ):
        where: dict[str, Any] = {"remote": remote, "endpoint": endpoint, "token_env": token_env}
        chosen = (base, task, author, license_name, words)
        if any(chosen):
            if references:
                raise UsageError("name adapters, or say what to look for, not both")
            query = discovering.query(*chosen, sort, limit)
            found = workspace.discover(query, headers=False, **where)
            references = [f"hf://{d.listed.repo_id}" for d in found]
            if not references:
                sink.note("nothing found")
                report((), as_json=as_json, events=lines)
                return
        pulled = workspace.pull(
            references or [],
            name=name,
            all_files=all_files,
            allow_pickle=allow_pickle,
            listener=listener,
            **where,
        )
        report(pulled, as_json=as_json, events=lines)


def report(pulled: tuple[Pulled, ...], *, as_json: bool, events: bool = False) -> None:
    """Print what became of every reference; leaves with an exit code where one failed."""
    failed = [p for p in pulled if p.error is not None]
    if len(pulled) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    rows = [
        {
            "reference": p.reference,
            "state": p.state,
            "name": p.adapter.name if p.adapter else None,
            "revision": p.adapter.origin.revision if p.adapter else None,
            "content_hash": p.adapter.info.content_hash if p.adapter else None,
            "error": p.error and sink.plain_error(p.error),
        }
        for p in pulled
    ]
    status = sink.status(len(failed), len(pulled))
    event = {"status": status, "pulled": rows}
    answered = sink.answered(
        "pull", rows, as_json=as_json, events=events, status=status, event=event
    )
    for p in pulled:
        if p.adapter is not None and not answered:
            info = p.adapter.info
            sink.print_text(f"{p.adapter.name}\t{p.state}\t{len(info.modules)} modules")
        if p.error is not None:
            sink.failure(p.reference, p.error)
    if len(pulled) > 1:
        counts = Counter(p.state for p in pulled)
        sink.note(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)
