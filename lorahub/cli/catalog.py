"""Verbs on the catalog: ls, search, show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink

if TYPE_CHECKING:
    from lorahub.workspace import Workspace
    from store import AdapterSummary, Evaluation

Ref = Annotated[str, typer.Argument(metavar="REF", help="Catalog name, id, folder or Hub id.")]
Refs = Annotated[list[str], typer.Argument(metavar="REF...", help="One or more adapters.")]
BaseFilter = Annotated[
    str | None, typer.Option("--base", help="Base model by any of its names, or a part of one.")
]


def ls(
    base: BaseFilter = None,
    rank: Annotated[
        str | None, typer.Option("--rank", help="Rank or range: 8, 8..16, ..16, 8..")
    ] = None,
    alpha: Annotated[str | None, typer.Option("--alpha", help="Alpha or range.")] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Has this module type (repeatable).")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Has this tag (repeatable).")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="F32, F16, BF16 or mixed.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Size range: 10MB..50MB, ..1GB, 512KiB..")
    ] = None,
    license: Annotated[  # noqa: A002 - the name of the option
        str | None, typer.Option("--license", help="Licence its card states.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="PEFT task type.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Merged by this method.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="hub, store, folder, merge or extract.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Catalogued then or later: 2026-01-31 (UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Catalogued then or before, that day included.")
    ] = None,
    used_in: Annotated[
        str | None, typer.Option("--used-in", metavar="REF", help="Parents of this merged adapter.")
    ] = None,
    words: Annotated[
        str | None,
        typer.Option("--search", help="Has these words, best first; as `lorahub search`."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option("--sort", help="name, created, rank, size, base, or a suite's SUITE.FIGURE."),
    ] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", help="Descending order.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows to show.")] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Rows to skip.")] = 0,
    facets: Annotated[
        bool, typer.Option("--facets", help="Count the values there are to filter by, instead.")
    ] = False,
    as_json: sink.Json = False,
) -> None:
    """List the catalog."""
    from lorahub.filters import parse_filter
    from lorahub.workspace import Workspace

    with sink.errors("ls", as_json=as_json), Workspace.open() as workspace:
        where = parse_filter(
            base=base,
            rank=rank,
            alpha=alpha,
            targets=target or (),
            tags=tag or (),
            dtype=dtype,
            size=size,
            license=license,
            task=task,
            source=source,
            method=method,
            since=since,
            until=until,
            used_in=workspace.get(used_in).name if used_in else None,
        )
        if facets:
            _print_facets(workspace.facets(where), as_json=as_json)
            return
        if words:
            rows = workspace.search(words, limit=limit, offset=offset, where=where)
            _print_rows(rows, workspace, as_json=as_json)
            return
        rows = workspace.adapters(where, sort=sort, descending=reverse, limit=limit, offset=offset)
        total = workspace.count(where)
        _print_rows(rows, workspace, as_json=as_json)
        if total > offset + len(rows):
            sink.note(f"{len(rows)} of {total}; more with --offset {offset + len(rows)}")
        if total == 0 and workspace.count():
            sink.note("nothing matches; `lorahub ls --facets` counts what there is")
        elif total == 0:
            sink.note("nothing here: `lorahub pull REF` brings adapters in")


def _print_facets(found: dict[str, dict[str, int]], *, as_json: bool) -> None:
    if as_json:
        sink.print_json(found)
        return
    sink.print_table(
        ("facet", "value", "adapters"),
        ((name, value, n) for name, counts in found.items() for value, n in counts.items()),
    )


def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="Words to look for.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows to show.")] = 50,
    as_json: sink.Json = False,
) -> None:
    """Search names, base models, tags, targets and cards; mistyped words find the nearest."""
    from lorahub.workspace import Workspace

    with sink.errors("search", as_json=as_json), Workspace.open() as workspace:
        text = " ".join(words)
        rows = workspace.search(text, limit=limit)
        _print_rows(rows, workspace, as_json=as_json)
        if not rows:
            sink.note("nothing found")
        elif (meant := workspace.corrected(text)) != text:
            sink.note(f"nothing has '{text}'; these have '{meant}'")


def _rank(row: AdapterSummary) -> str:
    if not row.rank_max:
        return "-"
    low, high = row.rank_min, row.rank_max
    return f"{high}" if low == high else f"{low}..{high}"


def _print_rows(rows: list[AdapterSummary], workspace: Workspace, *, as_json: bool) -> None:
    scored = workspace.catalog.evaluations([r.id for r in rows])
    if as_json:
        sink.print_json([sink.plain(r) | {"evaluations": _figures(scored, r.id)} for r in rows])
        return
    headers = ("name", "base", "rank", "targets", "dtype", "size", "source", "method", "mergeable")
    sink.print_table(
        (*headers, "figures") if scored else headers,
        (
            (
                r.name,
                r.base or r.base_model,
                _rank(r),
                ",".join(r.targets),
                r.dtype,
                sink.size(r.weights_bytes),
                r.source,
                r.method,
                "yes" if r.mergeable else "no",
                *([_first_figures(scored.get(r.id, ()))] if scored else []),
            )
            for r in rows
        ),
    )


def _figures(scored: Mapping[int, Sequence[Evaluation]], adapter_id: int) -> dict[str, Any]:
    return {e.suite: dict(e.figures) for e in scored.get(adapter_id, ())}


def _first_figures(found: Sequence[Evaluation]) -> str:
    """The first figure of each suite: `show` has them all."""
    firsts = ((e.suite, *next(iter(e.figures.items()))) for e in found)
    return ", ".join(f"{suite} {key} {value:.4g}" for suite, key, value in firsts)


def show(reference: Ref, as_json: sink.Json = False) -> None:
    """Show one adapter: what it is, where it came from, its modules and lineage."""
    from lorahub.lineage import drawn
    from lorahub.workspace import Workspace

    with sink.errors("show", as_json=as_json), Workspace.open() as workspace:
        adapter = workspace.get(reference)
        parents = workspace.parents(adapter)
        children = workspace.catalog.children(adapter.id)
        info, origin, base = adapter.info, adapter.origin, adapter.base
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
            ("url", origin.url),
            ("folder", str(origin.folder)),
            ("format", info.format),
            ("type", info.peft_type),
            ("base model", info.base_model),
            ("canonical base", base and base.name),
            ("confidence", f"{base.confidence.value}: {base.reason}" if base else None),
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
        facts += [(e.suite, e.text) for e in workspace.evaluations(adapter)]
        facts += [("not mergeable", r.message) for r in info.refusals]
        facts += [("warning", w) for w in info.warnings]
        sink.print_table(("field", "value"), [f for f in facts if f[1]])
        if parents:
            for line in drawn(workspace.lineage(reference)):
                sink.print_text(line)
