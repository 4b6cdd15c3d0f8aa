"""Verbs that say how adapters relate."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Ref, Refs

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison, Norms, Pair
    from lorahub.engine.suggest import Option, Suggestion


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


def inspect(reference: Ref, as_json: sink.Json = False) -> None:
    """Look into one adapter: norm, spectrum and effective rank of every module."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("inspect", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        result = workspace.inspect(reference, listener=listener)
    if as_json:
        sink.print_json(result)
        return
    from lorahub.plot import sparkline

    sink.print_table(
        ("module", "rank", "norm", "effective rank", "nuclear norm", "spectrum"),
        (
            (where, len(n.sigma), f"{n.norm:.4g}", f"{n.effective_rank:.2f}", f"{n.nuclear:.4g}",
             sparkline(n.sigma))
            for where, n in (("all", result.total), *((m.module, m.total) for m in result.modules))
        ),
    )  # fmt: skip


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


def suggest(
    references: Refs,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Largest (average) rank of the result.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Its size instead: 40MB, '30%' less, '2M params'."),
    ] = None,
    as_json: sink.Json = False,
) -> None:
    """Suggest how to merge adapters: method, scale, rank and weights, with reasons."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("suggest", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        found = workspace.suggest(references, rank=rank, budget=budget, listener=listener)
    options = (found.choice, *found.others)
    commands = [_command(references, found, option) for option in options]
    if as_json:
        body = sink.plain(found)
        for shown, command in zip((body["choice"], *body["others"]), commands, strict=True):
            shown["command"] = command
        sink.print_json(body)
        return
    sink.print_table(("finding",), ([text] for text in found.findings))
    sink.print_table(
        ("place", "method", "scale", "rank", "reason"),
        (
            (place, o.method, f"{o.scale:.3g}", o.budget or o.parameters.get("rank", "all"),
             o.reason)
            for place, o in enumerate(options, 1)
        ),
    )  # fmt: skip
    sink.print_table(("command",), [[commands[0]]])


def _command(references: Sequence[str], found: Suggestion, option: Option) -> str:
    """The command line that merges as ``option`` says."""
    weights = ["" if w == 1 else f":{w:.6g}" for w in found.weights]
    words = ["lorahub", "merge", *map("".join, zip(references, weights, strict=True))]
    words += ["--method", option.method, "--scale", f"{option.scale:.6g}"]
    for name, value in option.parameters.items():
        words += [f"--{name}", str(value)]
    if option.budget is not None:
        words += ["--budget", str(option.budget)]
    if option.normalize:
        words.append("--normalize")
    return shlex.join([*words, "--name", "merged"])
