"""Verbs that say how adapters relate."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Refs


def compare(
    references: Refs,
    modules: Annotated[bool, typer.Option("--modules", help="Also list every module.")] = False,
    as_json: sink.Json = False,
) -> None:
    """Compare adapters: norms, cosines, subspace overlap, sign conflict, effective rank."""
    from lorahub.workspace import Workspace

    with (
        sink.errors("compare", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        result = workspace.compare(references, listener=listener)
    if as_json:
        sink.print_json(result)
        return
    sink.print_table(
        ("adapter", "norm", "effective rank"),
        ((n.adapter, f"{n.norm:.4g}", f"{n.effective_rank:.2f}") for n in result.norms),
    )
    headers = ("module", "one", "other", "cosine", "overlap A", "overlap B", "sign conflict")
    parts = [("all", result.pairs)]
    if modules:
        parts += [(m.module, m.pairs) for m in result.modules]
    sink.print_table(
        headers,
        (
            (where, p.one, p.other, f"{p.cosine:+.4f}", f"{p.overlap_a:.4f}",
             f"{p.overlap_b:.4f}", f"{p.sign_conflict:.3f}")
            for where, pairs in parts
            for p in pairs
        ),
    )  # fmt: skip
