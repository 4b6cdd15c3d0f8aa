"""What is computed of the batches of one plan, or of several that are carried out together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lorahub.engine.batches import Work, name_the_bad_factor, reweighted
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.errors import InvalidRecipeError, LorahubError
from lorahub.formats.safetensors import Encoded, encode
from lorahub.kernels.allocation import ModuleRank
from lorahub.kernels.lowrank import canonical
from lorahub.kernels.stack import Factors, Mix, Stack

T = TypeVar("T")

PRUNED = "has no rank left and is not in the result"
"""The warning that a module's report has when it is not written."""


@dataclass(frozen=True, slots=True)
class Ready:
    """One module's factors, ready to be written."""

    A: Encoded
    B: Encoded
    rank: int
    report: Mapping[str, Any]


@dataclass
class Task:
    """A plan of those that are carried out together.

    Attributes:
        plan: The plan, normalising factors included.
        ranks: By module name, its rank under the plan's budget; None without one.
        cache: Mixtures (or factors) kept from the pass that found spectra.
        error: What it failed with; nothing more is computed for it.
    """

    plan: Plan
    ranks: Mapping[str, ModuleRank] | None = None
    cache: dict[str, Mix | Factors] = field(default_factory=dict)
    error: LorahubError | None = None


def for_each(
    tasks: Sequence[Task],
    one: Callable[[Task, Sequence[PlannedModule], Stack], Sequence[T]],
) -> Work[tuple[T | LorahubError, ...]]:
    """The work that does ``one`` for every task, and per module returns what it gave each."""
    places = {m.name: i for i, m in enumerate(tasks[0].plan.modules)} if tasks else {}

    def work(modules: Sequence[PlannedModule], stack: Stack) -> list[tuple[T | LorahubError, ...]]:
        first = places[modules[0].name] if tasks else 0
        found: list[Sequence[T | LorahubError]] = []
        for task in tasks:
            if task.error is None:
                own = task.plan.modules[first : first + len(modules)]
                try:
                    found.append(one(task, own, reweighted(task.plan, own, stack)))
                    continue
                except LorahubError as error:
                    task.error = error
            found.append([task.error] * len(modules))
        return list(zip(*found, strict=True)) if tasks else [()] * len(modules)

    return work


def mixed(plan: Plan, modules: Sequence[PlannedModule], stack: Stack) -> Mix | Factors:
    """What the plan's method makes of a batch."""
    try:
        return plan.method.rule(stack, **plan.parameters)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # what torch raises when a decomposition meets NaN
        name_the_bad_factor(plan, modules, stack)
        raise


def ready(task: Task, modules: Sequence[PlannedModule], stack: Stack) -> list[Ready]:
    """The factors that the plan has for a batch, of the ranks that its budget allows."""
    plan, ranks, cache = task.plan, task.ranks, task.cache
    if cache and all(m.name in cache for m in modules):
        mixes = [(cache[m.name], stack.module(i)) for i, m in enumerate(modules)]
    else:
        mix = mixed(plan, modules, stack)
        mix = mix if ranks is None else canonical(stack, mix)
        widths = mix.ranks if ranks is None else [ranks[m.name].rank for m in modules]
        mixes = [(mix, stack)]
        if stack.B.device.type == "cpu" and len(set(widths or ())) > 1:
            # Products of another width round otherwise: each module's is its own rank.
            mixes = [(mix.module(i), stack.module(i)) for i in range(len(modules))]
    done: list[Ready] = []
    for mix, part in mixes:
        some = modules[len(done) : len(done) + len(part.seeds)]
        kept = mix.ranks or [mix.width] * len(some)
        if ranks is not None:
            kept = [ranks[m.name].rank for m in some]
        mix = mix.cut(kept)
        factors, reports = mix.scaled(plan.scale).apply(part), mix.reports
        for i, (module, rank) in enumerate(zip(some, kept, strict=True)):
            A = encode(factors.A[i, :rank], plan.dtype)
            B = encode(factors.B[i, :, :rank], plan.dtype)
            if not (A.finite and B.finite):
                # NaN and Inf in a source reach the result whatever the method, so that only a
                # bad result pays for finding out where from.
                name_the_bad_factor(plan, modules, stack)
                raise InvalidRecipeError(
                    f"module '{module.name}': the merged factors overflow {plan.dtype}",
                    hint="use --dtype F32"
                    if plan.dtype != "F32"
                    else "give smaller weights, or a smaller scale",
                )
            report = dict(reports[i]) if reports else {}
            if ranks is not None:
                row = ranks[module.name]
                report |= {"full_rank": row.full_rank, "cut_off": row.error, "lrc": row.lrc}
                if not rank:
                    report |= {"warning": PRUNED}
            done.append(Ready(A, B, rank, report))
    return done
