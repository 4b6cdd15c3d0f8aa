"""Verbs that say how a collection hangs together: lineage, impact, similar, duplicates ..."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import BaseFilter, Ref

if TYPE_CHECKING:
    from lorahub.lineage import Kin

By = Annotated[str, typer.Option("--by", help="Alike in: delta, subspace or spectrum.")]
Mermaid = Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")]


def lineage(reference: Ref, mermaid: Mermaid = False, as_json: sink.Json = False) -> None:
    """Show the tree of adapters a merged one came from, up to commits and weights."""
    from lorahub.workspace import Workspace

    with sink.errors("lineage", as_json=as_json), Workspace.open() as workspace:
        _print_tree(workspace.lineage(reference), up=True, as_mermaid=mermaid, as_json=as_json)


def impact(reference: Ref, mermaid: Mermaid = False, as_json: sink.Json = False) -> None:
    """Show everything that was merged from an adapter, over all generations."""
    from lorahub.workspace import Workspace

    with sink.errors("impact", as_json=as_json), Workspace.open() as workspace:
        _print_tree(workspace.impact(reference), up=False, as_mermaid=mermaid, as_json=as_json)


def _print_tree(root: Kin, *, up: bool, as_mermaid: bool, as_json: bool) -> None:
    from lorahub.lineage import drawn, mermaid

    if as_json:
        sink.print_json(root)
    elif as_mermaid:
        sink.print_text(mermaid(root, up=up).rstrip())
    else:
        sink.print_text("\n".join(drawn(root)))


def similar(
    reference: Ref,
    by: By = "delta",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows to show.")] = 10,
    as_json: sink.Json = False,
) -> None:
    """List the adapters most like one: cosines of deltas, subspaces and spectra, estimated."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("similar", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.similar(reference, by=by, limit=limit, listener=listener)
    if as_json:
        sink.print_json(found)
        return
    sink.print_table(
        ("name", "base", "delta", "subspace", "spectrum"),
        (
            (n.name, n.base, f"{n.delta:+.3f}", f"{n.subspace:.3f}", f"{n.spectrum:.3f}")
            for n in found
        ),
    )
    if not found:
        sink.note("there is no other adapter to compare it with")


def duplicates(as_json: sink.Json = False) -> None:
    """List adapters whose factors another one has too, bit by bit or cast to another dtype."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("duplicates", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.duplicates(listener=listener)
    if as_json:
        sink.print_json(found)
        return
    sink.print_table(
        ("name", "duplicate of", "how", "size"),
        (
            (
                d.name,
                d.of,
                "same" if d.how == "same" else f"cast from {d.of_dtype} to {d.dtype}",
                sink.size(d.weights_bytes),
            )
            for d in found
        ),
    )
    if not found:
        sink.note("no duplicates")


def cluster(
    base: BaseFilter = None,
    by: By = "delta",
    cosine: Annotated[
        float, typer.Option("--cosine", help="Least cosine to the nearest of a family.")
    ] = 0.5,
    as_json: sink.Json = False,
) -> None:
    """Group adapters into families of which each has a near relative."""
    from lorahub.workspace import Workspace
    from store import AdapterFilter

    with (
        sink.errors("cluster", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.cluster(AdapterFilter(base=base), by=by, cosine=cosine, listener=listener)
    if as_json:
        sink.print_json(found)
        return
    sink.print_table(
        ("family", "name", "base", "cosine"),
        ((f.center, m.name, m.base, f"{m.cosine:+.3f}") for f in found for m in f.members),
    )
    if not found:
        sink.note(f"no two adapters have a cosine of {cosine:g}; see --cosine")


def map_adapters(
    plot: Annotated[Path | None, typer.Option("--plot", help="SVG file to draw.")] = None,
    base: BaseFilter = None,
    by: By = "delta",
    as_json: sink.Json = False,
) -> None:
    """Place the collection in the plane, like adapters near each other."""
    from lorahub.workspace import Workspace
    from store import AdapterFilter

    with (
        sink.errors("map", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.map(AdapterFilter(base=base), by=by, plot=plot, listener=listener)
    if as_json:
        sink.print_json(found)
    elif plot is not None:
        sink.print_text(str(plot))
    else:
        sink.print_table(
            ("name", "base", "x", "y"),
            ((p.name, p.base, f"{p.x:.3f}", f"{p.y:.3f}") for p in found),
        )
