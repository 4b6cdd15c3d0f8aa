"""Verbs that make one adapter smaller: resize, prune."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Ref
from lorahub.cli.merging import print_merged

_SIZES = "40MB, '30%' less, 'rank 8' on average, '2M params'"

Dtype = Annotated[
    str | None, typer.Option("--dtype", help="F32, F16 or BF16; the adapter's own if none.")
]
Base = Annotated[str | None, typer.Option("--base", help="Base model, if the adapter names none.")]
Name = Annotated[str | None, typer.Option("--name", help="Catalog name of the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing result.")]


def resize(
    reference: Ref,
    rank: Annotated[int | None, typer.Option("--rank", help="Largest rank of a module.")] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", help="Share of each module's energy to keep, 0..1."),
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help=f"Size: {_SIZES}.")] = None,
    dtype: Dtype = None,
    base: Base = None,
    output: sink.Output = None,
    name: Name = None,
    force: Force = False,
    as_json: sink.Json = False,
) -> None:
    """Cut the ranks of one adapter as well as possible (SVD); every module keeps a rank."""
    from lorahub.workspace import Workspace

    with sink.errors("resize", as_json=as_json):
        with sink.progress() as listener, Workspace.open() as workspace:
            merged = workspace.resize(
                reference,
                rank=rank,
                energy=energy,
                budget=budget,
                dtype=dtype,
                base=base,
                name=name,
                folder=output,
                force=force,
                listener=listener,
            )
        print_merged(merged, "resize", as_json=as_json)


def prune(
    reference: Ref,
    budget: Annotated[str, typer.Option("--budget", help=f"Size of what is left: {_SIZES}.")],
    dtype: Dtype = None,
    base: Base = None,
    output: sink.Output = None,
    name: Name = None,
    force: Force = False,
    as_json: sink.Json = False,
) -> None:
    """Drop the weakest ranks of one adapter, and modules that have no other."""
    from lorahub.workspace import Workspace

    with sink.errors("prune", as_json=as_json):
        with sink.progress() as listener, Workspace.open() as workspace:
            merged = workspace.prune(
                reference,
                budget=budget,
                dtype=dtype,
                base=base,
                name=name,
                folder=output,
                force=force,
                listener=listener,
            )
        print_merged(merged, "prune", as_json=as_json)
