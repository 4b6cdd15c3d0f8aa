"""Making groups of merges, as the worker of an executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.errors import ConflictError, LorahubError
from lorahub.events import Listener
from lorahub.merging import Merged, Merger
from lorahub.workspace.merging import Merging

if TYPE_CHECKING:
    from lorahub.batch import Item, Outcome
    from lorahub.engine.plan import Plan
    from lorahub.executors import Group

MOST_TOGETHER = 64
TOGETHER_BYTES = 4 << 30
"""Merges, and bytes of their results, that are under way together; an interruption loses them."""


class Maker:
    """Makes groups of results with what it remembers of the sources."""

    def __init__(
        self,
        workspace: Merging,
        find: Callable[[str], Adapter],
        resume: bool,
        device: str,
        workers: int | None,
        listener: Listener,
    ) -> None:
        self._workspace = workspace
        self._listener = listener
        self._merger = Merger(workspace.config, workspace.catalog)
        self._find = find
        self._resume, self._device, self._workers = resume, device, workers

    def __call__(self, group: Group[Item]) -> Iterator[Outcome]:
        """Outcomes of a group: merges under way together share what they can."""
        part: list[tuple[Item, Plan]] = []
        size, layout = 0, None
        for item in group:
            start = time.perf_counter()
            try:
                plan = self._planned(item)
            except LorahubError as error:
                yield _outcome(item, error, time.perf_counter() - start)
                continue
            size += plan.output_bytes
            full = len(part) == MOST_TOGETHER or size > TOGETHER_BYTES
            if part and (full or plan.layout != layout):
                yield from self._made(part)
                part, size = [], plan.output_bytes
            if not part:
                layout = plan.layout
            part.append((item, plan))
        if part:
            yield from self._made(part)

    def one(self, item: Item) -> Merged:
        """The result of one merge.

        Raises:
            LorahubError: There is none.
        """
        plan = self._planned(item)
        (merged,) = self._merged([(item, plan)])
        found = self._settled(item, plan, merged)
        if isinstance(found, LorahubError):
            raise found
        return found

    def _planned(self, item: Item) -> Plan:
        """The plan of a merge, whose result is brought back first from where it is already."""
        workspace, recipe = self._workspace, item.recipe
        plan = workspace._plan(recipe, self._find, self._listener)  # noqa: SLF001
        workspace._bring_back(recipe, plan, self._merger, self._listener)  # noqa: SLF001
        return plan

    def _made(self, part: list[tuple[Item, Plan]]) -> Iterator[Outcome]:
        start = time.perf_counter()
        made = self._merged(part)
        seconds = (time.perf_counter() - start) / len(part)
        for (item, plan), merged in zip(part, made, strict=True):
            begun = time.perf_counter()
            found = self._settled(item, plan, merged)
            yield _outcome(item, found, seconds + time.perf_counter() - begun)

    def _merged(
        self, part: Sequence[tuple[Item, Plan]], *, force: bool = False
    ) -> list[Merged | LorahubError]:
        return self._merger.merge_all(
            [(item.recipe, plan) for item, plan in part],
            device=self._device,
            workers=self._workers,
            force=force,
            listener=self._listener,
        )

    def _settled(
        self, item: Item, plan: Plan, merged: Merged | LorahubError
    ) -> Merged | LorahubError:
        """The result handed on, or made after all where something only was in the way."""
        try:
            if isinstance(merged, ConflictError):
                merged = self._again(item, plan, merged)
            if isinstance(merged, Merged):
                self._workspace._hand_on(  # noqa: SLF001
                    item.recipe, merged.adapter.name, resume=self._resume
                )
        except LorahubError as error:
            return error
        return merged

    def _again(self, item: Item, plan: Plan, conflict: ConflictError) -> Merged:
        """Merge where another process may be making the same, or an earlier result is in the way.

        Raises:
            LorahubError: It is something else, or cannot be made.
        """
        merged: Merged | LorahubError = conflict
        for _ in range(2):
            # In this order: what another process ends in between is there, and not replaced.
            earlier = self._resume and self._merger.is_result(item.recipe)
            there = self._merger.is_there(item.recipe, plan)
            force = earlier and not there
            if there or force:
                (merged,) = self._merged([(item, plan)], force=force)
            if force or not isinstance(merged, ConflictError):
                break
        if isinstance(merged, LorahubError):
            raise merged
        return merged


def _outcome(item: Item, merged: Merged | LorahubError, seconds: float) -> Outcome:
    from lorahub.batch import Outcome

    if isinstance(merged, LorahubError):
        return Outcome(item.name, "failed", item.target, seconds, error=merged)
    check = merged.record.verification
    return Outcome(
        item.name,
        merged.state,
        item.target,
        seconds,
        merged.record.rank,
        check.truncation,
        min(check.retained),
    )
