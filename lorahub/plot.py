"""Charts, each written as a self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

_ROW, _LABEL, _BAR = 16, 420, 400
_SIDE, _MARGIN, _NAMED = 720, 24, 60
_STYLE = (
    "text{font:11px sans-serif;fill:#222}.all{fill:#e4e4e4}.lrc{fill:#2a78b5}.dense{fill:#b9b9b9}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.all{fill:#333}.dense{fill:#777}}"
)


def rank_chart(rows: Sequence[tuple[str, float, bool]]) -> str:
    """Horizontal bars of the share of its rank (0..1) that each module keeps.

    Args:
        rows: (name, share, whether it is a low-rank component), drawn from top to bottom.

    Returns:
        The text of an SVG file.
    """
    height = (len(rows) + 2) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _BAR + 60}" height="{height}" '
        'role="img">',
        "<title>Share of its rank that each module keeps</title>",
        f"<style>{_STYLE}</style>",
        f'<text x="{_LABEL}" y="{_ROW - 4}">share of rank kept; blue: two factors (LRC), '
        "grey: dense (N-LRC)</text>",
    ]
    for i, (name, share, lrc) in enumerate(rows, start=1):
        y = i * _ROW
        kind = "lrc" if lrc else "dense"
        lines += [
            f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="all" x="{_LABEL}" y="{y + 2}" width="{_BAR}" height="{_ROW - 4}"/>',
            f'<rect class="{kind}" x="{_LABEL}" y="{y + 2}" width="{_BAR * share:.1f}" '
            f'height="{_ROW - 4}"/>',
            f'<text x="{_LABEL + _BAR + 8}" y="{y + 11}">{share:.0%}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


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
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SIDE + _LABEL}" height="{height}" '
        'role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
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
    return "\n".join([*lines, "</svg>"]) + "\n"
