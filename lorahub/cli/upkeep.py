"""Verbs on lorahub itself: config, db, export-catalog, import-catalog, version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub.cli import sink
from lorahub.errors import CatalogError

config_app = typer.Typer(help="The settings in effect.", no_args_is_help=True)
db_app = typer.Typer(help="The catalog's database.", no_args_is_help=True)


@config_app.command("path")
def config_path(as_json: sink.Json = False) -> None:
    """Print the path of the config file."""
    from lorahub.config import load_config

    with sink.errors("config path", as_json=as_json):
        _print_path(str(load_config().file), as_json=as_json)


def _print_path(path: str, *, as_json: bool) -> None:
    if as_json:
        sink.print_json({"path": path})
    else:
        sink.print_text(path)


@config_app.command("show")
def config_show(as_json: sink.Json = False) -> None:
    """Print the settings in effect."""
    from lorahub.config import load_config

    with sink.errors("config show", as_json=as_json):
        config = load_config()
        body = {
            "home": str(config.home),
            "database": _database(),
            "endpoint": config.endpoint,
            "token_env": config.token_env,
            **{f"remotes.{name}": r.endpoint for name, r in sorted(config.remotes.items())},
        }
        if as_json:
            sink.print_json(body)
        else:
            sink.print_table(("setting", "value"), body.items())


def _database() -> str:
    from sqlalchemy.engine import make_url

    from lorahub.config import load_config

    where = load_config().database
    return make_url(where).render_as_string() if isinstance(where, str) else str(where)


@db_app.command("path")
def db_path(as_json: sink.Json = False) -> None:
    """Print where the catalog is."""
    with sink.errors("db path", as_json=as_json):
        _print_path(_database(), as_json=as_json)


@db_app.command("check")
def db_check(as_json: sink.Json = False) -> None:
    """Check the catalog for damage."""
    from lorahub.workspace import Workspace

    with sink.errors("db check", as_json=as_json), Workspace.open() as workspace:
        problems = workspace.catalog.check()
        if problems:
            raise CatalogError(
                f"the catalog has {len(problems)} problems: {'; '.join(problems[:3])}",
                hint="restore a backup beside it, or move it away and pull again",
            )
        count = workspace.catalog.count()
        if as_json:
            sink.print_act("db check", {"adapters": count, "problems": []})
        else:
            sink.print_text(f"sound, {count} adapters")


@db_app.command("upgrade")
def db_upgrade(as_json: sink.Json = False) -> None:
    """Bring the catalog to this version's schema, after a backup."""
    from lorahub.workspace import Workspace
    from store.migrate import HEAD

    with sink.errors("db upgrade", as_json=as_json), Workspace.open():
        if as_json:
            sink.print_act("db upgrade", {"revision": HEAD})
        else:
            sink.print_text(f"at revision {HEAD}")


@db_app.command("stats")
def db_stats(as_json: sink.Json = False) -> None:
    """Print how much the catalog holds, and how much room it takes."""
    from lorahub.workspace import Workspace

    with sink.errors("db stats", as_json=as_json), Workspace.open() as workspace:
        stats = workspace.stats()
        if as_json:
            sink.print_json(stats)
            return
        facts: list[tuple[str, object]] = [
            ("database", f"{stats.backend}, revision {stats.revision}"),
            ("size", sink.size(stats.bytes)),
            ("adapters", sum(stats.adapters.values())),
            *((f"from {source}", count) for source, count in stats.adapters.items()),
            ("modules", stats.modules),
            ("weights", sink.size(stats.weights_bytes)),
            *stats.rows.items(),
        ]
        sink.print_table(("what", "how much"), facts)


def export_catalog(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    as_json: sink.Json = False,
) -> None:
    """Write the whole catalog, without the adapters' files, as JSON lines."""
    from lorahub.workspace import Workspace

    with sink.errors("export-catalog", as_json=as_json), Workspace.open() as workspace:
        lines = workspace.export_catalog(file)
        if as_json:
            sink.print_act("export-catalog", {"file": str(file), "lines": lines})
        else:
            sink.print_text(f"{file}\t{lines} lines")


def import_catalog(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export-catalog wrote.")],
    as_json: sink.Json = False,
) -> None:
    """Take in an exported catalog, whole or not at all; what is here already stays."""
    from lorahub.workspace import Workspace

    with sink.errors("import-catalog", as_json=as_json), Workspace.open() as workspace:
        found = workspace.import_catalog(file)
        if as_json:
            sink.print_act("import-catalog", found)
            return
        sink.print_text(
            f"{found.adapters} adapters, {found.runs} runs and {found.aliases} aliases added, "
            f"{found.known} adapters known"
        )


def version(as_json: sink.Json = False) -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        number = installed("lorahub-kit")
    except PackageNotFoundError:
        number = "0+unknown"
    if as_json:
        sink.print_json({"lorahub": number})
    else:
        sink.print_text(number)
