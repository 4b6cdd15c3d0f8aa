"""Pictures in characters: matrices with shades and numbers, so that colour is never needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tui import text


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> str:
    """Values by row and column; shades run from ``low`` to ``high``."""
    width = max((len(r) for r in rows), default=0)
    heads = [c if len(c) <= 8 else f"{c[:7]}…" for c in columns]
    lines = [" " * width + " " + " ".join(f"{h:>8}" for h in heads)]
    for row in rows:
        cells = []
        for column in columns:
            value = values.get((row, column))
            if value is None:
                cells.append(" " * 8)
            else:
                share = (value - low) / (high - low) if high > low else 0.0
                cells.append(f"{text.shade(share) * 2} {value:5.3g}")
        lines.append(f"{row:{width}} " + " ".join(cells))
    return "\n".join(lines)


def conflicts(comparison: Mapping[str, object]) -> str:
    """The pairs of ``lorahub compare --json`` as matrices, and the norms."""
    pairs, norms = comparison.get("pairs"), comparison.get("norms")
    if not isinstance(pairs, list) or not isinstance(norms, list):
        return "compare gave no pairs"
    names = [str(n["adapter"]) for n in norms]
    parts = []
    for key, title, low in (
        ("sign_conflict", "Sign conflict: share of entries whose signs differ", 0.0),
        ("cosine", "Cosine of the deltas", -1.0),
        ("overlap_a", "Overlap of the input spaces", 0.0),
    ):
        values: dict[tuple[str, str], float] = {}
        for pair in pairs:
            if isinstance(pair.get(key), int | float):
                values[pair["one"], pair["other"]] = pair[key]
                values[pair["other"], pair["one"]] = pair[key]
        if values:
            parts.append(f"{title}\n{matrix(names, names, values, low=low)}")
    top = max((float(n["norm"]) for n in norms), default=1.0) or 1.0
    width = max(len(n) for n in names)
    lines = [
        f"{n['adapter']:{width}} {text.bar(float(n['norm']) / top, 12)} {float(n['norm']):.4g}"
        f"  effective rank {float(n['effective_rank']):.2f}"
        for n in norms
    ]
    return "\n\n".join([*parts, "Norms\n" + "\n".join(lines)])
