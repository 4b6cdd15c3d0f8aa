"""Parts of one plan that other processes make: ranges of its modules.

What concerns all modules (the adapters' norms, ranks under a budget) is settled before. A part
is whole batches, so that where the cuts are decides no more than the batch size does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from lorahub.adapter import DTYPE_BYTES
from lorahub.engine.batches import Batches, pick_device
from lorahub.engine.plan import Plan, PlannedModule
from lorahub.engine.work import Ready, Task, for_each, ready
from lorahub.errors import LorahubError
from lorahub.events import Advanced, Listener, PhaseStarted
from lorahub.kernels.allocation import ModuleRank

PARTS_PER_JOB = 3
"""So many that a slow worker makes fewer of them, so few that beginning one costs nothing."""

PART_BYTES = 64 << 20
"""Results of one part."""

AHEAD_PER_JOB = 4
"""Parts that may be begun before an earlier one is written; their results are kept meanwhile."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a plan's modules.

    Attributes:
        name: Its number.
        needs: The parts that come so much earlier that they must be done before.
        plan: The plan with these modules only, normalising factors included.
        ranks: By module name, its rank under the plan's budget; None without one.
    """

    name: str
    needs: frozenset[str]
    plan: Plan
    ranks: Mapping[str, ModuleRank] | None

    def failed(self, error: LorahubError) -> Made:
        """What became of it where there is no result."""
        return Made(self.name, error=error)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a part: its modules' factors in plan order, or why there are none."""

    name: str
    modules: tuple[Ready, ...] = ()
    error: LorahubError | None = None


class Elsewhere(Protocol):
    """Where parts are made."""

    jobs: int

    def make(self, parts: Sequence[Part]) -> Generator[Made, None, None]:
        """Yield what became of each part, in any order; closing it ends what is under way."""


def made_elsewhere(
    task: Task, batches: Batches, elsewhere: Elsewhere, listener: Listener
) -> Generator[tuple[PlannedModule, tuple[Ready, ...]], None, None]:
    """Yield each module with what its part gave for it, in plan order.

    Args:
        task: A plan, and its ranks where it has a budget.
        batches: Its batches, which are the least that a part can be.
        elsewhere: Who makes the parts.
        listener: Receives the phase ``merge``.

    Raises:
        LorahubError: A part failed.
    """
    modules = task.plan.modules
    listener(PhaseStarted("merge", len(modules), "modules"))
    with closing(elsewhere.make(cut(task, batches, elsewhere.jobs))) as outcomes:
        for i, (module, found) in enumerate(zip(modules, _in_order(outcomes), strict=True), 1):
            yield module, (found,)
            listener(Advanced("merge", i, module.name))


def cut(task: Task, batches: Batches, jobs: int) -> list[Part]:
    """The parts of a plan, about equally much to read."""
    plan = task.plan
    share = sum(map(_stacked, plan.modules)) / (PARTS_PER_JOB * jobs)
    ranges: list[list[PlannedModule]] = [[]]
    for batch in batches.of(plan):
        longer = ranges[-1] + batch
        size = sum(m.rank * (m.d_in + m.d_out) for m in longer) * DTYPE_BYTES[plan.dtype]
        if ranges[-1] and (sum(map(_stacked, longer)) > share or size > PART_BYTES):
            ranges.append(batch)
        else:
            ranges[-1] = longer
    names = [str(i) for i in range(len(ranges))]
    return [
        Part(
            name,
            frozenset(names[: max(0, i - AHEAD_PER_JOB * jobs)]),
            replace(plan, modules=tuple(modules)),
            None if task.ranks is None else {m.name: task.ranks[m.name] for m in modules},
        )
        for i, (name, modules) in enumerate(zip(names, ranges, strict=True))
    ]


def make_part(part: Part, *, device: str, listener: Listener) -> Made:
    """Merge a part's modules on one thread.

    Args:
        part: What to merge.
        device: As for `lorahub.engine.run.run`.
        listener: Receives the phase ``merge``.
    """
    try:
        with Batches(part.plan, device=pick_device(device), workers=1) as batches:
            work = for_each([Task(part.plan, part.ranks)], ready)
            done: list[Ready] = []
            for _, (found,) in batches.run(part.plan, "merge", work, listener):
                if isinstance(found, LorahubError):
                    return part.failed(found)
                done.append(found)
    except LorahubError as error:
        return part.failed(error)
    return Made(part.name, tuple(done))


def _in_order(outcomes: Iterator[Made]) -> Iterator[Ready]:
    early: dict[str, Made] = {}
    number = 0
    for made in outcomes:
        if made.error is not None:
            raise made.error
        early[made.name] = made
        while (due := early.pop(str(number), None)) is not None:
            yield from due.modules
            number += 1


def _stacked(module: PlannedModule) -> int:
    return module.total_rank * (module.d_in + module.d_out)
