"""Wiring: which function answers to which verb."""

from __future__ import annotations

import typer

from lorahub.cli import (
    bases,
    batch,
    catalog,
    comparing,
    compressing,
    discovering,
    evaluating,
    extracting,
    keeping,
    knowing,
    merging,
    methods,
    packing,
    publishing,
    pulling,
    recipes,
    reproducing,
    resizing,
    terminal,
    upkeep,
)

app = typer.Typer(
    name="lorahub",
    help="Catalog, merge and publish LoRA adapters, without the base model.",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 auth, 5 invalid, 6 conflict, "
    "7 network, 8 partial, 130 interrupted.",
)

for verb in (
    discovering.discover,
    pulling.pull,
    discovering.update,
    catalog.ls,
    catalog.search,
    catalog.show,
    knowing.lineage,
    knowing.impact,
    keeping.rm,
    keeping.gc,
    keeping.scan,
    knowing.similar,
    knowing.duplicates,
    knowing.cluster,
    comparing.compare,
    comparing.inspect,
    comparing.suggest,
    merging.merge,
    batch.batch,
    merging.verify,
    resizing.resize,
    resizing.prune,
    compressing.compress,
    extracting.extract,
    packing.pack,
    packing.unpack,
    publishing.export,
    publishing.push,
    reproducing.repro,
    terminal.tui,
    upkeep.version,
):
    app.command()(verb)
app.callback(invoke_without_command=True)(terminal.plain)
app.command("eval")(evaluating.evaluate)
app.command("search-weights")(evaluating.search_weights)
app.command("map")(knowing.map_adapters)
app.command("export-catalog")(upkeep.export_catalog)
app.command("import-catalog")(upkeep.import_catalog)
app.add_typer(bases.base_app, name="base")
app.add_typer(methods.methods_app, name="methods")
app.add_typer(recipes.recipes_app, name="recipes")
app.add_typer(upkeep.config_app, name="config")
app.add_typer(upkeep.db_app, name="db")
