"""Verbs that keep the catalog and the disk in order: rm, gc, scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Refs
from lorahub.errors import ExitCode

if TYPE_CHECKING:
    from lorahub.keeping import Waste

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


def rm(
    references: Refs,
    files: Annotated[
        bool, typer.Option("--files", help="Also delete their folders in the data folder.")
    ] = False,
    dry_run: DryRun = False,
    as_json: sink.Json = False,
) -> None:
    """Remove adapters from the catalog; files of the Hub's cache and of yours stay."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("rm", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.remove(references, files=files, dry_run=dry_run, listener=listener)
    if as_json:
        sink.print_act("rm --dry-run" if dry_run else "rm", found)
        return
    state = "would be removed" if dry_run else "removed"
    sink.print_table(
        ("name", "state", "deleted", "merged into", "copies"),
        (
            (
                r.name,
                state,
                f"{r.bytes} bytes" if r.deleted else None,
                ", ".join(r.merged_into),
                ", ".join(r.exports + r.pushes),
            )
            for r in found
        ),
    )
    if any(r.merged_into for r in found):
        sink.note("what was merged from them keeps its lineage, and is verified with them only")


def gc(
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Also merged folders no catalog entry names.")
    ] = False,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Also adapters only in the Hub's cache; other tools use it."),
    ] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="Also catalog entries whose files are gone.")
    ] = False,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URL", help="Also uploads there without end.")
    ] = None,
    dry_run: DryRun = False,
    as_json: sink.Json = False,
) -> None:
    """Remove what killed processes left, and copies that are made again when needed."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("gc", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        swept = workspace.gc(
            orphans=orphans,
            cache=cache,
            missing=missing,
            store=store,
            dry_run=dry_run,
            listener=listener,
        )
    if as_json:
        body = {
            "bytes": swept.bytes,
            "removed": [_waste(w) for w in swept.removed],
            "failed": [{**_waste(w), "error": reason} for w, reason in swept.failed],
        }
        status = "partial" if swept.failed else "ok"
        sink.print_act("gc --dry-run" if dry_run else "gc", body, status=status)
    else:
        sink.print_table(
            ("kind", "what", "bytes", "why"),
            ((w.kind, w.what, w.bytes, w.why) for w in swept.removed),
        )
        sink.note(f"{'would free' if dry_run else 'freed'} {swept.bytes} bytes")
    for waste, reason in swept.failed:
        sink.note(f"error: {waste.what}: {reason}")
    if swept.failed:
        raise typer.Exit(ExitCode.PARTIAL)


def _waste(waste: Waste) -> dict[str, object]:
    return {"kind": waste.kind, "what": waste.what, "why": waste.why, "bytes": waste.bytes}


def scan(dry_run: DryRun = False, as_json: sink.Json = False) -> None:
    """Catalogue what lies in the Hub's cache and the data folder, with lineage."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("scan", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.scan(dry_run=dry_run, listener=listener)
    if as_json:
        status = "partial" if found.skipped else "ok"
        sink.print_act("scan --dry-run" if dry_run else "scan", found, status=status)
    else:
        sink.print_table(("name", "state"), ((name, "added") for name in found.added))
        sink.note(f"{len(found.added)} added, {found.known} known, {found.linked} parents linked")
    for what, reason in found.skipped:
        sink.note(f"error: {what}: {reason}")
    if found.skipped:
        raise typer.Exit(ExitCode.PARTIAL)
