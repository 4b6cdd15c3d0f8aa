"""Verbs on the catalog: ls, search, show, rm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink
from lorahub.errors import UsageError

if TYPE_CHECKING:
    from lorahub.workspace import Workspace
    from store import AdapterSummary, Evaluation

Ref = Annotated[str, typer.Argument(metavar="REF", help="Catalog name, id, folder or Hub id.")]
Refs = Annotated[list[str], typer.Argument(metavar="REF...", help="One or more adapters.")]


def ls(
    base: Annotated[str | None, typer.Option("--base", help="Part of the base model.")] = None,
    rank: Annotated[
        str | None, typer.Option("--rank", help="Rank or range: 8, 8..16, ..16, 8..")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="Merged by this method.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="hub, folder or merge.")] = None,
    sort: Annotated[str, typer.Option("--sort", help="name, created, rank, size, base.")] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", help="Descending order.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows to show.")] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Rows to skip.")] = 0,
    as_json: sink.Json = False,
) -> None:
    """List the catalog."""
    from lorahub.workspace import Workspace
    from store import AdapterFilter

    with sink.errors("ls", as_json=as_json), Workspace.open() as workspace:
        if source not in {None, "hub", "folder", "merge"}:
            raise UsageError(f"--source '{source}' is not hub, folder or merge")
        where = AdapterFilter(base=base, rank=parse_range(rank), method=method, source=source)
        rows = workspace.adapters(where, sort=sort, descending=reverse, limit=limit, offset=offset)
        total = workspace.catalog.count(where)
        _print_rows(rows, workspace, as_json=as_json)
        if total > offset + len(rows):
            sink.note(f"{len(rows)} of {total}; more with --offset {offset + len(rows)}")
        if total == 0:
            sink.note("nothing here: `lorahub pull REF` brings adapters in")


def parse_range(text: str | None) -> tuple[int | None, int | None] | None:
    """``8``, ``8..16``, ``..16`` or ``8..`` as bounds.

    Raises:
        UsageError: Anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)|(\d*)\.\.(\d*)", text)
    if match is None:
        raise UsageError(f"--rank '{text}' is no range", hint="write 8, 8..16, ..16 or 8..")
    if match[1]:
        return int(match[1]), int(match[1])
    return int(match[2]) if match[2] else None, int(match[3]) if match[3] else None


def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="Words to look for.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows to show.")] = 50,
    as_json: sink.Json = False,
) -> None:
    """Search names, base models, tags, targets and cards."""
    from lorahub.workspace import Workspace

    with sink.errors("search", as_json=as_json), Workspace.open() as workspace:
        rows = workspace.search(" ".join(words), limit=limit)
        _print_rows(rows, workspace, as_json=as_json)
        if not rows:
            sink.note("nothing found")


def _print_rows(rows: list[AdapterSummary], workspace: Workspace, *, as_json: bool) -> None:
    if as_json:
        scored = workspace.catalog.evaluations([r.id for r in rows])
        sink.print_json([sink.plain(r) | {"evaluations": _figures(scored, r.id)} for r in rows])
        return
    sink.print_table(
        ("name", "base", "rank", "targets", "dtype", "size", "source", "method", "mergeable"),
        (
            (
                r.name,
                r.base_model,
                r.rank_max if r.rank_min == r.rank_max else f"{r.rank_min}..{r.rank_max}",
                ",".join(r.targets),
                r.dtype,
                sink.size(r.weights_bytes),
                r.source,
                r.method,
                "yes" if r.mergeable else "no",
            )
            for r in rows
        ),
    )


def _figures(scored: Mapping[int, Sequence[Evaluation]], adapter_id: int) -> dict[str, Any]:
    return {e.suite: dict(e.figures) for e in scored.get(adapter_id, ())}


def show(reference: Ref, as_json: sink.Json = False) -> None:
    """Show one adapter: what it is, where it came from, its modules and lineage."""
    from lorahub.lineage import drawn
    from lorahub.workspace import Workspace

    with sink.errors("show", as_json=as_json), Workspace.open() as workspace:
        adapter = workspace.get(reference)
        parents = workspace.parents(adapter)
        children = workspace.catalog.children(adapter.id)
        info, origin = adapter.info, adapter.origin
        if as_json:
            body = sink.plain(adapter)
            body["content_hash"] = info.content_hash
            body["evaluations"] = sink.plain(workspace.evaluations(adapter))
            body["exports"] = sink.plain(workspace.catalog.exports(adapter.id))
            body["parents"], body["children"] = sink.plain(parents), list(children)
            sink.print_json(body)
            return
        facts = [
            ("name", adapter.name),
            ("id", info.content_hash[:16]),
            ("source", origin.source.value),
            ("repository", f"{origin.repo_id}@{origin.revision}" if origin.repo_id else None),
            ("folder", str(origin.folder)),
            ("format", info.format),
            ("type", info.peft_type),
            ("base model", info.base_model),
            ("task", info.task_type),
            ("ranks", ", ".join(map(str, info.ranks))),
            ("targets", ", ".join(info.targets)),
            ("modules", str(len(info.modules))),
            ("parameters", f"{info.parameters:,}"),
            ("dtype", info.dtype),
            ("size", sink.size(info.weights_bytes)),
            ("licence", info.license),
            ("tags", ", ".join(info.tags)),
            ("method", adapter.method),
            ("merged into", ", ".join(children)),
        ]
        exports = workspace.catalog.exports(adapter.id)
        facts += [("exported to", f"{e.folder} ({e.format})") for e in exports]
        facts += [
            (e.suite, ", ".join(f"{key} {value:.4g}" for key, value in e.figures.items()))
            for e in workspace.evaluations(adapter)
        ]
        facts += [("not mergeable", r.message) for r in info.refusals]
        facts += [("warning", w) for w in info.warnings]
        sink.print_table(("field", "value"), [f for f in facts if f[1]])
        if parents:
            for line in drawn(workspace.lineage(reference)):
                sink.print_text(line)


def rm(
    references: Refs,
    files: Annotated[
        bool, typer.Option("--files", help="Also delete merged folders in the data folder.")
    ] = False,
    as_json: sink.Json = False,
) -> None:
    """Remove adapters from the catalog; files of the Hub's cache and of yours stay."""
    from lorahub.workspace import Workspace

    with sink.errors("rm", as_json=as_json), Workspace.open() as workspace:
        removed = workspace.remove(references, files=files)
        if as_json:
            sink.print_act("rm", [a.name for a in removed])
        else:
            for adapter in removed:
                sink.print_text(f"{adapter.name}\tremoved")
