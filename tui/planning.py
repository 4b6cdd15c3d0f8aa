"""What a recipe would come to, in words: its plan, or what stands in its way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from lorahub.engine.plan import Plan
from lorahub.engine.sizes import peak_memory
from lorahub.errors import LorahubError, NotFoundError
from lorahub.output import check_name
from lorahub.parallel import usable_cpus
from lorahub.workspace import Workspace
from tui import text
from tui.draft import Draft

RUNS_LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a draft would come to.

    Attributes:
        facts: Field and value of the plan; empty where there is none.
        warnings: What the user should know.
        problem: Why it cannot be merged as it is, and what to do; empty if it can.
    """

    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Energy:
    """What `lorahub compare` found of the energy of the plain sum.

    Attributes:
        names: The adapters it compared; none before it did.
        kept: Share (0..1) of the energy that rank 1, 2, ... keeps.
    """

    names: frozenset[str] = frozenset()
    kept: tuple[float, ...] = ()

    @classmethod
    def of(cls, comparison: Mapping[str, Any]) -> Energy:
        """Read it from what ``lorahub compare --json`` prints."""
        names = frozenset(str(n["adapter"]) for n in comparison["norms"])
        return cls(names, tuple(comparison["total"]["energy"]))

    def at(self, rank: int, names: Iterable[str]) -> str:
        """What a rank keeps, in words; or how to find out, for adapters that were not compared."""
        if not self.kept or self.names != set(names):
            return "o computes what a rank keeps"
        share = self.kept[min(rank, len(self.kept)) - 1]
        return f"{share:.1%} of the plain sum's energy at rank {rank}"


def outlook(workspace: Workspace, draft: Draft, energy: Energy) -> Outlook:
    """Plan a draft from what the catalog knows; nothing is pulled."""
    try:
        if draft.name:
            check_name(draft.name)
        recipe = draft.anchored(Path.cwd()).recipe()
        for source in recipe.sources:
            _known(workspace, source.adapter)
        plan = workspace.plan(recipe)
    except LorahubError as error:
        return Outlook(problem=text.spoken(error))
    warnings = list(plan.warnings)
    if draft.name and workspace.catalog.by_name(draft.name) is not None:
        warnings.append(f"an adapter named '{draft.name}' is there already: choose another name")
    if not draft.name:
        warnings.append("the result has no name yet")
    return Outlook(_facts(plan, _seconds(workspace, plan), energy), tuple(warnings))


def _known(workspace: Workspace, reference: str) -> None:
    try:
        workspace.get(reference)
    except NotFoundError as error:
        raise NotFoundError(
            f"'{reference}' is not in the catalog", hint="pull it: L in Browse"
        ) from error


def _facts(plan: Plan, seconds: float | None, energy: Energy) -> tuple[tuple[str, str], ...]:
    licences = sorted({a.info.license or "unknown" for a in plan.adapters})
    given = {k: v for k, v in plan.parameters.items() if v is not None}
    workers = min(usable_cpus(), 8)
    facts = (
        ("base model", plan.base_model or ""),
        ("inputs", str(len(plan.adapters))),
        ("method", plan.method.title),
        ("parameters", ", ".join(f"{k}={v}" for k, v in given.items())),
        ("scale", text.number(plan.scale)),
        ("rank", f"{plan.rank} at most"),
        ("modules", f"{len(plan.modules):,}"),
        ("reads", text.size(plan.input_bytes)),
        ("writes", f"{text.size(plan.output_bytes)} at most, {plan.dtype}"),
        ("budget", f"{plan.budget.parameters:,} parameters, {plan.budget.rule}"
                   if plan.budget else ""),
        ("licences", ", ".join(licences)),
        ("time", f"about {text.span(seconds)}, as earlier merges by {plan.method.name}"
                 if seconds is not None else ""),
        ("memory", f"about {text.size(peak_memory(plan.modules, plan.method, workers))}"),
        ("energy", energy.at(plan.rank, (a.name for a in plan.adapters))),
        ("paper", plan.method.paper),
    )  # fmt: skip
    return tuple((key, value) for key, value in facts if value)


def _seconds(workspace: Workspace, plan: Plan) -> float | None:
    """How long earlier merges by the method took a module, times the modules; None without one."""
    paces = []
    for run in workspace.catalog.runs(limit=RUNS_LOOKED_AT):
        if run.method == plan.method.name and run.record and run.ended_at:
            spent = datetime.fromisoformat(run.ended_at) - datetime.fromisoformat(run.started_at)
            paces.append(spent.total_seconds() / max(1, json.loads(run.record)["modules"]))
    return median(paces) * len(plan.modules) if paces else None
