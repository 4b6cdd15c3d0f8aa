"""Many merges in one go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.config import Config
from lorahub.errors import ConflictError, LorahubError, PartialError, ResourceError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned, ignore
from lorahub.merging import Merged, Merger
from lorahub.workspace.recipes import Recipes
from store import Catalog

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from lorahub.batch import Forecast, Item, Outcome
    from lorahub.recipe import Recipe


class Batches(Recipes):
    """Batches of recipes: forecast, run, resumed."""

    def forecast(self, recipes: Iterable[Recipe], *, listener: Listener = ignore) -> Forecast:
        """What `batch` would do, from file headers alone.

        Raises:
            LorahubError: As `batch`, and as `plan` of any of the recipes.
        """
        from lorahub.batch import Forecast, seconds_for

        merger = Merger(self.config, self.catalog)
        items = self._ordered(recipes, merger)
        sources = self._finder(items, listener)
        unchanged = unknown = read = written = 0
        seconds = 0.0
        for item in items:
            if item.needs:
                unknown += 1
                continue
            plan = self._plan(item.recipe, sources, listener)
            if merger.is_there(item.recipe, plan):
                unchanged += 1
                continue
            read += plan.input_bytes
            written += plan.output_bytes
            seconds += seconds_for(plan)
        return Forecast(len(items), unchanged, unknown, read, written, seconds)

    def batch(
        self,
        recipes: Iterable[Recipe],
        *,
        jobs: int = 1,
        resume: bool = False,
        fail_fast: bool = False,
        device: str = "auto",
        listener: Listener = ignore,
    ) -> Generator[Outcome, None, None]:
        """Merge many recipes; results are yielded as they are there.

        A recipe may use another's result as a source, by its name or its folder. A failure
        is an outcome, not an exception, and only what needs the missing result is skipped.
        Results that are there already stay, so that the same batch again does what is missing.

        Args:
            recipes: What to merge; they are all read and checked before anything starts.
            jobs: How many processes merge at a time, each on one core; 1 is this process.
            resume: Also make again the results of earlier merges whose recipe or sources have
                changed since, where they otherwise are conflicts.
            fail_fast: Begin nothing more after a failure.
            device: As for `merge`.
            listener: Receives the phase ``batch``.

        Raises:
            ConflictError: Two recipes have one output.
            InvalidRecipeError: A recipe is wrong, or some need each other in a circle.
            UsageError: A recipe without an output, or fewer than one job.
        """
        if jobs < 1:
            raise UsageError(f"{jobs} jobs cannot merge anything", hint="give 1 or more")
        items = self._ordered(recipes, Merger(self.config, self.catalog))
        return self._outcomes(items, jobs, resume, fail_fast, device, listener)

    def _outcomes(
        self,
        items: list[Item],
        jobs: int,
        resume: bool,
        fail_fast: bool,
        device: str,
        listener: Listener,
    ) -> Generator[Outcome, None, None]:
        from lorahub.batch import Outcome

        listener(PhaseStarted("batch", len(items), "merges"))
        run = self._here if jobs == 1 or len(items) < 2 else self._in_processes(jobs)
        missing: set[str] = set()
        stopped = False

        def hindered(item: Item) -> Outcome | None:
            lacking = sorted(item.needs & missing)
            if not (lacking or stopped):
                return None
            why = f"'{lacking[0]}', which it needs, is missing" if lacking else "not begun"
            return Outcome(item.name, "skipped", item.target, error=PartialError(why))

        done = 0
        with closing(run(items, hindered, resume, device, listener)) as outcomes:
            for outcome in outcomes:
                if outcome.error is not None:
                    missing.add(outcome.name)
                    stopped = stopped or fail_fast
                    listener(Warned(f"{outcome.name}: {outcome.error}"))
                done += 1
                listener(Advanced("batch", done, outcome.name))
                yield outcome

    def _here(
        self,
        items: list[Item],
        hindered: Callable[[Item], Outcome | None],
        resume: bool,
        device: str,
        listener: Listener,
    ) -> Generator[Outcome, None, None]:
        one = _One(self, self._finder(items, _only_warnings(listener)), resume, device, None)
        for item in items:
            yield hindered(item) or one(item)

    def _in_processes(self, jobs: int) -> Callable[..., Generator[Outcome, None, None]]:
        def run(
            items: list[Item],
            hindered: Callable[[Item], Outcome | None],
            resume: bool,
            device: str,
            listener: Listener,
        ) -> Generator[Outcome, None, None]:
            # Sources are pulled here once; the workers find them in the catalog.
            find = self._finder(items, _only_warnings(listener))
            names = {item.name for item in items}
            for source in sorted({s for item in items for s in item.sources} - names):
                try:
                    find(source)
                except LorahubError:
                    continue  # it is the outcome of every merge that needs it
            start = partial(_start, self.config, names, resume, device)
            yield from _spread(items, hindered, jobs, start)

        return run

    def _ordered(self, recipes: Iterable[Recipe], merger: Merger) -> list[Item]:
        from lorahub.batch import check_method, ordered

        def named() -> Iterator[tuple[Recipe, str, Path]]:
            for recipe in recipes:
                check_method(recipe)
                yield recipe, *merger.target(recipe)

        return ordered(named())

    def _finder(self, items: Iterable[Item], listener: Listener) -> Callable[[str], Adapter]:
        """What finds a source, each only once unless the batch itself makes it."""
        return self._remembering({item.name for item in items}, listener)

    def _remembering(self, made: set[str], listener: Listener) -> Callable[[str], Adapter]:
        known: dict[str, Adapter] = {}

        def find(reference: str) -> Adapter:
            if reference in known:
                return known[reference]
            adapter = self._source(reference, listener)
            if reference not in made and adapter.name not in made:
                known[reference] = adapter
            return adapter

        return find

    def _merge_one(
        self,
        item: Item,
        merger: Merger,
        find: Callable[[str], Adapter],
        *,
        resume: bool,
        device: str,
        workers: int | None,
        listener: Listener,
    ) -> Merged:
        plan = self._plan(item.recipe, find, listener)

        def merge(*, force: bool) -> Merged:
            return merger.merge(
                item.recipe, plan, device=device, workers=workers, force=force, listener=listener
            )

        for last in (False, False, True):
            try:
                merged = merge(force=False)
                break
            except ConflictError:
                # Another process may be making the same; or an earlier result is in the way.
                there = merger.is_there(item.recipe, plan)
                if resume and not there and merger.is_result(item.recipe):
                    merged = merge(force=True)
                    break
                if last or not there:
                    raise
        self._hand_on(item.recipe, merged.adapter.name)
        return merged


def _spread(
    items: Sequence[Item],
    hindered: Callable[[Item], Outcome | None],
    jobs: int,
    start: Callable[[Event], None],
) -> Generator[Outcome, None, None]:
    """Merge in ``jobs`` processes, each item after what it needs.

    When a process is killed, what was under way begins again in new ones; what is lost so twice
    has failed.
    """
    from lorahub.batch import Outcome

    waiting = list(reversed(items))
    running: dict[Future[Outcome], Item] = {}
    done: set[str] = set()
    lost: Counter[str] = Counter()
    pool: ProcessPoolExecutor | None = None
    context = get_context("spawn")
    stop = context.Event()
    try:
        while waiting or running:
            broken, blocked = False, []
            if pool is None:
                pool = ProcessPoolExecutor(jobs, context, start, (stop,))
            while waiting and len(running) < 2 * jobs and not broken:
                item = waiting.pop()
                outcome = hindered(item)
                if outcome is not None:
                    done.add(item.name)
                    yield outcome
                elif item.needs <= done:
                    try:
                        running[pool.submit(_merge, item)] = item
                    except BrokenProcessPool:
                        broken = True
                        blocked.append(item)
                else:
                    blocked.append(item)
            waiting += reversed(blocked)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    broken = True
                    lost[item.name] += 1
                    if lost[item.name] == 1:
                        waiting.append(item)
                        continue
                    error = ResourceError(
                        "its process was killed, twice",
                        hint="repeat the batch with fewer --jobs: memory may have run out",
                    )
                    outcome = Outcome(item.name, "failed", item.target, error=error)
                done.add(item.name)
                yield outcome
            if broken and not running:
                pool.shutdown(wait=False)
                pool = None
    finally:
        stop.set()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


class _One:
    """Makes one result after the other with what it remembers of the sources."""

    def __init__(
        self,
        workspace: Batches,
        find: Callable[[str], Adapter],
        resume: bool,
        device: str,
        workers: int | None,
        listener: Listener = ignore,
    ) -> None:
        self._workspace = workspace
        self._listener = listener
        self._merger = Merger(workspace.config, workspace.catalog)
        self._find = find
        self._resume, self._device, self._workers = resume, device, workers

    def __call__(self, item: Item) -> Outcome:
        from lorahub.batch import Outcome

        start = time.perf_counter()
        try:
            merged = self._workspace._merge_one(  # noqa: SLF001 - its own helper
                item,
                self._merger,
                self._find,
                resume=self._resume,
                device=self._device,
                workers=self._workers,
                listener=self._listener,
            )
        except LorahubError as error:
            seconds = time.perf_counter() - start
            return Outcome(item.name, "failed", item.target, seconds, error=error)
        check = merged.record.verification
        return Outcome(
            item.name,
            merged.state,
            item.target,
            time.perf_counter() - start,
            merged.record.rank,
            check.truncation,
            min(check.retained),
        )


_worker: _One | None = None


def _start(config: Config, made: set[str], resume: bool, device: str, stop: Event) -> None:
    """Make a process ready to merge, with one thread, until ``stop`` is set."""
    import signal

    import torch

    global _worker
    # Ctrl-C reaches every process of a terminal; the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    workspace = Batches(config, Catalog.open(config.database))
    find = workspace._remembering(made, ignore)  # noqa: SLF001
    _worker = _One(workspace, find, resume, device, 1, _until(stop))


def _merge(item: Item) -> Outcome:
    assert _worker is not None
    return _worker(item)


def _until(stop: Event) -> Listener:
    """A listener that interrupts the work once ``stop`` is set."""

    def listen(_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    return listen


def _only_warnings(listener: Listener) -> Listener:
    def listen(event: object) -> None:
        if isinstance(event, Warned):
            listener(event)

    return listen
