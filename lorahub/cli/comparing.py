"""Verbs that say how adapters relate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Refs

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison, Norms, Pair


def compare(
    references: Refs,
    types: Annotated[bool, typer.Option("--types", help="Also list module types.")] = False,
    modules: Annotated[bool, typer.Option("--modules", help="Also list every module.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw heat maps and spectra.")
    ] = None,
    as_json: sink.Json = False,
) -> None:
    """Compare adapters: norms, spectra, overlap of subspaces, sign conflict, energy by rank."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("compare", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        result = workspace.compare(references, plot=plot, listener=listener)
    if as_json:
        sink.print_json(result)
        return
    from lorahub.engine.pictures import picture
    from lorahub.plot import sparkline

    parts: list[tuple[str, Sequence[Norms], Sequence[Pair]]] = [
        ("all", (*result.norms, result.total), result.pairs)
    ]
    if types:
        parts += [(t.type, (*t.norms, t.total), t.pairs) for t in result.types]
    if modules:
        parts += [(m.module, (*m.norms, m.total), m.pairs) for m in result.modules]
    sink.print_table(
        ("module", "adapter", "norm", "effective rank", "nuclear norm", "L1,2", "spectrum"),
        (
            (where, n.adapter, f"{n.norm:.4g}", f"{n.effective_rank:.2f}", f"{n.nuclear:.4g}",
             f"{n.nuclear_l12:.4g}", sparkline(n.sigma))
            for where, norms, _ in parts
            for n in norms
        ),
    )  # fmt: skip
    sink.print_table(
        ("module", "one", "other", "cosine", "overlap A", "overlap B", "angles A", "angles B",
         "sign conflict"),
        (
            (where, p.one, p.other, f"{p.cosine:+.4f}", f"{p.overlap_a:.4f}",
             f"{p.overlap_b:.4f}", _angles(p.cosines_a), _angles(p.cosines_b),
             f"{p.sign_conflict:.3f}")
            for where, _, pairs in parts
            for p in pairs
        ),
    )  # fmt: skip
    sink.print_table(("rank", *(n.adapter for n in parts[0][1])), _energies(result))
    sink.print_picture(picture(result))


def _angles(cosines: Sequence[float]) -> str:
    """Smallest and largest principal angle, in degrees."""
    if not cosines:
        return ""
    low, high = (math.degrees(math.acos(c)) for c in (cosines[0], cosines[-1]))
    return f"{low:.0f}..{high:.0f}"


def _energies(result: Comparison) -> Iterator[Sequence[str]]:
    """Share of the energy that each adapter and the sum keep at rank 1, 2, 4, ... and in full."""
    full = len(result.total.energy)
    ranks = [2**i for i in range(full.bit_length()) if 2**i < full]
    for rank in (*ranks, full):
        yield str(rank), *(f"{n.kept(rank):.1%}" for n in (*result.norms, result.total))
