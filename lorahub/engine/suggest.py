"""Which merge suits a set of adapters, from their factors alone.

The rule reads four figures:

- cosines say which adapters are of one kind (stages or variants of one run);
- the overlap of the A factors, whether unlike adapters live in the same directions;
- norms, whether one of them is louder than the rest;
- ranks, whether the result has room for all that the adapters have.

The reasons beside each method say what follows from them; docs/quality.md, how far it is from the
best in hindsight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorahub.adapter import DTYPE_BYTES, Adapter
from lorahub.engine.compare import Comparison, Norms, compare, plan_of
from lorahub.engine.plan import Plan
from lorahub.engine.survey import UNEVEN
from lorahub.engine.weights import spread
from lorahub.errors import IncompatibleError, InvalidRecipeError, UsageError
from lorahub.events import Listener, ignore
from lorahub.kernels.allocation import parse_budget
from lorahub.methods.registry import get
from lorahub.recipe import Recipe, check_auto

ALIKE = 0.5
"""Cosine between deltas from which on two adapters are of one kind: the mean of two then keeps at
least three quarters of each. Checkpoints of one run lie above 0.9; independent runs of one task,
or tasks that teach a model one manner, around 0.2; independent tasks near 0."""

SHARED = 0.5
"""Overlap of the A factors from which on unlike adapters live in the same directions."""

LOUD = 4.0
"""Ratio of norms from which on `tsv_iso` gets equal norms first, where others do from `UNEVEN` on:
one half of it evens them already. On pairs with norms 2.0 to 2.6 times apart equal ones cost it 1.8
points; what lies between was not measured."""

ENOUGH = 0.99
"""Share of the energy that a set of one kind keeps where no rank is asked for."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to merge the set, in the terms of a recipe.

    Attributes:
        method: Name of the merge method.
        scale: Factor on the merged delta.
        reason: Why, in plain words.
        parameters: Of the method; empty where its defaults hold.
        budget: Size of the result, where one was asked for and limits it.
        normalize: True where norms differ too much for a method that would leave them; else
            None.
    """

    method: str
    scale: float
    reason: str
    parameters: Mapping[str, int] = field(default_factory=dict)
    budget: str | float | None = None
    normalize: bool | None = None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to do with a set of adapters.

    Attributes:
        findings: What the figures say of the set, in plain words.
        weights: One per adapter, in the order given.
        choice: The best option.
        others: The two runners-up.
    """

    findings: tuple[str, ...]
    weights: tuple[float, ...]
    choice: Option
    others: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """How large the result may be.

    Attributes:
        full: Mean rank, by parameters, that holds everything all adapters have.
        rank: Mean rank that was asked for where it is less than that, else None.
        parameters: What asks a method with a ``rank`` for it.
        budget: The budget that was asked for instead.
    """

    full: float
    rank: float | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    budget: str | float | None = None


