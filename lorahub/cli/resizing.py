"""Verbs that make one adapter smaller: resize, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Ref
from lorahub.cli.merging import print_merged, print_plan

if TYPE_CHECKING:
    from lorahub.recipe import Recipe

_SIZES = "40MB, '30%' less, 'rank 8' on average, '2M params'"

Dtype = Annotated[
    str | None, typer.Option("--dtype", help="F32, F16 or BF16; the adapter's own if none.")
]
Base = Annotated[str | None, typer.Option("--base", help="Base model, if the adapter names none.")]


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
    name: sink.Name = None,
    force: sink.Force = False,
    dry_run: sink.DryRun = False,
    as_json: sink.Json = False,
) -> None:
    """Cut the ranks of one adapter as well as possible (SVD); every module keeps a rank."""
    with sink.errors("resize", as_json=as_json):
        from lorahub.workspace.resizing import resize_recipe

        recipe = resize_recipe(
            reference,
            rank=rank,
            energy=energy,
            budget=budget,
            dtype=dtype,
            base=base,
            name=name,
            folder=output,
        )
        _make(recipe, "resize", force=force, dry_run=dry_run, as_json=as_json)


def prune(
    reference: Ref,
    budget: Annotated[str, typer.Option("--budget", help=f"Size of what is left: {_SIZES}.")],
    dtype: Dtype = None,
    base: Base = None,
    output: sink.Output = None,
    name: sink.Name = None,
    force: sink.Force = False,
    dry_run: sink.DryRun = False,
    as_json: sink.Json = False,
) -> None:
    """Drop the weakest ranks of one adapter, and modules that have no other."""
    with sink.errors("prune", as_json=as_json):
        from lorahub.workspace.resizing import prune_recipe

        recipe = prune_recipe(
            reference,
            budget=budget,
            dtype=dtype,
            base=base,
            name=name,
            folder=output,
        )
        _make(recipe, "prune", force=force, dry_run=dry_run, as_json=as_json)


def _make(recipe: Recipe, command: str, *, force: bool, dry_run: bool, as_json: bool) -> None:
    from lorahub.workspace import Workspace

    with sink.progress() as listener, Workspace.open() as workspace:
        if dry_run:
            print_plan(workspace.plan(recipe, listener=listener), command, as_json=as_json)
            return
        merged = workspace.merge(recipe, force=force, listener=listener)
    print_merged(merged, command, as_json=as_json)
