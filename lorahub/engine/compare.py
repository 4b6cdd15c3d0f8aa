"""Comparing adapters from their factors alone.

Modules are read in batches of one shape; what relates their deltas comes from Gram matrices
(`lorahub.kernels.relations`), and figures over several modules from those of each.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from lorahub.adapter import Adapter
from lorahub.bases import known_base
from lorahub.engine.batches import Batches, name_the_bad_factor
from lorahub.engine.plan import Plan, PlannedModule, make_plan
from lorahub.errors import UsageError
from lorahub.events import Listener, ignore
from lorahub.kernels.relations import Cosines, Relations, sign_conflict
from lorahub.kernels.stack import Stack
from lorahub.methods.registry import get

SIGN_ROWS = 64
"""Rows of the deltas that sign conflict is counted on, spread evenly."""

MOST = 64
"""Adapters that are compared at once: figures of all their pairs at all modules are kept."""

SUM = "sum"
"""Name that the sum of all adapters goes by."""

_NO_BASE = "unknown/unknown"
"""Base of adapters that name none: a plan must have one, and a comparison writes none."""

_BLOCK = re.compile(r"(?P<layer>(?:.*\.)?\d+)\.(?P<type>[^\d.].*)")


@dataclass(frozen=True, slots=True)
class Norms:
    """One delta at one module, or over several.

    Over several modules, the norm is that of all of them together, the effective rank their
    mean, nuclear norms add up, and a singular value stands for all that have its place in their
    module: the root of the sum of their squares. Norm and energy then follow from ``sigma`` as
    they do at one module.

    Attributes:
        adapter: Name of the adapter; ``sum`` for the sum of all adapters, each with weight 1.
        norm: Frobenius norm.
        effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli,
            EUSIPCO 2007); 0 for a delta of zeros.
        nuclear: Sum of the singular values.
        nuclear_l12: Its approximation without singular values, the L1,2 norm of Matrix
            Nuclear-Norm (Li et al., 2024, arXiv 2410.10672): the sum of the min(d_out, d_in)
            largest column norms. Far above ``nuclear`` where the rank is low.
        sigma: Singular values, descending.
        energy: Share (0..1) of the squared norm that the best approximation of rank 1, 2, ...
            keeps.
    """

    adapter: str
    norm: float
    effective_rank: float
    nuclear: float
    nuclear_l12: float
    sigma: tuple[float, ...]
    energy: tuple[float, ...]

    def kept(self, rank: int) -> float:
        """Share of the squared norm that ``rank`` ranks keep."""
        return self.energy[min(rank, len(self.energy)) - 1] if self.energy else 1.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two adapters at one module, or over all that both have.

    Over several modules, overlaps and sign conflict are means, and the i-th principal cosine is
    the root mean square over the modules that have one.

    Attributes:
        one: Name of the first.
        other: Name of the second.
        cosine: Cosine between the deltas, as vectors.
        overlap_a: Mean squared cosine of the principal angles between the row spaces of A.
        overlap_b: The same between the column spaces of B.
        sign_conflict: Share of the entries with opposite signs, on up to 64 rows per module.
        cosines_a: Cosines of the principal angles between the row spaces of A, descending; as
            many as the smaller space has dimensions.
        cosines_b: The same between the column spaces of B.
    """

    one: str
    other: str
    cosine: float
    overlap_a: float
    overlap_b: float
    sign_conflict: float
    cosines_a: tuple[float, ...]
    cosines_b: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModuleComparison:
    """All figures of one module.

    Attributes:
        module: Its path inside the base model.
        layer: The part up to and with the last number: ``model.layers.3``; empty without one.
        type: The rest: ``self_attn.q_proj``.
        norms: One per adapter that has the module.
        total: The sum of them.
        pairs: All pairs of them.
    """

    module: str
    layer: str
    type: str
    norms: tuple[Norms, ...]
    total: Norms
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class TypeComparison:
    """Figures over the modules of one type.

    Attributes:
        type: As `ModuleComparison` has it.
        modules: How many there are.
        norms: One per adapter that has one of them.
        total: The sum of these adapters.
        pairs: All pairs of them.
    """

    type: str
    modules: int
    norms: tuple[Norms, ...]
    total: Norms
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures over all modules, per module type, and per module.

    Attributes:
        norms: One per adapter, in the order given.
        total: The sum of all adapters, each with weight 1.
        pairs: All pairs of adapters.
        types: By name of the type.
        modules: By layer, then type.
    """

    norms: tuple[Norms, ...]
    total: Norms
    pairs: tuple[Pair, ...]
    types: tuple[TypeComparison, ...]
    modules: tuple[ModuleComparison, ...]


def compare(
    adapters: Sequence[Adapter], *, workers: int | None = None, listener: Listener = ignore
) -> Comparison:
    """Compare two or more adapters; each module over those that have it.

    Args:
        adapters: Of one base model, as far as they name one.
        workers: Threads; None takes the CPUs this process may use, at most 8.
        listener: Receives progress.

    Raises:
        UsageError: Fewer than two adapters, more than `MOST`, or one of them twice.
        IncompatibleError: Different base models, a module of different shapes, or an adapter
            that shares no module with the others.
        UnsupportedAdapterError: One whose factors do not say what its delta is.
        InvalidAdapterError: One that is damaged, or holds NaN or Inf.
    """
    if len(adapters) < 2:
        raise UsageError(
            "comparing needs at least two adapters", hint="name another; see `lorahub ls`"
        )
    return measure(adapters, workers=workers, listener=listener)


def measure(
    adapters: Sequence[Adapter], *, workers: int | None = None, listener: Listener = ignore
) -> Comparison:
    """As `compare`, of one adapter or more; one alone has no pairs."""
    plan = plan_of(adapters)
    names = [a.name for a in adapters]
    with Batches(plan, device=torch.device("cpu"), workers=workers) as batches:

        def work(batch: Sequence[PlannedModule], stack: Stack) -> list[ModuleComparison]:
            if not bool((stack.precise_grams[0].sum() + stack.precise_grams[1].sum()).isfinite()):
                name_the_bad_factor(plan, batch, stack)
            return _compare_batch(names, batch, stack)

        modules = [found for _, found in batches.run(plan, "compare", work, listener)]
    modules.sort(key=lambda m: (_natural(m.layer), m.type))
    types: dict[str, list[ModuleComparison]] = defaultdict(list)
    for module in modules:
        types[module.type].append(module)
    return Comparison(
        *_together(names, modules),
        tuple(TypeComparison(t, len(types[t]), *_together(names, types[t])) for t in sorted(types)),
        tuple(modules),
    )


def plan_of(adapters: Sequence[Adapter]) -> Plan:
    """A plan that reads every module of the adapters, with weights of 1.

    Raises:
        LorahubError: As `compare`.
    """
    names = [a.name for a in adapters]
    if len(names) > MOST:
        raise UsageError(
            f"{len(names)} adapters are too many to compare every two of them; {MOST} are the most",
            hint="group them first: `lorahub cluster`, `lorahub similar`",
        )
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"'{name}' is named twice", hint="name each adapter once")
    base = known_base(adapters) or _NO_BASE
    return make_plan(adapters, [1.0] * len(names), get("cat"), {}, base_model=base)


def split_name(module: str) -> tuple[str, str]:
    """(layer, type) of a module's path; the layer is empty where no number precedes a name."""
    match = _BLOCK.fullmatch(module)
    return (match["layer"], match["type"]) if match else ("", module)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers inside a text by value."""
    parts = re.split(r"(\d+)", text)
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in parts)


def _compare_batch(
    names: Sequence[str], batch: Sequence[PlannedModule], stack: Stack
) -> list[ModuleComparison]:
    relations = Relations(stack)
    members = range(len(stack.ranks))
    norms = [relations.spectra(t) for t in members]
    total = relations.spectra()
    conflict = sign_conflict(stack, SIGN_ROWS).tolist()
    pairs = list(combinations(members, 2))
    related = [relations.between(i, j) for i, j in pairs]
    found = []
    for m, module in enumerate(batch):
        who = [names[member.adapter] for member in module.members]
        own = tuple(_norms(name, *values[m]) for name, values in zip(who, norms, strict=True))
        found.append(
            ModuleComparison(
                module.name,
                *split_name(module.name),
                own,
                _norms(SUM, *total[m]),
                tuple(
                    _pair(own[i], own[j], *values[m], conflict[m][i][j])
                    for (i, j), values in zip(pairs, related, strict=True)
                ),
            )
        )
    return found


def _norms(adapter: str, sigma: Sequence[float], l12: float) -> Norms:
    return _summary(adapter, sigma, _effective_rank(sigma), sum(sigma), l12)


def _summary(
    adapter: str, sigma: Sequence[float], effective_rank: float, nuclear: float, l12: float
) -> Norms:
    squares = [s * s for s in sigma]
    whole = math.fsum(squares)
    energy, kept = [], 0.0
    for square in squares:
        kept += square
        energy.append(min(kept / whole, 1.0) if whole else 1.0)
    return Norms(
        adapter, math.sqrt(whole), effective_rank, nuclear, l12, tuple(sigma), tuple(energy)
    )


def _effective_rank(sigma: Sequence[float]) -> float:
    total = sum(sigma)
    shares = [s / total for s in sigma if s > 0] if total > 0 else []
    return math.exp(-sum(p * math.log(p) for p in shares)) if shares else 0.0


def _pair(
    one: Norms, other: Norms, dot: float, of_a: Cosines, of_b: Cosines, sign_conflict: float
) -> Pair:
    return Pair(
        one.adapter,
        other.adapter,
        _cosine(dot, one, other),
        _overlap(of_a),
        _overlap(of_b),
        sign_conflict,
        of_a,
        of_b,
    )


def _cosine(dot: float, one: Norms, other: Norms) -> float:
    length = one.norm * other.norm
    return max(-1.0, min(1.0, dot / length)) if length > 0 else 0.0


def _overlap(cosines: Cosines) -> float:
    return _mean([c * c for c in cosines])


def _together(
    names: Sequence[str], modules: Sequence[ModuleComparison]
) -> tuple[tuple[Norms, ...], Norms, tuple[Pair, ...]]:
    """(norms, total, pairs) over several modules, of the adapters that have one of them."""
    own: dict[str, list[Norms]] = defaultdict(list)
    shared: dict[tuple[str, str], list[tuple[ModuleComparison, Pair]]] = defaultdict(list)
    for module in modules:
        for norms in module.norms:
            own[norms.adapter].append(norms)
        for pair in module.pairs:
            shared[pair.one, pair.other].append((module, pair))
    whole = {name: _all_of(name, own[name]) for name in names if name in own}
    return (
        tuple(whole.values()),
        _all_of(SUM, [m.total for m in modules]),
        tuple(
            _all_of_pair(whole[one], whole[other], shared[one, other])
            for one, other in combinations(whole, 2)
        ),
    )


def _all_of(adapter: str, parts: Sequence[Norms]) -> Norms:
    return _summary(
        adapter,
        [math.hypot(*values) for values in _columns([p.sigma for p in parts])],
        _mean([p.effective_rank for p in parts]),
        math.fsum(p.nuclear for p in parts),
        math.fsum(p.nuclear_l12 for p in parts),
    )


def _all_of_pair(one: Norms, other: Norms, parts: Sequence[tuple[ModuleComparison, Pair]]) -> Pair:
    dots = []
    for module, pair in parts:
        norm = {n.adapter: n.norm for n in module.norms}
        dots.append(pair.cosine * norm[pair.one] * norm[pair.other])
    pairs = [pair for _, pair in parts]
    return Pair(
        one.adapter,
        other.adapter,
        _cosine(math.fsum(dots), one, other),
        _mean([p.overlap_a for p in pairs]),
        _mean([p.overlap_b for p in pairs]),
        _mean([p.sign_conflict for p in pairs]),
        tuple(math.sqrt(_overlap(c)) for c in _columns([p.cosines_a for p in pairs])),
        tuple(math.sqrt(_overlap(c)) for c in _columns([p.cosines_b for p in pairs])),
    )


def _columns(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """The first values of all rows, then the second of those that have one, and so on."""
    longest = max(map(len, rows), default=0)
    return [tuple(row[i] for row in rows if i < len(row)) for i in range(longest)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
