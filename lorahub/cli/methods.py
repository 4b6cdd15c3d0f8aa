"""The merge methods, shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorahub.cli import sink

if TYPE_CHECKING:
    from lorahub.methods.registry import Method


methods_app = typer.Typer(help="The merge methods.", no_args_is_help=False)


@methods_app.callback(invoke_without_command=True)
def methods(context: typer.Context, as_json: sink.Json = False) -> None:
    """List the merge methods."""
    if context.invoked_subcommand is not None:
        return
    from lorahub.methods.registry import methods as all_methods

    found = list(all_methods().values())
    if as_json:
        sink.print_json([_describe(m) for m in found])
        return
    sink.print_table(
        ("method", "parameters", "what it does"),
        ((m.name, ", ".join(m.schema.model_fields), m.summary) for m in found),
    )


@methods_app.command("show")
def show_method(
    name: Annotated[str, typer.Argument(help="Name of the method.")], as_json: sink.Json = False
) -> None:
    """Show one method: idea, paper, cost, an example, parameters."""
    from lorahub.methods.describe import cost, defaults, example, parameters
    from lorahub.methods.registry import get

    with sink.errors("methods show", as_json=as_json):
        method = get(name)
        if as_json:
            sink.print_json(_describe(method))
            return
        sink.print_text(f"{method.name}: {method.title}\n{method.paper}\n\n{method.doc}\n")
        sink.print_text(f"{defaults(method)}\n{cost(method)}\n\n{example(method)}\n")
        sink.print_table(
            ("parameter", "values", "default", "meaning"),
            ((p.name, p.values, p.default, p.meaning) for p in parameters(method)),
        )


def _describe(method: Method) -> dict[str, Any]:
    from lorahub.methods.describe import cost, example

    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "doc": method.doc,
        "paper": method.paper,
        "default_scale": {n: method.default_scale(n) for n in range(1, 9)},
        "normalize": method.normalize,
        "cost": cost(method),
        "example": example(method),
        "schema": method.schema.model_json_schema(),
    }
