"""Many merges in one go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorahub.cli import sink
from lorahub.errors import ExitCode

if TYPE_CHECKING:
    from lorahub.batch import Forecast, Outcome
    from lorahub.recipe import Recipe
    from lorahub.sweep import Sweep


def batch(
    files: Annotated[
        list[Path], typer.Argument(metavar="RECIPE|FOLDER...", help="Recipe files, or folders.")
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="URL", help="Storage URL results go to, by name.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Merges at a time; 1 unless --executor is given."),
    ] = None,
    executor: sink.Executor = None,
    address: sink.Address = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Also redo results whose recipe or sources changed.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Begin nothing more after a failure.")
    ] = False,
    device: sink.Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many, how large and how long.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Begin however many merges it is.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Report to write: .md, with a chart, or .json."),
    ] = None,
    events: sink.Events = None,
    as_json: sink.Json = False,
) -> None:
    """Merge many recipes and sweeps; what is there already stays, failures do not stop the rest."""
    lines = events is not None
    with sink.errors("batch", as_json=as_json, events=lines):
        from lorahub.batch import ask, gather
        from lorahub.executors import choose
        from lorahub.reporting import check_report, write_report
        from lorahub.workspace import Workspace

        if report is not None:
            check_report(report)

        sweeps = gather(files)
        ask(sweeps, yes=yes)
        labels: dict[str, Mapping[str, str]] = {}
        recipes = _noting(sweeps, labels)
        with sink.progress(events=lines) as listener, Workspace.open() as workspace:
            if dry_run:
                _print_forecast(
                    workspace.forecast(recipes, listener=listener), as_json=as_json or lines
                )
                return
            outcomes = list(
                workspace.batch(
                    recipes,
                    to=to,
                    executor=choose(executor, jobs=jobs, address=address, device=device),
                    resume=resume,
                    fail_fast=fail_fast,
                    device=device,
                    listener=listener,
                )
            )
        if report is not None:
            write_report(report.absolute(), outcomes, labels)
        _print(outcomes, as_json=as_json, events=lines)


def _noting(sweeps: Sequence[Sweep], labels: dict[str, Mapping[str, str]]) -> Iterator[Recipe]:
    """The recipes of sweeps; the values of their axes go into ``labels``, by name of the result."""
    for sweep in sweeps:
        for recipe, own in sweep.labelled():
            output = recipe.output
            labels[output.name or (output.folder.name if output.folder else "")] = own
            yield recipe


def _print_forecast(forecast: Forecast, *, as_json: bool) -> None:
    if as_json:
        sink.print_act("batch --dry-run", forecast)
        return
    sink.print_table(
        ("field", "value"),
        (
            ("merges", forecast.merges),
            ("unchanged", forecast.unchanged),
            ("not known yet", forecast.unknown),
            ("read", sink.size(forecast.input_bytes)),
            ("written at most", sink.size(forecast.output_bytes)),
            ("about", f"{forecast.seconds:.0f} s on one core"),
        ),
    )


def _print(outcomes: Sequence[Outcome], *, as_json: bool, events: bool) -> None:
    from lorahub.batch import counts
    from lorahub.reporting import row

    failed = [o for o in outcomes if o.error is not None]
    rows = [row(o) for o in outcomes]
    status = sink.status(len(failed), len(outcomes))
    event = {"status": status, "merges": rows}
    if not sink.answered("batch", rows, as_json=as_json, events=events, status=status, event=event):
        sink.print_table(
            ("result", "state", "rank", "truncation", "least kept", "seconds"),
            (
                (
                    o.name,
                    o.state,
                    o.rank,
                    None if o.truncation is None else f"{o.truncation:.2%}",
                    None if o.retained is None else f"{o.retained:.1%}",
                    f"{o.seconds:.2f}",
                )
                for o in outcomes
            ),
        )
        sink.note(", ".join(f"{n} {state}" for state, n in counts(outcomes).items()) or "no merges")
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)
