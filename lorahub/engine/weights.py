"""Weights of a source module by module: one for all of it, and others by pattern.

A pattern is a regular expression that is looked for anywhere in a module's name. The first one
that is found decides, and its weight replaces the source's own there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lorahub.adapter import Adapter
from lorahub.errors import InvalidRecipeError
from lorahub.formats.expressions import SECONDS, Allowance, Expression

WeightsFor = Mapping[str, float]
"""Weights by pattern, in the order in which they are tried."""

Key = tuple[int | str, ...]


def spread(
    common: WeightsFor, own: Sequence[WeightsFor], adapters: Sequence[Adapter]
) -> list[WeightsFor]:
    """Weights by pattern for every adapter: its own, then those common ones that it has use for.

    Args:
        common: Tried on every adapter, after its own.
        own: Per adapter, those for it alone.
        adapters: The sources.

    Raises:
        InvalidRecipeError: A common pattern is in no module of any adapter, or cannot be used.
    """
    allowance = Allowance()
    names = [[m.name for m in a.info.modules] for a in adapters]
    useful = {p: [bool(_found(p, some, allowance, ("weights",))) for some in names] for p in common}
    for pattern, used in useful.items():
        if not any(used):
            raise _matches_nothing(pattern, "any source", names[0], ("weights",))
    return [
        dict(some) | {p: w for p, w in common.items() if useful[p][i] and p not in some}
        for i, some in enumerate(own)
    ]


def module_weights(
    adapter: Adapter, weight: float, patterns: WeightsFor, at: Key = ()
) -> dict[str, float]:
    """The weight of ``adapter`` by module name; ``at`` is the key of ``patterns`` in a recipe.

    Raises:
        InvalidRecipeError: A pattern is in no module's name, or cannot be used.
    """
    names = [m.name for m in adapter.info.modules]
    weights = dict.fromkeys(names, float(weight))
    allowance = Allowance()
    # The first that matches decides: it is written last.
    for pattern, other in reversed(list(patterns.items())):
        found = _found(pattern, names, allowance, at)
        if not found:
            raise _matches_nothing(pattern, f"'{adapter.name}'", names, at)
        weights |= dict.fromkeys(found, float(other))
    return weights


def _found(pattern: str, names: Iterable[str], allowance: Allowance, at: Key) -> list[str]:
    """The names that hold ``pattern``."""
    expression = Expression(pattern, allowance)
    if not expression.usable:
        raise InvalidRecipeError(
            f"weights: pattern '{pattern[:200]}' is not a regular expression that can be used",
            hint="correct it; plain parts of module names work, dots written as '\\.'",
            key=(*at, pattern),
        )
    found = [name for name in names if expression.search(name)]
    if not expression.usable:
        raise InvalidRecipeError(
            f"weights: pattern '{pattern[:200]}' takes over {SECONDS:g} s to match",
            hint="write it without nested repetitions",
            key=(*at, pattern),
        )
    return found


def _matches_nothing(pattern: str, where: str, names: Sequence[str], at: Key) -> InvalidRecipeError:
    example = f" such as '{names[0]}'" if names else ""
    return InvalidRecipeError(
        f"weights: pattern '{pattern}' matches no module of {where}",
        hint=f"patterns are looked for in module names{example}; `lorahub show` lists them",
        key=(*at, pattern),
    )