def suggest(
    adapters: Sequence[Adapter],
    *,
    rank: int | None = None,
    budget: str | float | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Suggestion:
    """Choose method, scale, rank and weights for the merge of two or more adapters.

    Args:
        adapters: Of one base model.
        rank: Largest (average) rank of the result; None leaves it open.
        budget: Size of the result instead, as `lorahub.kernels.allocation.parse_budget` reads it.
        dtype: dtype of the result, for a budget in bytes; None takes that of the sources.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        listener: Receives progress.

    Raises:
        UsageError: Fewer than two adapters.
        InvalidRecipeError: A rank or budget that makes no sense, or both.
        IncompatibleError: An adapter that is zero in every module.
        LorahubError: As `lorahub.engine.compare.compare`.
    """
    if len(adapters) < 2:
        raise UsageError(
            "a suggestion needs at least two adapters", hint="name another; see `lorahub ls`"
        )
    room = _room(plan_of(adapters), rank, budget, dtype)
    comparison = compare(adapters, workers=workers, listener=listener)
    silent = [n.adapter for n in comparison.norms if n.norm == 0]
    if silent:
        raise IncompatibleError(
            f"'{silent[0]}' is zero in every module: it was never trained, and adds nothing",
            hint="leave it out",
        )
    return choose(comparison, room)


def _room(plan: Plan, rank: int | None, budget: str | float | None, dtype: str | None) -> Room:
    if rank is not None and budget is not None:
        raise InvalidRecipeError(
            f"rank {rank} and budget '{budget}' are both given", hint="give one of them"
        )
    if rank is not None and rank < 1:
        raise InvalidRecipeError(f"rank {rank} is no rank", hint="give a whole number from 1 on")
    width = sum(m.d_in + m.d_out for m in plan.modules)
    most = [min(m.total_rank, m.d_in, m.d_out) for m in plan.modules]
    whole = sum(r * (m.d_in + m.d_out) for r, m in zip(most, plan.modules, strict=True))
    if rank is not None and rank < max(most):
        return Room(whole / width, rank, {"rank": rank})
    if budget is not None:
        size = parse_budget(
            budget,
            parameters_full=whole,
            bytes_per_value=DTYPE_BYTES[dtype or plan.dtype],
            width_total=width,
        )
        if size < whole:
            return Room(whole / width, size / width, budget=budget)
    return Room(whole / width)


def choose(comparison: Comparison, room: Room) -> Suggestion:
    """The suggestion that follows from the figures of a set, none of it all zero."""
    kinds = kinds_of(comparison)
    loud = max(comparison.norms, key=lambda n: n.norm)
    quiet = min(comparison.norms, key=lambda n: n.norm)
    ratio = loud.norm / quiet.norm
    if len(kinds) == 1 and room.rank is None:
        rank = next(k for k, e in enumerate(comparison.total.energy, 1) if e >= ENOUGH)
        room = Room(room.full, None, {"rank": rank})
    options = tuple(
        Option(
            method,
            get(method).default_scale(len(kinds)),
            reason,
            room.parameters,
            room.budget,
            True if get(method).normalize is False and _is_uneven(method, ratio) else None,
        )
        for method, reason in _ranked(comparison, len(kinds), room)
    )
    findings = [
        _likeness(comparison, kinds),
        _loudness(loud, quiet, uneven=_is_uneven(options[0].method, ratio)),
        _space(comparison, room),
    ]
    return Suggestion(
        tuple(findings),
        _weights(kinds, [n.adapter for n in comparison.norms]),
        options[0],
        options[1:],
    )


def _is_uneven(method: str, ratio: float) -> bool:
    return ratio > (LOUD if method == "tsv_iso" else UNEVEN)


def kinds_of(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """The adapters grouped by likeness: chains of pairs with a cosine of at least `ALIKE`."""
    group = {n.adapter: n.adapter for n in comparison.norms}
    for pair in comparison.pairs:
        if pair.cosine >= ALIKE:
            old, new = group[pair.other], group[pair.one]
            group = {name: new if g == old else g for name, g in group.items()}
    members: dict[str, list[str]] = {}
    for name, g in group.items():
        members.setdefault(g, []).append(name)
    return tuple(map(tuple, members.values()))


def _ranked(comparison: Comparison, kinds: int, room: Room) -> Sequence[tuple[str, str]]:
    """Three methods with reasons, best first."""
    if kinds == 1:
        return _OF_ONE_KIND
    overlap = sum(p.overlap_a for p in comparison.pairs) / len(comparison.pairs)
    if overlap >= SHARED:
        return _IN_THE_SAME_DIRECTIONS
    if room.rank is not None and room.rank <= kinds:
        return _IN_VERY_FEW_RANKS
    # Not for two kinds of several: tsv would move apart what alike adapters have in common.
    if len(comparison.norms) == 2:
        return _TWO if room.rank is None else _TWO_UNDER_A_BUDGET
    return _WITH_ROOM if room.rank is None else _UNDER_A_BUDGET


_OF_ONE_KIND = (
    (
        "svd",
        "adapters of one kind are averaged: what they have in common stays, what is peculiar to "
        "one of them shrinks",
    ),
    ("lego", "averages the ranks that are alike and keeps the others"),
    (
        "karcher",
        "the mean in angle, which keeps the norm that a plain mean of different adapters loses",
    ),
)
_IN_THE_SAME_DIRECTIONS = (
    ("task_arithmetic", "the adapters write into the same directions: their sum has few ranks and "
     "is kept as it is, pulled back by its scale"),
    ("knots", "elects a sign along the common directions, where adapters contradict each other"),
    ("tsv", "moves the adapters apart, as far as common directions allow"),
)  # fmt: skip
_TWO = (
    ("tsv_iso", "the mean of both runners-up: where one of them is much worse for one of two "
     "tasks, the other seldom is, and together they are better than either"),
    ("tsv", "two adapters disturb each other little, so each keeps its own spectrum, made "
     "orthogonal to the other's"),
    ("iso_c", "all directions at one level: a little better for two tasks of one nature, much "
     "worse for two that are not"),
)  # fmt: skip
_TWO_UNDER_A_BUDGET = (
    ("tsv", "two adapters disturb each other little, so each keeps its own spectrum, made "
     "orthogonal to the other's; that costs a little where both tasks are of one nature, and "
     "saves much where they are not"),
    ("flat", "the directions that matter most, all at one level: a little better for two tasks of "
     "one nature, much worse for two that are not"),
    ("task_arithmetic", "the plain sum, pulled back by its scale"),
)  # fmt: skip
_WITH_ROOM = (
    ("iso_c", "in a sum of several unlike adapters a few directions drown the others; a flat "
     "spectrum gives every direction of every adapter the same room"),
    ("iso_cts", "the same, with some room set aside for what only one adapter has"),
    ("tsv", "keeps every adapter's own spectrum; better for an adapter unlike all others"),
)  # fmt: skip
_UNDER_A_BUDGET = (
    ("flat", "the result has fewer ranks than the adapters together: those that matter most over "
     "all modules are kept, at the level that all of them would have"),
    ("lego", "keeps one mean rank for every group of ranks that are alike"),
    ("task_arithmetic", "the nearest matrix of that rank to the sum, pulled back by its scale"),
)  # fmt: skip
_IN_VERY_FEW_RANKS = (
    ("task_arithmetic", "with no more ranks than there are kinds, the strongest directions of the "
     "sum are all that fits"),
    ("flat", "the same directions at one level; nothing is known of so few ranks"),
    ("tsv", "makes the strongest directions of each adapter orthogonal first"),
)  # fmt: skip


def _weights(kinds: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[float, ...]:
    """Weights with which every kind counts as one adapter, the mean of its members."""
    share = {name: 1 / len(kind) for kind in kinds for name in kind}
    return tuple(share[name] for name in names)


def _likeness(comparison: Comparison, kinds: Sequence[Sequence[str]]) -> str:
    cosines = [p.cosine for p in comparison.pairs]
    about = f"cosines of their deltas from {min(cosines):+.2f} to {max(cosines):+.2f}"
    if len(kinds) == 1:
        return f"all {len(comparison.norms)} adapters are of one kind: {about}"
    if len(kinds) == len(comparison.norms):
        return f"{len(kinds)} adapters that are unlike each other: {about}"
    alike = "; ".join(" and ".join(f"'{n}'" for n in kind) for kind in kinds if len(kind) > 1)
    return (
        f"{len(comparison.norms)} adapters of {len(kinds)} kinds, {about}: {alike} are alike, and "
        "each kind weighs as one adapter"
    )


def _loudness(loud: Norms, quiet: Norms, *, uneven: bool) -> str:
    about = f"'{loud.adapter}' has {loud.norm / quiet.norm:.1f} times the norm of '{quiet.adapter}'"
    return f"{about}: all get one norm first" if uneven else about


def _space(comparison: Comparison, room: Room) -> str:
    if room.rank is None:
        asked = room.parameters.get("rank")
        if asked:
            return f"rank {asked} keeps {comparison.total.kept(asked):.1%} of the energy of the sum"
        return f"no limit below rank {room.full:.3g}, which holds all that the adapters have"
    kept = comparison.total.kept(max(1, int(room.rank)))
    return f"rank {room.rank:.3g} of {room.full:.3g} keeps {kept:.0%} of the energy of the sum"


def resolved(
    recipe: Recipe, adapters: Sequence[Adapter], *, listener: Listener = ignore
) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe of method ``auto`` with a method, and why it was chosen.

    What the recipe says itself (scale, normalize, budget, weights) stands; suggested weights
    multiply its own, those by pattern too.

    Raises:
        InvalidRecipeError: A parameter other than ``rank``, a weight that is not positive, or a
            pattern that matches nothing.
        LorahubError: As `suggest`.
    """
    check_auto(recipe)
    patterns = spread(recipe.weights, [source.weights for source in recipe.sources], adapters)
    found = suggest(
        adapters,
        rank=recipe.parameters.get("rank"),
        budget=recipe.budget,
        dtype=recipe.dtype,
        listener=listener,
    )
    choice = found.choice
    sources = tuple(
        source.model_copy(
            update={
                "weight": source.weight * weight,
                "weights": {pattern: own * weight for pattern, own in some.items()},
            }
        )
        for source, some, weight in zip(recipe.sources, patterns, found.weights, strict=True)
    )
    concrete = recipe.model_copy(
        update={
            "method": choice.method,
            "parameters": dict(choice.parameters),
            "sources": sources,
            "weights": {},
            "scale": choice.scale if recipe.scale is None else recipe.scale,
            "normalize": choice.normalize if recipe.normalize is None else recipe.normalize,
            "budget": choice.budget,
        }
    )
    why = f"method auto chose {choice.method}: {choice.reason}"
    return concrete, (why, *(f"method auto found: {text}" for text in found.findings))
