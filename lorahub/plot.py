"""One chart, written as a self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

_ROW, _LABEL, _BAR = 16, 420, 400
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
