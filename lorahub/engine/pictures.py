"""What a comparison looks like: the rows, columns and values of its charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lorahub.plot import Grid, block_map, curves, heat_map, svg

if TYPE_CHECKING:
    from lorahub.engine.compare import Comparison, Pair

_Figure = Callable[["Pair"], float]

_FIGURES: dict[str, _Figure] = {
    "sign conflict": lambda pair: pair.sign_conflict,
    "overlap of A": lambda pair: pair.overlap_a,
    "overlap of B": lambda pair: pair.overlap_b,
    "size of the cosine": lambda pair: abs(pair.cosine),
}


def chart(comparison: Comparison) -> str:
    """Heat maps of every figure of pairs, and spectra, as the text of an SVG file."""
    names = [n.adapter for n in comparison.norms]
    spectra = [*comparison.norms, comparison.total]
    maps = []
    for title, figure in _FIGURES.items():
        maps.append(heat_map(f"{title}, adapters", names, names, by_pair(comparison, figure)))
        layers, types, values = by_layer(comparison, figure)
        maps.append(heat_map(f"{title}, mean over pairs", layers, types, values))
    return svg(
        "How adapters relate",
        [
            *maps,
            curves(
                "Singular values, all modules together", [(n.adapter, n.sigma) for n in spectra]
            ),
            curves("Share of energy kept at each rank", [(n.adapter, n.energy) for n in spectra]),
        ],
    )


def picture(comparison: Comparison) -> str:
    """Sign conflict by layer and module type, in block characters."""
    title = "sign conflict"
    layers, types, values = by_layer(comparison, _FIGURES[title])
    return f"{title}, mean over pairs\n{block_map(layers, types, values)}"


def by_pair(comparison: Comparison, figure: _Figure) -> Grid:
    """A figure for every pair of adapters, on both sides of an empty diagonal."""
    names = [n.adapter for n in comparison.norms]
    known = {(p.one, p.other): figure(p) for p in comparison.pairs}
    known |= {(other, one): value for (one, other), value in known.items()}
    return [[known.get((one, other)) for other in names] for one in names]


def by_layer(comparison: Comparison, figure: _Figure) -> tuple[Sequence[str], Sequence[str], Grid]:
    """(layers, types, values): the mean of a figure over the pairs of each module."""
    layers = list(dict.fromkeys(m.layer for m in comparison.modules))
    types = [t.type for t in comparison.types]
    means = {
        (m.layer, m.type): sum(map(figure, m.pairs)) / len(m.pairs)
        for m in comparison.modules
        if m.pairs
    }
    values = [[means.get((layer, kind)) for kind in types] for layer in layers]
    return _tails(layers), _tails(types), values


def _tails(paths: Sequence[str]) -> Sequence[str]:
    """The last parts of dotted paths, as few as tell them apart."""
    split = [path.split(".") for path in paths]
    for n in range(1, max(map(len, split), default=1)):
        short = [".".join(parts[-n:]) for parts in split]
        if len(set(short)) == len(paths):
            return short
    return paths
