"""What is written about a batch: Markdown with a chart beside it, or JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from lorahub.batch import Outcome, counts
from lorahub.errors import UsageError
from lorahub.output import write_text
from lorahub.plot import Panel, lines, svg

MOST_SERIES = 8
"""Of more combinations of the other axes, a chart shows the mean."""

MOST_NAMES = 60
"""Of more results without an axis, there is no chart."""

Labels = Mapping[str, Mapping[str, str]]
"""By name of a result, what it was made with: the values of a sweep's axes, as words."""


def check_report(path: Path) -> None:
    """Raise UsageError unless the end of a report's name says what it is to be."""
    if path.suffix.lower() not in {".md", ".markdown", ".json"}:
        raise UsageError(
            f"{path}: its name does not say what kind of report it is",
            hint="end it in .md (with a chart beside it) or .json",
        )


def write_report(path: Path, outcomes: Sequence[Outcome], labels: Labels) -> None:
    """Write a report on a batch; beside one in Markdown lies its chart (``.svg``), if it has one.

    Raises:
        UsageError: As `check_report`.
        StorageError: It cannot be written.
    """
    check_report(path)
    if path.suffix.lower() == ".json":
        merges = [row(o) | {"axes": dict(labels.get(o.name, {}))} for o in outcomes]
        body = {"version": 1, "counts": counts(outcomes), "merges": merges}
        write_text(path, json.dumps(body, indent=2, ensure_ascii=False) + "\n")
        return
    drawn = chart(outcomes, labels)
    picture = path.with_suffix(".svg")
    if drawn is not None:
        write_text(picture, drawn)
    write_text(path, markdown(outcomes, picture.name if drawn is not None else None))


def row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data."""
    error = outcome.error
    return {
        "name": outcome.name,
        "state": outcome.state,
        "folder": str(outcome.folder),
        "seconds": outcome.seconds,
        "rank": outcome.rank,
        "truncation": outcome.truncation,
        "retained": outcome.retained,
        "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
    }


def chart(outcomes: Sequence[Outcome], labels: Labels) -> str | None:
    """Truncation and least kept over every axis that varies, or over the results without one.

    Returns:
        The text of an SVG file; None where fewer than two results have figures.
    """
    found = [o for o in outcomes if o.truncation is not None and o.retained is not None]
    axes: dict[str, dict[str, None]] = {}
    for outcome in found:
        for axis, label in labels.get(outcome.name, {}).items():
            axes.setdefault(axis, {})[label] = None
    varying = [axis for axis, values in axes.items() if len(values) > 1]
    if not varying:
        if not 1 < len(found) <= MOST_NAMES:
            return None
        labels = {o.name: {"result": o.name} for o in found}
        axes, varying = {"result": {o.name: None for o in found}}, ["result"]
    panels = []
    for axis in varying:
        others = [other for other in varying if other != axis]
        for title, figure in (("truncation", "truncation"), ("least kept", "retained")):
            panels.append(_panel(f"{title} over {axis}", axis, others, figure, found, labels))
    return svg("What the merges of a batch keep", panels)


def _panel(
    title: str,
    axis: str,
    others: Sequence[str],
    figure: str,
    outcomes: Sequence[Outcome],
    labels: Labels,
) -> Panel:
    """One figure over one axis, a line for each combination of the others."""
    known = [(labels.get(o.name, {}), float(getattr(o, figure))) for o in outcomes]
    known = [(own, value) for own, value in known if axis in own]
    places = list(dict.fromkeys(own[axis] for own, _ in known))
    series: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for own, value in known:
        rest = ", ".join(f"{o.rsplit('.', 1)[-1]} {own[o]}" for o in others if o in own)
        series[rest][own[axis]].append(value)
    if len(series) > MOST_SERIES:
        mean: dict[str, list[float]] = defaultdict(list)
        for own, value in known:
            mean[own[axis]].append(value)
        series = {f"mean of {len(series)}": mean}
    return lines(
        title,
        places,
        [
            (name, [fmean(at[place]) if place in at else None for place in places])
            for name, at in series.items()
        ],
    )


def markdown(outcomes: Sequence[Outcome], chart: str | None = None) -> str:
    """A report on a batch in Markdown, with the picture of that name if there is one."""
    found = counts(outcomes)
    lines = [
        "# Batch",
        "",
        ", ".join(f"{count} {state}" for state, count in found.items()) + ".",
        "",
        "| result | state | rank | truncation | least kept | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        figures = (
            o.rank,
            None if o.truncation is None else f"{o.truncation:.2%}",
            None if o.retained is None else f"{o.retained:.1%}",
        )
        cells = [_cell(o.name), o.state, *("-" if f is None else str(f) for f in figures)]
        lines.append(f"| {' | '.join([*cells, f'{o.seconds:.2f}'])} |")
    if chart is not None:
        lines += ["", f"![Truncation and least kept]({quote(chart)})"]
    failed = [o for o in outcomes if o.error is not None]
    if failed:
        lines += ["", "## Without a result", ""]
        lines += [f"- {_cell(o.name)}: {_cell(str(o.error))}" for o in failed]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
