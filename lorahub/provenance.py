"""From what and how: between a plan, the record of its result, and the recipe that repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter, Origin
from lorahub.record import Packed, Parent, Record

if TYPE_CHECKING:
    from lorahub.engine.plan import Plan
    from lorahub.engine.run import MergedModule
    from lorahub.engine.sizes import PackTarget
    from lorahub.recipe import Recipe


def parents_of(plan: Plan) -> tuple[Parent, ...]:
    """The sources of a plan as its record tells of them."""
    return tuple(
        Parent(
            reference=(
                f"{a.origin.repo_id}@{a.origin.revision}"
                if a.origin.repo_id
                else a.origin.url or a.name
            ),
            content_hash=a.info.content_hash,
            weight=weight,
            weights=patterns,
            factor=factor,
            repo_id=a.origin.repo_id,
            revision=a.origin.revision,
            endpoint=a.origin.endpoint if a.origin.repo_id else None,
            license=a.info.license,
        )
        for a, weight, patterns, factor in zip(
            plan.adapters,
            plan.weights,
            plan.patterns,
            plan.factors or [1.0] * len(plan.adapters),
            strict=True,
        )
    )


def pinned_reference(origin: Origin) -> str | None:
    """A reference that means the same on another machine, or None for a local adapter."""
    if origin.repo_id is None:
        return origin.url
    where = f"{origin.endpoint.rstrip('/')}/" if origin.endpoint else ""
    return f"{where}{origin.repo_id}@{origin.revision}"


def warnings_of(modules: Sequence[MergedModule]) -> tuple[str, ...]:
    """What the method warned of in its reports, each once with the number of modules."""
    counts = Counter(m.report["warning"] for m in modules if "warning" in m.report)
    return tuple(f"{count} of {len(modules)} modules: {text}" for text, count in counts.items())


def pinned_recipe(plan: Plan, name: str) -> Recipe:
    """The recipe that makes the same result again, every source pinned by content."""
    from lorahub.recipe import OutputSpec, Recipe, SourceSpec

    return Recipe(
        method=plan.method.name,
        parameters={k: v for k, v in plan.parameters.items() if v is not None},
        sources=tuple(
            SourceSpec(
                adapter=p.pinned,
                weight=p.weight,
                weights=dict(p.weights),
                sha256=p.content_hash,
            )
            for p in parents_of(plan)
        ),
        scale=plan.scale,
        normalize=plan.normalize,
        allocate=plan.budget.rule if plan.budget else None,
        budget=plan.budget.parameters if plan.budget else None,
        pack=asked_for(plan.pack),
        dtype=plan.dtype,  # type: ignore[arg-type]  # one of the three by construction
        seed=plan.seed,
        base=plan.base_model,
        output=OutputSpec(name=name),
    )


def plan_again(record: Record, parents: Sequence[Adapter]) -> Plan:
    """The plan that a record tells of, carried out on its parents, normalising factors included.

    Raises:
        LorahubError: As `lorahub.engine.plan.make_plan`.
    """
    from lorahub.engine.plan import make_plan
    from lorahub.methods.registry import get

    return make_plan(
        parents,
        [p.weight for p in record.parents],
        get(record.method),
        record.parameters,
        patterns=[p.weights for p in record.parents],
        scale=record.scale,
        normalize=record.normalize,
        allocate=record.allocate,  # type: ignore[arg-type]  # make_plan wrote it
        budget=record.budget,
        pack=asked_for(record.packed),
        dtype=record.dtype,
        seed=record.seed,
        base_model=record.base_model,
    ).with_factors([p.factor for p in record.parents])


def is_result_of(record: Record, plan: Plan) -> bool:
    """Whether a record tells of this very merge.

    A merge that left normalising open is also the result of a plan that asks for what it came
    to, as its own pinned recipe does.
    """
    if record.digest == plan.digest:
        return True
    left_open = replace(plan, normalize=None)
    return record.normalize == plan.normalize and record.digest == left_open.digest


def asked_for(pack: Packed | PackTarget | None) -> float | str | None:
    """How small a pack was asked to be, as a recipe says it."""
    return (pack.ratio or f"{pack.limit} bytes") if pack else None
