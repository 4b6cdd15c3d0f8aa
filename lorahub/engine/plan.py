"""Planning: everything about a merge that file headers can tell, before any byte is read.

A plan is pure: the same adapters and options give the same plan, and a merge that cannot be
right is refused here, by the adapter's and the module's name.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any

from lorahub.adapter import DTYPE_BYTES, Adapter, Module, ModuleKind
from lorahub.bases import common_base
from lorahub.engine.checks import (
    check_coverage,
    check_kinds,
    check_numbers,
    check_patterns,
    check_rank,
    check_same,
)
from lorahub.engine.sizes import Budget, PackTarget, budget_for, pack_target
from lorahub.engine.weights import WeightsFor, module_weights
from lorahub.kernels.allocation import Rule
from lorahub.licenses import combine
from lorahub.methods.registry import Method

try:
    LORAHUB_VERSION = version("lorahub-kit")
except PackageNotFoundError:  # a source tree that was never installed
    LORAHUB_VERSION = "0+unknown"


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter's part in a module.

    Attributes:
        adapter: Index of the adapter.
        module: Its module.
        weight: Its weight there.
        factor: What gives it the same norm as the others, where the plan normalises; else 1.
    """

    adapter: int
    module: Module
    weight: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One target module of the result.

    Attributes:
        name: Path inside the base model.
        kind: How the delta meets the base weight.
        d_in: Columns of A.
        d_out: Rows of B.
        members: The adapters that have it, in recipe order.
        rank: Largest rank the result can have here.
    """

    name: str
    kind: ModuleKind
    d_in: int
    d_out: int
    members: tuple[Member, ...]
    rank: int

    @property
    def total_rank(self) -> int:
        """Sum of the members' ranks, R."""
        return sum(m.module.rank for m in self.members)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the members."""
        return tuple(m.weight for m in self.members)

    @property
    def shape(self) -> tuple[int, int, tuple[int, ...]]:
        """Shapes of the factors."""
        return self.d_out, self.d_in, tuple(m.module.rank for m in self.members)

    @property
    def kind_of_batch(self) -> tuple[Any, ...]:
        """What modules must share to be computed in one batch.

        Weights are among it: a stack has one per adapter for all its modules.
        """
        return self.shape, tuple(m.adapter for m in self.members), self.weights


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge with everything resolved and checked.

    Attributes:
        adapters: The sources in recipe order.
        weights: Their weights.
        patterns: Per source, the weights that replace its own at the modules that they match.
        method: The merge method.
        parameters: Its parameters, defaults filled in.
        scale: Factor on the merged delta.
        normalize: Whether every adapter gets the same norm first; None decides by how much
            norms and ranks differ, once they are known.
        factors: Per adapter, what it was multiplied by for that; empty before they are known.
        budget: Budget of parameters that ranks are distributed under, or None.
        pack: How small the result is packed, or None.
        seed: Seed of all random choices.
        dtype: safetensors dtype name of the result.
        base_model: Base model to state in the result, or None where nobody knows it.
        task_type: PEFT task type that the sources share, or None.
        fan_in_fan_out: Whether base weights are stored transposed (transformers' Conv1D).
        auto_mapping: PEFT auto_mapping that the sources share, or None.
        modules: Target modules in the order they are computed and written.
        warnings: What the user should know.
        notes: Warnings that belong into the record of the result.
    """

    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]
    patterns: tuple[WeightsFor, ...]
    method: Method
    parameters: Mapping[str, Any]
    scale: float
    normalize: bool | None
    factors: tuple[float, ...]
    budget: Budget | None
    pack: PackTarget | None
    seed: int
    dtype: str
    base_model: str | None
    task_type: str | None
    fan_in_fan_out: bool
    auto_mapping: Mapping[str, Any] | None
    modules: tuple[PlannedModule, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def license(self) -> str | None:
        """Licence of the result, or None where there is none that is known to fit all sources."""
        return combine([(a.name, a.info.license) for a in self.adapters]).license

    @property
    def rank(self) -> int:
        """Largest rank the result can have."""
        return max(m.rank for m in self.modules)

    @property
    def input_bytes(self) -> int:
        """Bytes of factors that will be read."""
        return sum(
            m.module.rank * (m.module.d_in * DTYPE_BYTES[m.module.dtype_a])
            + m.module.rank * (m.module.d_out * DTYPE_BYTES[m.module.dtype_b])
            for p in self.modules
            for m in p.members
        )

    @property
    def output_bytes(self) -> int:
        """Bytes of factors that will be written, at most."""
        most = sum(p.rank * (p.d_in + p.d_out) for p in self.modules)
        if self.budget is not None:
            most = min(most, self.budget.parameters)
        return most * DTYPE_BYTES[self.dtype]

    @property
    def layout(self) -> tuple[Any, ...]:
        """What plans must share to be carried out together: sources, and batches of modules."""
        batches = groupby(self.modules, key=lambda m: m.kind_of_batch)
        return (
            tuple((a.origin.folder, a.info.content_hash) for a in self.adapters),
            tuple(tuple(m.name for m in batch) for _, batch in batches),
        )

    def with_factors(self, factors: Sequence[float]) -> Plan:
        """The plan with every adapter multiplied by its normalising factor."""
        modules = tuple(
            replace(p, members=tuple(replace(m, factor=factors[m.adapter]) for m in p.members))
            for p in self.modules
        )
        return replace(self, normalize=True, factors=tuple(factors), modules=modules)

    @property
    def digest(self) -> str:
        """sha256 (hex) over everything that determines the result's bytes."""
        body = {
            "lorahub": LORAHUB_VERSION,
            "parents": [
                [a.info.content_hash, w, *map(list, p.items())]
                for a, w, p in zip(self.adapters, self.weights, self.patterns, strict=True)
            ],
            "method": self.method.name,
            "parameters": dict(self.parameters),
            "scale": self.scale,
            "normalize": self.normalize,
            "budget": self.budget and asdict(self.budget),
            "pack": self.pack and asdict(self.pack),
            "seed": self.seed,
            "dtype": self.dtype,
            "base_model": self.base_model,
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def make_plan(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: Method,
    parameters: Mapping[str, Any],
    *,
    patterns: Sequence[WeightsFor] = (),
    scale: float | None = None,
    normalize: bool | None = None,
    allocate: Rule | None = None,
    budget: str | float | None = None,
    pack: str | float | None = None,
    dtype: str | None = None,
    seed: int = 0,
    base_model: str | None = None,
) -> Plan:
    """Plan the merge of ``adapters``.

    Args:
        adapters: One or more, in order.
        weights: One finite number per adapter.
        method: The merge method.
        parameters: Its parameters as the user gave them.
        patterns: Per adapter, weights by pattern, which replace its weight at the modules that
            they match, as `lorahub.engine.weights` says; none at all when empty.
        scale: Factor on the merged delta; None takes the method's default.
        normalize: Whether every adapter gets the same norm first; None takes the method's
            default.
        allocate: Rule that distributes ``budget`` over the modules; None takes the method's
            default, or ``relative``.
        budget: Size of the result, as `lorahub.kernels.allocation.parse_budget` reads it; None
            leaves the ranks to the method.
        pack: How small the result is packed: a ratio to bfloat16 (8), or bytes (``40MB``); None
            takes the method's default, mostly not at all.
        dtype: ``F32``, ``F16`` or ``BF16``; None takes the sources' common dtype, or F32. A
            packed result is what its pack decodes to, in F32.
        seed: Seed of all random choices.
        base_model: Base model to state; needed where the sources disagree or name none.

    Raises:
        InvalidRecipeError: A weight, parameter, dtype or rank that is out of bounds.
        UnsupportedAdapterError: A source that cannot be merged, with the reasons.
        IncompatibleError: Sources that do not fit together.
    """
    patterns = patterns or [{}] * len(adapters)
    check_numbers(adapters, weights, scale, dtype, method)
    check_patterns(adapters, patterns, method)
    filled = method.parameters(parameters)
    check_kinds(adapters)
    warnings = [f"{a.name}: {w}" for a in adapters for w in a.info.warnings]
    base = common_base(adapters, base_model, warnings)
    members = _group(adapters, weights, patterns, method)
    notes = check_coverage(adapters, members)
    modules = _plan_modules(members, method, filled)
    check_rank(filled.get("rank"), modules, notes)
    if scale == 0 or not any(m.weight for group in members.values() for m in group):
        warnings.append("all weights, or the scale, are zero: so is the result")
    licensed = combine([(a.name, a.info.license) for a in adapters])
    notes += [*licensed.conflicts, *licensed.notices]
    target = pack_target(pack if pack is not None else method.packed, dtype)
    dtype = "F32" if target else dtype or _common_dtype(members)
    infos = [a.info for a in adapters]
    config_of = [dict(i.config) for i in infos]
    orientations = {bool(c.get("fan_in_fan_out")) for c in config_of}
    if len(orientations) > 1:
        warnings.append("sources disagree on fan_in_fan_out; true is written")
    mappings = [c.get("auto_mapping") for c in config_of]
    tasks = {i.task_type for i in infos}
    if len(tasks) > 1:
        warnings.append("sources have different task types; none is written")
    return Plan(
        adapters=tuple(adapters),
        weights=tuple(float(w) for w in weights),
        patterns=tuple({p: float(w) for p, w in some.items()} for some in patterns),
        method=method,
        parameters=filled,
        scale=method.default_scale(len(adapters)) if scale is None else float(scale),
        normalize=method.normalize if normalize is None else normalize,
        factors=(),
        budget=budget_for(modules, method, allocate, budget, dtype, filled),
        pack=target,
        seed=seed,
        dtype=dtype,
        base_model=base,
        task_type=tasks.pop() if len(tasks) == 1 else None,
        fan_in_fan_out=True in orientations,
        auto_mapping=mappings[0] if all(m == mappings[0] for m in mappings) else None,
        modules=modules,
        warnings=tuple(warnings + notes),
        notes=tuple(notes),
    )


_Members = Mapping[str, list[Member]]


def _group(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    patterns: Sequence[WeightsFor],
    method: Method,
) -> _Members:
    """Members by module name; shapes and kinds are checked to agree."""
    found: dict[str, list[Member]] = defaultdict(list)
    for index, adapter in enumerate(adapters):
        weight_of = module_weights(
            adapter, weights[index], patterns[index], ("sources", index, "weights")
        )
        for module in adapter.info.modules:
            first = found[module.name][0] if found[module.name] else None
            if first is not None:
                check_same(adapters[first.adapter], first.module, adapter, module, method)
            found[module.name].append(Member(index, module, weight_of[module.name]))
    if method.equal_weights:
        found = defaultdict(
            list,
            {
                name: [Member(m.adapter, m.module, 1 / len(group)) for m in group]
                for name, group in found.items()
            },
        )
    return found


def _plan_modules(
    members: _Members, method: Method, parameters: Mapping[str, Any]
) -> tuple[PlannedModule, ...]:
    planned = []
    for name, group in members.items():
        m = group[0].module
        bound = method.rank_bound([g.module.rank for g in group], min(m.d_in, m.d_out), parameters)
        planned.append(PlannedModule(name, m.kind, m.d_in, m.d_out, tuple(group), bound))
    # Those of one batch side by side, in an order that other weights would not change.
    planned.sort(key=lambda p: p.name)
    first: dict[Any, str] = {}
    for module in planned:
        first.setdefault(module.kind_of_batch, module.name)
    return tuple(sorted(planned, key=lambda p: (p.shape, first[p.kind_of_batch], p.name)))


def _common_dtype(members: _Members) -> str:
    dtypes = {d for g in members.values() for m in g for d in (m.module.dtype_a, m.module.dtype_b)}
    return dtypes.pop() if len(dtypes) == 1 and dtypes != {"F64"} else "F32"
