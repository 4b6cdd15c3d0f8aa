"""Making the folder of a merge: weights, config, verification, record, recipe and card.

A folder is made in steps (see `lorahub.lockstep`): between them the weights are merged, and then
verified, for all folders that are made together.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lorahub import formats
from lorahub.adapter import AdapterInfo
from lorahub.errors import LorahubError, VerificationError
from lorahub.events import Listener
from lorahub.lockstep import Lockstep
from lorahub.packed import pack_beside
from lorahub.provenance import parents_of, pinned_recipe, warnings_of
from lorahub.record import FILE_NAME, RECIPE_NAME, Packed, Record, Verification

if TYPE_CHECKING:
    from lorahub.engine.parts import Elsewhere
    from lorahub.engine.plan import Plan
    from lorahub.engine.run import Run
    from lorahub.engine.verify import Result
    from lorahub.recipe import VerifySpec

WEIGHTS = "adapter_model.safetensors"

R = TypeVar("R")
Made = tuple[Record, AdapterInfo]
Steps = Generator["tuple[Plan, Path] | Result", "Run | Verification", R]
"""Yields a plan with the file that its weights go to, and is sent the `Run`; then yields what is
to be verified, once or twice."""


def folder_of(plan: Plan, name: str, folder: Path, listener: Listener) -> Steps[Made]:
    """Make the result of ``plan`` with all that belongs to it in an empty folder, step by step.

    Returns:
        Its record, and what `lorahub.formats.inspect` finds.

    Raises:
        VerificationError: It is further from its definition than its dtype allows.
    """
    from lorahub.card import render_card

    weights = folder / WEIGHTS
    done: Any = yield plan, weights
    digest, plan = plan.digest, done.plan
    ranks = {m.name: m.rank for m in done.modules if m.rank}
    reports = {m.name: m.report for m in done.modules if m.report}
    config = formats.peft.config_for(
        ranks,
        base_model=plan.base_model,
        task_type=plan.task_type,
        fan_in_fan_out=plan.fan_in_fan_out,
        auto_mapping=plan.auto_mapping,
    )
    (folder / formats.peft.CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    info = formats.inspect(folder)
    check = yield from _verified(plan, weights, info, reports)
    require(check, name)
    packed = None
    if plan.pack:
        packed = pack_beside(folder, name, info, plan.pack, listener)
        info = formats.inspect(folder)
        check = yield from _verified(plan, weights, info, reports)
        # What the method made was verified above; from here on, that nothing else changes it.
        check = replace(check, tolerance=1.001 * check.worst_error + check.tolerance)
    notes = plan.notes + warnings_of(done.modules)
    record = _record(plan, digest, info, check, packed, notes, reports)
    (folder / FILE_NAME).write_text(record.to_json(), encoding="utf-8")
    recipe = pinned_recipe(plan, name).to_yaml()
    (folder / RECIPE_NAME).write_text(recipe, encoding="utf-8")
    card = render_card(record, info, name=name, paper=plan.method.paper, recipe=recipe)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return record, formats.described(info, folder)


def _verified(
    plan: Plan, weights: Path, info: AdapterInfo, reports: Mapping[str, Mapping[str, Any]]
) -> Steps[Verification]:
    from lorahub.engine.verify import Result

    check: Any = yield Result(plan, weights, info.modules, reports)
    found: Verification = check
    return found


def _record(
    plan: Plan,
    digest: str,
    info: AdapterInfo,
    check: Verification,
    packed: Packed | None,
    notes: tuple[str, ...],
    reports: Mapping[str, Mapping[str, Any]],
) -> Record:
    from lorahub.engine.plan import LORAHUB_VERSION

    return Record(
        digest=digest,
        lorahub=LORAHUB_VERSION,
        method=plan.method.name,
        parameters=plan.parameters,
        scale=plan.scale,
        normalize=bool(plan.normalize),
        allocate=plan.budget.rule if plan.budget else None,
        budget=plan.budget.parameters if plan.budget else None,
        packed=packed,
        seed=plan.seed,
        dtype=plan.dtype,
        base_model=plan.base_model,
        parents=parents_of(plan),
        modules=len(info.modules),
        rank=max(info.ranks),
        weights_sha256=info.weights_sha256,
        verification=check,
        license=plan.license,
        notes=notes,
        reports=reports,
    )


def make_all(
    steps: Lockstep[Any, Any, R],
    *,
    device: str,
    workers: int | None,
    listener: Listener,
    elsewhere: Elsewhere | None = None,
) -> list[R | LorahubError]:
    """Take tasks that make folders, of plans of one `Plan.layout`, through all their steps.

    Returns:
        What came of each task, in order.
    """
    from lorahub.engine.run import run_all
    from lorahub.engine.verify import verify_all

    with steps:
        steps.start()
        asked = list(steps.waiting.items())
        if asked:
            plans, paths = zip(*(wanted for _, wanted in asked), strict=True)
            runs: Sequence[Run | LorahubError]
            try:
                runs = run_all(
                    plans,
                    paths,
                    device=device,
                    workers=workers,
                    elsewhere=elsewhere,
                    listener=listener,
                )
            except LorahubError as error:
                runs = [error] * len(asked)
            for (i, _), run in zip(asked, runs, strict=True):
                steps.step(i, run)
        while steps.waiting:
            asked = list(steps.waiting.items())
            checks: Sequence[Verification | LorahubError]
            try:
                checks = verify_all([r for _, r in asked], workers=workers, listener=listener)
            except LorahubError as error:
                checks = [error] * len(asked)
            for (i, _), check in zip(asked, checks, strict=True):
                steps.step(i, check)
        return steps.outcomes


def require(check: Verification, name: str, bounds: VerifySpec | None = None) -> None:
    """Raise VerificationError unless a result is near enough to its definition.

    Args:
        check: What was found of it.
        name: What it is called.
        bounds: The recipe's own bounds.
    """
    if not check.passed:
        raise VerificationError(
            f"'{name}' is off by {check.worst_error:.1e} in module '{check.worst_module}', "
            f"{check.tolerance:.0e} is allowed",
            hint="this is a defect of the method or of the files; please report it",
        )
    if bounds is None:
        return
    least = min(check.retained)
    for key, found, bound in (
        ("error", check.worst_error, bounds.error),
        ("truncation", check.truncation, bounds.truncation),
        ("retained", -least, None if bounds.retained is None else -bounds.retained),
    ):
        if bound is not None and found > bound:
            raise VerificationError(
                f"'{name}' has {key} {abs(found):.3g}, the recipe allows {abs(bound):g}",
                hint=f"give it a higher rank, or loosen 'verify.{key}' in the recipe",
            )
