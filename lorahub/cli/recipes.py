"""Verbs on recipe files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub.cli import sink

recipes_app = typer.Typer(help="Recipe files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file.")]


@recipes_app.command("new")
def new_recipe(
    file: File,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="REF[:WEIGHT]...", help="Adapters.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="See `lorahub methods`.")] = "svd",
    as_json: sink.Json = False,
) -> None:
    """Write a recipe file to begin with."""
    from lorahub.cli.composing import parse_source
    from lorahub.recipe_template import write_new

    with sink.errors("recipes new", as_json=as_json):
        write_new(file, method, [parse_source(s) for s in sources or []])
        if as_json:
            sink.print_act("recipes new", {"file": file})
        else:
            sink.print_text(str(file))


@recipes_app.command("check")
def check_recipes(
    files: Annotated[
        list[Path], typer.Argument(metavar="RECIPE|FOLDER...", help="Recipe files, or folders.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Check however many merges it is.")] = False,
    as_json: sink.Json = False,
) -> None:
    """Check recipe files, their methods and parameters; sources are not looked up."""
    from lorahub.batch import ask, gather

    with sink.errors("recipes check", as_json=as_json):
        sweeps = gather(files)
        ask(sweeps, yes=yes)
        counts = [(sweep.file.path, sum(1 for _ in sweep.recipes())) for sweep in sweeps]
        if as_json:
            sink.print_json([{"file": file, "merges": count} for file, count in counts])
        else:
            sink.print_table(("file", "merges"), counts)


@recipes_app.command("lock")
def lock_recipe(file: File, as_json: sink.Json = False) -> None:
    """Pin the sources of a recipe file by commit and content, in a file beside it."""
    from lorahub.recipe_file import lock_path
    from lorahub.workspace import Workspace

    with (
        sink.errors("recipes lock", as_json=as_json),
        sink.progress() as listener,
        Workspace.open() as workspace,
    ):
        lock = workspace.lock(file, listener=listener)
        if as_json:
            sink.print_act("recipes lock", {"file": lock_path(file)} | lock.model_dump())
            return
        sink.print_table(
            ("source", "pinned", "sha256"),
            ((name, pin.reference, pin.sha256) for name, pin in lock.sources.items()),
        )


@recipes_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipe files, for editors."""
    from lorahub.recipe_template import json_schema

    sink.print_json(json_schema())


@recipes_app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A mergekit file of adapters, or PEFT's add_weighted_adapter."
        ),
    ],
    as_json: sink.Json = False,
) -> None:
    """Print the recipe that means the same as another tool's file; refuse where none does."""
    from lorahub.importing import import_recipe

    with sink.errors("recipes import", as_json=as_json):
        recipe = import_recipe(file)
        if as_json:
            sink.print_json(recipe.model_dump(mode="json", exclude_defaults=True))
        else:
            sink.print_text(recipe.to_yaml().rstrip())
