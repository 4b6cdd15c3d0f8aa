"""Verbs that score adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.cli.catalog import Refs
from lorahub.errors import ExitCode, LorahubError, UsageError

if TYPE_CHECKING:
    from lorahub.searching import Trial

With = Annotated[
    str, typer.Option("--with", metavar="SUITE", help="factors, or the file of a suite.")
]


def evaluate(
    references: Refs,
    suite: With = "factors",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw bars, by figure.")
    ] = None,
    events: sink.Events = None,
    as_json: sink.Json = False,
) -> None:
    """Score adapters: by factors alone, by your own code, by a harness or by perplexity."""
    lines = events is not None
    with sink.errors("eval", as_json=as_json, events=lines):
        from lorahub.workspace import Workspace

        with sink.progress(events=lines) as listener, Workspace.open() as workspace:
            found = list(workspace.evaluate(references, suite, plot=plot, listener=listener))
        failed = {name: error for name, error in found if isinstance(error, LorahubError)}
        if failed and len(found) == 1:
            raise next(iter(failed.values()))
        status = sink.status(len(failed), len(found))
        rows = [
            {"name": name, "figures": None, "error": sink.plain_error(f)}
            if isinstance(f, LorahubError)
            else {"name": name, "figures": f, "error": None}
            for name, f in found
        ]
        event = {"status": status, "adapters": rows}
        if not sink.answered(
            "eval", rows, as_json=as_json, events=lines, status=status, event=event
        ):
            sink.print_table(
                ("adapter", "figure", "value"),
                (
                    (name, key, f"{value:.4g}")
                    for name, figures in found
                    if not isinstance(figures, LorahubError)
                    for key, value in figures.items()
                ),
            )
        for name, error in failed.items():
            sink.failure(name, error)
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)


def search_weights(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file.")],
    suite: With = "factors",
    budget: Annotated[int, typer.Option("--budget", min=1, help="Recipes to try.")] = 40,
    objective: Annotated[
        str | None, typer.Option("--objective", help="Figure of the suite that is sought.")
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Seek the smallest value.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the optimiser.")] = 0,
    device: sink.Device = "auto",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="SVG file for the best value so far.")
    ] = None,
    events: sink.Events = None,
    as_json: sink.Json = False,
) -> None:
    """Search a recipe's weights and parameters for the best figure of a suite."""
    lines = events is not None
    with sink.errors("search-weights", as_json=as_json, events=lines):
        from lorahub.output import write_text
        from lorahub.plot import progress, svg
        from lorahub.workspace import Workspace

        if plot is not None and plot.suffix != ".svg":
            raise UsageError(f"{plot}: a plot is an SVG file", hint="give a name that ends in .svg")
        trials: list[Trial] = []
        with sink.progress(events=lines) as listener, Workspace.open() as workspace:
            search = workspace.search_weights(
                recipe,
                suite,
                budget=budget,
                objective=objective,
                minimize=minimize,
                seed=seed,
                device=device,
                listener=listener,
            )
            while True:
                try:
                    trials.append(next(search))
                except StopIteration as end:
                    result = end.value
                    break
        curve = [t.best for t in trials]
        if plot is not None:
            title = f"best {objective or 'value'} so far"
            write_text(plot.absolute(), svg(title, [progress(title, curve)]))
        body = {"name": result.name, "best": curve[-1], "trials": sink.plain(trials)}
        if not sink.answered("search-weights", body, as_json=as_json, events=lines):
            best = next(t for t in trials if t.value == curve[-1])
            sink.print_table(
                ("field", "value"),
                (
                    ("name", result.name),
                    ("best", f"{best.value:.6g} (trial {best.number} of {len(trials)})"),
                    *((key, f"{v:.4g}" if isinstance(v, float) else v)
                      for key, v in best.chosen.items()),
                ),
            )  # fmt: skip
