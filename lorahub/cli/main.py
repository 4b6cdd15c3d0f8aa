"""Wiring: which function answers to which verb."""

from __future__ import annotations

import gc

import typer

from lorahub.cli import (
    bases,
    catalog,
    comparing,
    compressing,
    merging,
    methods,
    packing,
    publishing,
    upkeep,
)

app = typer.Typer(
    name="lorahub",
    help="Catalog, merge and publish LoRA adapters, without the base model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 auth, 5 invalid, 6 conflict, "
    "7 network, 8 partial, 130 interrupted.",
)

for verb in (
    catalog.pull,
    catalog.ls,
    catalog.search,
    catalog.show,
    catalog.lineage,
    catalog.rm,
    comparing.compare,
    merging.merge,
    merging.verify,
    compressing.compress,
    packing.pack,
    packing.unpack,
    publishing.export,
    publishing.push,
    upkeep.version,
):
    app.command()(verb)
app.command("export-catalog")(upkeep.export_catalog)
app.command("import-catalog")(upkeep.import_catalog)
app.add_typer(bases.base_app, name="base")
app.add_typer(methods.methods_app, name="methods")
app.add_typer(upkeep.config_app, name="config")
app.add_typer(upkeep.db_app, name="db")


def run() -> None:
    """Entry point of the ``lorahub`` command."""
    try:
        app()
    finally:
        # The interpreter's last collection would visit every object the imports made, to find
        # nothing; on a listing that is a fifth of its time.
        gc.freeze()
