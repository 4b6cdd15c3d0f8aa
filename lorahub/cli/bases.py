"""Verbs on base models: ls, show, alias, unalias."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub.cli import sink

base_app = typer.Typer(help="Base models behind their names.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name as adapters state it.")]


@base_app.command("ls")
def base_ls(as_json: sink.Json = False) -> None:
    """List the base models of all adapters, and the names those state."""
    from lorahub.workspace import Workspace

    with sink.errors("base ls", as_json=as_json), Workspace.open() as workspace:
        bases = workspace.bases()
        if as_json:
            sink.print_json(bases)
            return
        rows = ((b.base or "unknown", b.adapters, ", ".join(b.stated)) for b in bases)
        sink.print_table(("base", "adapters", "also stated as"), rows)


@base_app.command("show")
def base_show(name: Name, as_json: sink.Json = False) -> None:
    """Show which base model a name means, how sure that is and why."""
    from lorahub.workspace import Workspace

    with sink.errors("base show", as_json=as_json), Workspace.open() as workspace:
        report = workspace.base_report(name)
        if as_json:
            sink.print_json(report)
            return
        identity = report.identity
        facts: list[tuple[str, object]] = [
            ("name", report.name),
            ("base", identity.name if identity else "unknown"),
            ("confidence", identity.confidence.value if identity else "unknown"),
            ("reason", identity.reason if identity else "no Hub id, and no known name"),
            ("also known as", ", ".join(report.also)),
            ("your aliases", ", ".join(report.aliases)),
            ("adapters", report.adapters),
        ]
        sink.print_table(("field", "value"), [f for f in facts if f[1] != ""])


@base_app.command("alias")
def base_alias(
    name: Name,
    canonical: Annotated[str, typer.Argument(metavar="CANONICAL", help="The Hub id it means.")],
    as_json: sink.Json = False,
) -> None:
    """Say which base model a name means, from now on and for the adapters there are."""
    from lorahub.workspace import Workspace

    with sink.errors("base alias", as_json=as_json), Workspace.open() as workspace:
        count = workspace.add_base_alias(name, canonical)
        if as_json:
            sink.print_act("base alias", {"name": name, "base": canonical, "adapters": count})
        else:
            sink.print_text(f"{name}\tmeans {canonical}, of {count} adapters")


@base_app.command("unalias")
def base_unalias(name: Name, as_json: sink.Json = False) -> None:
    """Take an alias back."""
    from lorahub.workspace import Workspace

    with sink.errors("base unalias", as_json=as_json), Workspace.open() as workspace:
        count = workspace.remove_base_alias(name)
        if as_json:
            sink.print_act("base unalias", {"name": name, "adapters": count})
        else:
            sink.print_text(f"{name}\tis an alias no more, of {count} adapters")
