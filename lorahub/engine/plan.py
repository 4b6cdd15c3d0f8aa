"""Planning: everything about a merge that file headers can tell, before any byte is read.

A plan is pure: the same adapters and options give the same plan, and a merge that cannot be
right is refused here, by the adapter's and the module's name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lorahub.adapter import DTYPE_BYTES, Adapter, Module, ModuleKind
from lorahub.bases import common_base
from lorahub.errors import (
    IncompatibleError,
    InvalidRecipeError,
    UnsupportedAdapterError,
)
from lorahub.kernels.allocation import Rule, parse_budget, parse_bytes
from lorahub.methods.registry import Method

try:
    LORAHUB_VERSION = version("lorahub-kit")
except PackageNotFoundError:  # a source tree that was never installed
    LORAHUB_VERSION = "0+unknown"


DEFAULT_RULE: Rule = "relative"
"""How a budget is distributed where nothing is said."""


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
        """What modules must share to be computed in one batch."""
        return self.d_out, self.d_in, tuple(m.module.rank for m in self.members)


@dataclass(frozen=True, slots=True)
class Budget:
    """Most parameters the result may have, and the rule that distributes them over modules."""

    parameters: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class PackTarget:
    """How small a packed result must be; exactly one is given.

    Attributes:
        ratio: Times smaller than its parameters in bfloat16.
        limit: Bytes that it may have.
    """

    ratio: float | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge with everything resolved and checked.

    Attributes:
        adapters: The sources in recipe order.
        weights: Their weights.
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
                [a.info.content_hash, w] for a, w in zip(self.adapters, self.weights, strict=True)
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
    _check_numbers(adapters, weights, scale, dtype, method)
    filled = method.parameters(parameters)
    for adapter in adapters:
        if adapter.info.refusals:
            reasons = "; ".join(r.message for r in adapter.info.refusals)
            raise UnsupportedAdapterError(
                f"'{adapter.name}' cannot be merged: {reasons}", hint="leave it out of the merge"
            )
    warnings = [f"{a.name}: {w}" for a in adapters for w in a.info.warnings]
    base = common_base(adapters, base_model, warnings)
    members = _group(adapters, weights, method)
    notes = _coverage(adapters, members)
    modules = _plan_modules(members, method, filled)
    _check_rank(filled.get("rank"), modules, notes)
    target = _pack_target(pack if pack is not None else method.packed, dtype)
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
        method=method,
        parameters=filled,
        scale=method.default_scale(len(adapters)) if scale is None else float(scale),
        normalize=method.normalize if normalize is None else normalize,
        factors=(),
        budget=_budget(modules, method, allocate, budget, dtype, filled),
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


def _check_numbers(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    scale: float | None,
    dtype: str | None,
    method: Method,
) -> None:
    if not adapters:
        raise InvalidRecipeError("there is nothing to merge", hint="name at least one adapter")
    if len(adapters) != len(weights):
        raise InvalidRecipeError(f"{len(adapters)} adapters but {len(weights)} weights")
    if method.most_adapters is not None and len(adapters) > method.most_adapters:
        raise InvalidRecipeError(
            f"method '{method.name}' merges {method.most_adapters} adapters, not {len(adapters)}",
            hint="use method 'karcher' for more",
        )
    seen: set[str] = set()
    for adapter, weight in zip(adapters, weights, strict=True):
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


_Members = Mapping[str, list[Member]]


def _group(adapters: Sequence[Adapter], weights: Sequence[float], method: Method) -> _Members:
    """Members by module name; shapes and kinds are checked to agree."""
    found: dict[str, list[Member]] = defaultdict(list)
    for index, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        for module in adapter.info.modules:
            first = found[module.name][0] if found[module.name] else None
            if first is not None:
                _check_same(adapters[first.adapter], first.module, adapter, module, method)
            found[module.name].append(Member(index, module, float(weight)))
    if method.equal_weights:
        found = defaultdict(
            list,
            {
                name: [Member(m.adapter, m.module, 1 / len(group)) for m in group]
                for name, group in found.items()
            },
        )
    return found


def _check_same(one: Adapter, a: Module, other: Adapter, b: Module, method: Method) -> None:
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


def _coverage(adapters: Sequence[Adapter], members: _Members) -> list[str]:
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


def _plan_modules(
    members: _Members, method: Method, parameters: Mapping[str, Any]
) -> tuple[PlannedModule, ...]:
    planned = []
    for name, group in members.items():
        m = group[0].module
        bound = method.rank_bound([g.module.rank for g in group], min(m.d_in, m.d_out), parameters)
        planned.append(PlannedModule(name, m.kind, m.d_in, m.d_out, tuple(group), bound))
    return tuple(sorted(planned, key=lambda p: (p.shape, p.name)))


def _check_rank(rank: object, modules: Sequence[PlannedModule], notes: list[str]) -> None:
    if not isinstance(rank, int):
        return
    possible = {m.name: min(m.rank, m.d_in, m.d_out) for m in modules}
    most = max(possible.values())
    if rank > most:
        raise InvalidRecipeError(
            f"rank {rank} is above the largest possible rank, {most}",
            hint=f"choose a rank from 1 to {most}, or method 'cat' for all of them",
        )
    short = [name for name, limit in possible.items() if limit < rank]
    if short:
        notes.append(
            f"{len(short)} modules cannot have rank {rank} and keep all of theirs "
            f"(first: {min(short)}, {possible[min(short)]})"
        )


def _budget(
    modules: Sequence[PlannedModule],
    method: Method,
    allocate: Rule | None,
    budget: str | float | None,
    dtype: str,
    parameters: Mapping[str, Any],
) -> Budget | None:
    if budget is None:
        if method.allocation and "rank" in parameters:
            ranks = [parameters["rank"] or m.total_rank / len(m.members) for m in modules]
            size = sum(r * (m.d_in + m.d_out) for r, m in zip(ranks, modules, strict=True))
            return Budget(int(size), allocate or method.allocation)
        if method.allocation or allocate:
            why = f"method '{method.name}'" if method.allocation else f"allocation '{allocate}'"
            raise InvalidRecipeError(
                f"{why} needs a budget",
                hint="give --budget as bytes (40MB), a reduction (30%), an average rank (rank 8) "
                "or parameters (2M params)",
            )
        return None
    widths = [m.d_in + m.d_out for m in modules]
    most = parse_budget(
        budget,
        parameters_full=sum(m.rank * w for m, w in zip(modules, widths, strict=True)),
        bytes_per_value=DTYPE_BYTES[dtype],
        width_total=sum(widths),
    )
    return Budget(most, allocate or method.allocation or DEFAULT_RULE)


def _pack_target(pack: str | float | None, dtype: str | None) -> PackTarget | None:
    if pack is None:
        return None
    if dtype not in {None, "F32"}:
        raise InvalidRecipeError(
            f"a packed result is written in F32, as its pack decodes, not in {dtype}",
            hint="drop the dtype",
        )
    try:
        ratio = float(pack)
    except ValueError:
        return PackTarget(limit=parse_bytes(str(pack)))
    if not 1 < ratio < math.inf:
        raise InvalidRecipeError(
            f"pack '{pack}' is no ratio above 1",
            hint="give how many times smaller than in bfloat16 (8), or bytes (40MB)",
        )
    return PackTarget(ratio=ratio)


def _common_dtype(members: _Members) -> str:
    dtypes = {d for g in members.values() for m in g for d in (m.module.dtype_a, m.module.dtype_b)}
    return dtypes.pop() if len(dtypes) == 1 and dtypes != {"F64"} else "F32"
