"""Charts: self-contained SVG files, and small pictures made of block characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_ROW, _LABEL, _BAR = 16, 420, 400
_CELL, _GAP = 58, 24
_CURVE_WIDTH, _CURVE_HEIGHT = 420, 200
_SIDE, _MARGIN, _NAMED = 720, 24, 60
_HUES = ("#2a78b5", "#c4621b", "#3f8f4f", "#a23b72", "#7a6a1f", "#5b5bb0", "#b03a3a", "#4d8f8f")
_STYLE = (
    "text{font:11px sans-serif;fill:#222}.all{fill:#e4e4e4}.lrc,.cell{fill:#2a78b5}"
    ".dense{fill:#b9b9b9}.axis{stroke:#999}.curve{fill:none;stroke-width:1.5}.title{font-weight:bold}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.all{fill:#333}.dense{fill:#777}}"
)
_BLOCKS = " ░▒▓█"
_BARS = "▁▂▃▄▅▆▇█"

Grid = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a chart: SVG elements in coordinates of their own, and their size in pixels."""

    width: int
    height: int
    elements: tuple[str, ...]


def svg(title: str, panels: Sequence[Panel]) -> str:
    """The text of an SVG file with ``panels`` below each other."""
    width, height = max(p.width for p in panels), sum(p.height for p in panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    top = 0
    for panel in panels:
        lines += [f'<g transform="translate(0 {top})">', *panel.elements, "</g>"]
        top += panel.height
    return "\n".join([*lines, "</svg>"]) + "\n"


def rank_chart(rows: Sequence[tuple[str, float, bool]]) -> str:
    """Horizontal bars of the share of its rank (0..1) that each module keeps.

    Args:
        rows: (name, share, whether it is a low-rank component), drawn from top to bottom.

    Returns:
        The text of an SVG file.
    """
    legend = "share of rank kept; blue: two factors (LRC), grey: dense (N-LRC)"
    lines = [_text(_LABEL, _ROW - 4, legend)]
    for i, (name, share, lrc) in enumerate(rows, start=1):
        y = i * _ROW
        kind = "lrc" if lrc else "dense"
        lines += [
            _text(_LABEL - 8, y + 11, name, anchor="end"),
            f'<rect class="all" x="{_LABEL}" y="{y + 2}" width="{_BAR}" height="{_ROW - 4}"/>',
            f'<rect class="{kind}" x="{_LABEL}" y="{y + 2}" width="{_BAR * share:.1f}" '
            f'height="{_ROW - 4}"/>',
            _text(_LABEL + _BAR + 8, y + 11, f"{share:.0%}"),
        ]
    panel = Panel(_LABEL + _BAR + 60, (len(rows) + 2) * _ROW, tuple(lines))
    return svg("Share of its rank that each module keeps", [panel])


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Grid) -> Panel:
    """A grid of values, the darker the larger, from the smallest to the largest one there is.

    Args:
        title: What the values are.
        rows: Names of the rows.
        columns: Names of the columns.
        values: One per row and column; None leaves a cell empty.
    """
    left = 20 + 7 * max((len(r) for r in rows), default=0)
    longest = max((len(c) for c in columns), default=0)
    head, beyond = 16 + 5 * longest, 6 * longest  # of slanting names of columns
    low, high = _range(values)
    lines = [_text(0, _ROW - 4, f"{title}, {low:.3g} to {high:.3g}", kind="title")]
    for j, name in enumerate(columns):
        x, y = left + j * _CELL + 8, _ROW + head - 6
        lines.append(_text(x, y, name, turn=f"rotate(-40 {x} {y})"))
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = _ROW + head + i * _ROW
        lines.append(_text(left - 8, y + 12, name, anchor="end"))
        for j, value in enumerate(row):
            if value is None:
                continue
            x, share = left + j * _CELL, _share(value, low, high)
            lines.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{_CELL - 1}" height="{_ROW - 1}" '
                f'fill-opacity="{0.08 + 0.82 * share:.3f}"/>'
            )
            lines.append(_text(x + _CELL // 2, y + 12, f"{value:.3g}", anchor="middle"))
    height = _ROW + head + len(rows) * _ROW + _GAP
    return Panel(left + len(columns) * _CELL + beyond, height, tuple(lines))


def curves(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> Panel:
    """Lines over the ranks 1, 2, ..., on one scale from 0 to the largest value."""
    longest = max((len(values) for _, values in series), default=1)
    high = max((max(values, default=0.0) for _, values in series), default=0.0) or 1.0
    left, top, bottom = 56, _ROW + 8, _ROW + 8 + _CURVE_HEIGHT
    step = _CURVE_WIDTH / max(longest - 1, 1)
    lines = [
        _text(0, _ROW - 4, title, kind="title"),
        f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{left + _CURVE_WIDTH}"/>',
        _text(left - 6, top + 8, f"{high:.3g}", anchor="end"),
        _text(left - 6, bottom, "0", anchor="end"),
        _text(left, bottom + 14, "1", anchor="middle"),
        _text(left + _CURVE_WIDTH, bottom + 14, f"rank {longest}", anchor="middle"),
    ]
    for i, (name, values) in enumerate(series):
        hue = _HUES[i % len(_HUES)]
        points = " ".join(
            f"{left + j * step:.1f},{bottom - _CURVE_HEIGHT * v / high:.1f}"
            for j, v in enumerate(values)
        )
        x, y = left + _CURVE_WIDTH + 24, top + 8 + i * _ROW
        lines += [
            f'<polyline class="curve" stroke="{hue}" points="{points}"/>',
            f'<path class="curve" stroke="{hue}" d="M{x} {y - 4}h14"/>',
            _text(x + 20, y, name),
        ]
    height = max(bottom + 14, top + len(series) * _ROW) + _GAP
    names = max((len(name) for name, _ in series), default=0)
    return Panel(left + _CURVE_WIDTH + 60 + 7 * names, height, tuple(lines))


def lines(
    title: str, places: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]
) -> Panel:
    """Lines over named places, from the smallest to the largest value there is.

    Args:
        title: What the values are.
        places: Names of the places, from left to right.
        series: By name, one value per place; None where there is none.
    """
    low, high = _range([values for _, values in series])
    slanting = max((len(name) for name in places[:1]), default=0)
    left, top, bottom = max(80, 6 * slanting), _ROW + 8, _ROW + 8 + _CURVE_HEIGHT
    step = _CURVE_WIDTH / max(len(places) - 1, 1)
    drawn = [
        _text(0, _ROW - 4, title, kind="title"),
        f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{left + _CURVE_WIDTH}"/>',
        _text(left - 6, top + 8, f"{high:.4g}", anchor="end"),
        _text(left - 6, bottom, f"{low:.4g}", anchor="end"),
    ]
    for j, name in enumerate(places):
        x = round(left + j * step)
        turn = f"rotate(-40 {x} {bottom + 14})"
        drawn.append(_text(x, bottom + 14, name, anchor="end", turn=turn))
    for i, (name, values) in enumerate(series):
        hue = _HUES[i % len(_HUES)]
        points = [
            (left + j * step, bottom - _CURVE_HEIGHT * _share(v, low, high))
            for j, v in enumerate(values)
            if v is not None
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline class="curve" stroke="{hue}" points="{path}"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{hue}"/>' for x, y in points]
        if name:
            x, y = left + _CURVE_WIDTH + 24, top + 8 + i * _ROW
            drawn.append(f'<path class="curve" stroke="{hue}" d="M{x} {y - 4}h14"/>')
            drawn.append(_text(x + 20, y, name))
    below = 14 + 5 * max((len(name) for name in places), default=0)
    height = max(bottom + below, top + len(series) * _ROW) + _GAP
    names = max((len(name) for name, _ in series), default=0)
    return Panel(left + _CURVE_WIDTH + 60 + 7 * names, height, tuple(drawn))


def progress(title: str, values: Sequence[float | None]) -> Panel:
    """A line over the trials 1, 2, ..., from the smallest to the largest value there is.

    Args:
        title: What the values are.
        values: One per trial; None where there is none yet.
    """
    low, high = _range([values])
    left, top, bottom = 80, _ROW + 8, _ROW + 8 + _CURVE_HEIGHT
    step = _CURVE_WIDTH / max(len(values) - 1, 1)
    points = " ".join(
        f"{left + j * step:.1f},{bottom - _CURVE_HEIGHT * _share(v, low, high):.1f}"
        for j, v in enumerate(values)
        if v is not None
    )
    return Panel(
        left + _CURVE_WIDTH + 60,
        bottom + 14 + _GAP,
        (
            _text(0, _ROW - 4, title, kind="title"),
            f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{left + _CURVE_WIDTH}"/>',
            _text(left - 6, top + 8, f"{high:.4g}", anchor="end"),
            _text(left - 6, bottom, f"{low:.4g}", anchor="end"),
            _text(left, bottom + 14, "1", anchor="middle"),
            _text(left + _CURVE_WIDTH, bottom + 14, f"trial {len(values)}", anchor="middle"),
            f'<polyline class="curve" stroke="{_HUES[0]}" points="{points}"/>',
        ),
    )


def bars(title: str, rows: Sequence[tuple[str, float, float]]) -> Panel:
    """Horizontal bars from zero, on one scale, with their values and standard errors.

    Args:
        title: What the values are.
        rows: (name, value, standard error, 0 for none), drawn from top to bottom.
    """
    left = 20 + 7 * max((len(name) for name, _, _ in rows), default=0)
    low = min((value - error for _, value, error in rows), default=0.0)
    high = max((value + error for _, value, error in rows), default=0.0)
    low, high = min(low, 0.0), max(high, 0.0)

    def x(value: float) -> float:
        return left + _BAR * _share(value, low, high)

    lines = [_text(0, _ROW - 4, title, kind="title")]
    for i, (name, value, error) in enumerate(rows, start=1):
        y = i * _ROW
        start, end = sorted((x(0.0), x(value)))
        shown = f"{value:.4g} ± {error:.2g}" if error else f"{value:.4g}"
        lines += [
            _text(left - 8, y + 11, name, anchor="end"),
            f'<rect class="cell" x="{start:.1f}" y="{y + 2}" width="{end - start:.1f}" '
            f'height="{_ROW - 4}"/>',
            _text(left + _BAR + 8, y + 11, shown),
        ]
        if error:
            y += _ROW // 2
            lines.append(
                f'<path class="axis" d="M{x(value - error):.1f} {y}H{x(value + error):.1f}"/>'
            )
    return Panel(left + _BAR + 120, (len(rows) + 1) * _ROW + _GAP, tuple(lines))


def scatter(points: Sequence[tuple[str, str, float, float]], title: str) -> str:
    """Named points in the plane, coloured by group.

    Args:
        points: (name, group, x, y); axes have no unit and are drawn to one scale.
        title: What the picture shows.

    Returns:
        The text of an SVG file.
    """
    groups = sorted({group for _, group, _, _ in points})
    hue = {group: round(360 * i / len(groups)) for i, group in enumerate(groups)}
    xs, ys = [p[2] for p in points] or [0.0], [p[3] for p in points] or [0.0]
    span = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    height = max(_SIDE, (len(groups) + 2) * _ROW)
    lines = []
    inner = _SIDE - 2 * _MARGIN
    for name, group, x, y in points:
        left = _MARGIN + inner * (x - (min(xs) + max(xs) - span) / 2) / span
        top = _MARGIN + inner * ((min(ys) + max(ys) + span) / 2 - y) / span
        lines.append(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="hsl({hue[group]} 60% 50%)">'
            f"<title>{escape(name)}</title></circle>"
        )
        if len(points) <= _NAMED:
            lines.append(f'<text x="{left + 6:.1f}" y="{top + 4:.1f}">{escape(name)}</text>')
    for i, group in enumerate(groups, start=1):
        top = i * _ROW
        lines += [
            f'<circle cx="{_SIDE + 6}" cy="{top - 4}" r="4" fill="hsl({hue[group]} 60% 50%)"/>',
            f'<text x="{_SIDE + 16}" y="{top}">{escape(group)}</text>',
        ]
    return svg(title, [Panel(_SIDE + _LABEL, height, tuple(lines))])


def block_map(rows: Sequence[str], columns: Sequence[str], values: Grid) -> str:
    """A heat map of block characters, a line per row; columns are named above by number."""
    low, high = _range(values)
    wide = max((len(r) for r in rows), default=0)
    numbers = "".join(f"{j:^3}" for j in range(1, len(columns) + 1))
    lines = [" " * wide + "  " + numbers.rstrip()]
    for name, row in zip(rows, values, strict=True):
        lines.append(f"{name:>{wide}}  " + "".join(3 * _shade(v, low, high) for v in row).rstrip())
    legend = ", ".join(f"{j} {name}" for j, name in enumerate(columns, 1))
    return "\n".join([*lines, f"{legend}; {low:.3g} (light) to {high:.3g} (dark)"])


def sparkline(values: Sequence[float]) -> str:
    """One bar character per value, on a scale from 0 to the largest."""
    high = max(values, default=0.0)
    return "".join(_BARS[round(_share(v, 0.0, high) * (len(_BARS) - 1))] for v in values)


def _shade(value: float | None, low: float, high: float) -> str:
    if value is None:
        return _BLOCKS[0]
    return _BLOCKS[1 + round(_share(value, low, high) * (len(_BLOCKS) - 2))]


def _range(values: Grid) -> tuple[float, float]:
    known = [v for row in values for v in row if v is not None]
    return min(known, default=0.0), max(known, default=0.0)


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def _text(x: int, y: int, text: str, *, anchor: str = "", kind: str = "", turn: str = "") -> str:
    given = {"text-anchor": anchor, "class": kind, "transform": turn}
    more = "".join(f' {key}="{value}"' for key, value in given.items() if value)
    return f'<text x="{x}" y="{y}"{more}>{escape(text)}</text>'
