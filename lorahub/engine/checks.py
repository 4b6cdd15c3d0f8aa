"""What must hold before a merge starts, each refused by the adapter's and the module's name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter, Module
from lorahub.errors import (
    IncompatibleError,
    InvalidRecipeError,
    UnsupportedAdapterError,
)
from lorahub.methods.registry import Method

if TYPE_CHECKING:
    from lorahub.engine.plan import Member, PlannedModule
    from lorahub.engine.weights import WeightsFor


def check_numbers(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    scale: float | None,
    dtype: str | None,
    method: Method,
) -> None:
    """Refuse no adapters, or weights, a scale or a dtype that cannot be."""
    if not adapters:
        raise InvalidRecipeError("there is nothing to merge", hint="name at least one adapter")
    if len(adapters) != len(weights):
        raise InvalidRecipeError(
            f"{len(adapters)} adapters but {len(weights)} weights", hint="give each one weight"
        )
    if method.most_adapters is not None and len(adapters) > method.most_adapters:
        raise InvalidRecipeError(
            f"method '{method.name}' merges {method.most_adapters} adapters, not {len(adapters)}",
            hint="use method 'karcher' for more",
        )
    seen: set[str] = set()
    for i, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        if not math.isfinite(weight):
            raise InvalidRecipeError(
                f"the weight of '{adapter.name}' is {weight}, not a finite number",
                hint="give it as REF:WEIGHT with a number",
            )
        if method.equal_weights and weight != 1:
            raise InvalidRecipeError(
                f"method '{method.name}' weighs all adapters alike, but '{adapter.name}' has "
                f"weight {weight:g}",
                hint="drop the weights, or use method 'svd'",
                key=("sources", i, "weight"),
            )
        if adapter.name in seen:
            raise InvalidRecipeError(
                f"'{adapter.name}' is named twice", hint="name it once, with the sum of the weights"
            )
        seen.add(adapter.name)
    if scale is not None and not math.isfinite(scale):
        raise InvalidRecipeError(
            f"scale is {scale}, not a finite number", hint="give --scale a number"
        )
    if dtype is not None and dtype not in {"F32", "F16", "BF16"}:
        raise InvalidRecipeError(f"dtype '{dtype}' is not one of F32, F16, BF16")


def check_patterns(
    adapters: Sequence[Adapter], patterns: Sequence[WeightsFor], method: Method
) -> None:
    """Refuse weights by pattern that cannot be, or that the method does not take."""
    if len(adapters) != len(patterns):
        raise InvalidRecipeError(
            f"{len(adapters)} adapters but {len(patterns)} sets of weights by pattern",
            hint="give one for each adapter, empty where there is nothing to say",
        )
    for i, (adapter, some) in enumerate(zip(adapters, patterns, strict=True)):
        if some and method.equal_weights:
            raise InvalidRecipeError(
                f"method '{method.name}' weighs all adapters alike, but '{adapter.name}' has "
                f"weights by pattern ('{next(iter(some))}')",
                hint="drop the weights, or use method 'svd'",
                key=("sources", i, "weights"),
            )
        for pattern, weight in some.items():
            if not math.isfinite(weight):
                raise InvalidRecipeError(
                    f"the weight of '{adapter.name}' for '{pattern}' is {weight}, not a finite "
                    "number",
                    hint="give it as PATTERN=WEIGHT with a number",
                )


def check_kinds(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters of kinds that cannot be merged."""
    for adapter in adapters:
        if adapter.info.refusals:
            reasons = "; ".join(r.message for r in adapter.info.refusals)
            raise UnsupportedAdapterError(
                f"'{adapter.name}' cannot be merged: {reasons}", hint="leave it out of the merge"
            )


def check_same(one: Adapter, a: Module, other: Adapter, b: Module, method: Method) -> None:
    """Refuse two adapters that differ in a module where the method needs them alike."""
    if (a.d_in, a.d_out, a.kind) != (b.d_in, b.d_out, b.kind):
        raise IncompatibleError(
            f"module '{a.name}' is {a.kind} {a.d_out}x{a.d_in} in '{one.name}' but "
            f"{b.kind} {b.d_out}x{b.d_in} in '{other.name}'",
            hint="the adapters are for different base models; leave one out",
        )
    if method.equal_ranks and a.rank != b.rank:
        raise IncompatibleError(
            f"method '{method.name}' needs equal ranks, but module '{a.name}' has rank {a.rank} "
            f"in '{one.name}' and {b.rank} in '{other.name}'",
            hint="use method 'svd', which takes any ranks",
        )


def check_coverage(
    adapters: Sequence[Adapter], members: Mapping[str, Sequence[Member]]
) -> list[str]:
    """Refuse an adapter that shares no module with the others; note partly shared ones."""
    if len(adapters) == 1:
        return []
    shared: set[int] = set()
    for group in members.values():
        if len(group) > 1:
            shared.update(m.adapter for m in group)
    alone = [a.name for i, a in enumerate(adapters) if i not in shared]
    if alone:
        raise IncompatibleError(
            f"'{alone[0]}' shares no target module with the other adapters",
            hint="compare their modules with `lorahub show`; leave it out",
        )
    partial = [name for name, group in members.items() if len(group) < len(adapters)]
    if not partial:
        return []
    return [
        f"{len(partial)} of {len(members)} modules are not in every adapter and are merged over "
        f"those that have them (first: {min(partial)})"
    ]


def check_rank(rank: object, modules: Sequence[PlannedModule], notes: list[str]) -> None:
    """Refuse a rank that no module can have; note the modules that cannot have it."""
    if not isinstance(rank, int):
        return
    possible = {m.name: min(m.rank, m.d_in, m.d_out) for m in modules}
    most = max(possible.values())
    if rank > most:
        raise InvalidRecipeError(
            f"rank {rank} is above the largest possible rank, {most}",
            hint=f"choose a rank from 1 to {most}, or method 'cat' for all of them",
            key=("parameters", "rank"),
        )
    short = [name for name, limit in possible.items() if limit < rank]
    if short:
        notes.append(
            f"{len(short)} modules cannot have rank {rank} and keep all of theirs "
            f"(first: {min(short)}, {possible[min(short)]})"
        )
