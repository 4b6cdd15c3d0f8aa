"""Pictures in characters: matrices with shades and numbers, so that colour is never needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tui import text

CELL = 10


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
    heads = [text.ending(c, CELL) for c in columns]
    lines = [" " * width + " " + " ".join(f"{h:>{CELL}}" for h in heads)]
    for row in rows:
        cells = []
        for column in columns:
            value = values.get((row, column))
            if value is None:
                cells.append(" " * CELL)
            else:
                share = (value - low) / (high - low) if high > low else 0.0
                cells.append(f"{text.shade(share) * 2} {value:{CELL - 3}.2f}")
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
    return "\n\n".join([*parts, "Norms\n" + "\n".join(lines), *_kept(comparison)])


def _kept(comparison: Mapping[str, object]) -> list[str]:
    """How much of the plain sum's energy each rank keeps."""
    total = comparison.get("total")
    energy = total.get("energy") if isinstance(total, Mapping) else None
    if not isinstance(energy, list) or not energy:
        return []
    ranks = [2**i for i in range(len(energy).bit_length()) if 2**i < len(energy)]
    lines = [
        f"{rank:>6} {text.bar(energy[rank - 1], 20)} {energy[rank - 1]:6.1%}"
        for rank in (*ranks, len(energy))
    ]
    return ["Energy of the sum that a rank keeps\n" + "\n".join(lines)]


FIGURES: Mapping[str, str] = {
    "norm": "Norm of the delta",
    "effective_rank": "Effective rank",
    "sign_conflict": "Sign conflict of the first two",
}


def layer_map(comparison: Mapping[str, object], figure: str) -> str:
    """A figure by layer and module type: a map for each adapter, or one for the first pair."""
    modules = comparison.get("modules")
    if not isinstance(modules, list) or not modules:
        return "no modules were measured"
    layers = list(dict.fromkeys(str(m["layer"]) for m in modules))
    types = list(dict.fromkeys(str(m["type"]) for m in modules))
    maps: dict[str, dict[tuple[str, str], float]] = {}
    for module in modules:
        place = str(module["layer"]), str(module["type"])
        if figure == "sign_conflict":
            for pair in module["pairs"][:1]:
                maps.setdefault(f"{pair['one']} and {pair['other']}", {})[place] = pair[figure]
        else:
            for norms in module["norms"]:
                maps.setdefault(str(norms["adapter"]), {})[place] = norms[figure]
    top = max((v for values in maps.values() for v in values.values()), default=1.0)
    return "\n\n".join(
        f"{FIGURES[figure]}: {name}\n{matrix(layers, types, values, high=top or 1.0)}"
        for name, values in maps.items()
    ) or "it takes two adapters: put them into the basket"  # fmt: skip


def spectra(comparison: Mapping[str, object]) -> str:
    """The singular values of every module, one adapter beside the other."""
    modules = comparison.get("modules")
    if not isinstance(modules, list) or not modules:
        return ""
    width = max(len(str(m["module"])) for m in modules)
    names = list(dict.fromkeys(str(n["adapter"]) for m in modules for n in m["norms"]))
    lines = ["Singular values, largest first", " " * width + "  " + "  ".join(
        f"{text.clipped(n, 24):24}" for n in names
    )]  # fmt: skip
    for module in modules:
        found = {str(n["adapter"]): n for n in module["norms"]}
        cells = [
            f"{text.spark(found[n]['sigma'], 16):16} {max(found[n]['sigma'], default=0):7.3g}"
            if n in found else " " * 24
            for n in names
        ]  # fmt: skip
        lines.append(f"{module['module']:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
