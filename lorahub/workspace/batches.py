"""Many merges in one go."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.adapter import Adapter
from lorahub.config import Config, load_config
from lorahub.errors import LorahubError, PartialError, UsageError
from lorahub.events import Advanced, Listener, PhaseStarted, Warned, ignore
from lorahub.merging import Merger
from lorahub.storage import stored
from lorahub.urls import join
from lorahub.workspace.maker import Maker
from lorahub.workspace.recipes import Recipes
from store import Catalog, is_local

if TYPE_CHECKING:
    from lorahub.batch import Forecast, Item, Outcome
    from lorahub.executors import Executor, Start, Worker
    from lorahub.recipe import Recipe

GROUP_MERGES = 16
"""Most merges that are handed to another process at once, and begun at once under fail_fast."""


class Batches(Recipes):
    """Batches of recipes: forecast, run, resumed."""

    def forecast(self, recipes: Iterable[Recipe], *, listener: Listener = ignore) -> Forecast:
        """What `batch` would do, from file headers alone.

        Raises:
            LorahubError: As `batch`, and as `plan` of any of the recipes.
        """
        from lorahub.batch import Forecast, groups
        from lorahub.cost import Cost, Speed, cost_of

        merger = Merger(self.config, self.catalog)
        items = self._ordered(recipes, merger)
        sources = self._finder(items, listener)
        unchanged = unknown = read = written = 0
        seconds = 0.0
        for group in groups(items):
            costs: list[Cost] = []
            for item in group:
                if item.needs:
                    unknown += 1
                    continue
                plan = self._plan(item.recipe, sources, listener)
                if merger.is_there(item.recipe, plan):
                    unchanged += 1
                    continue
                costs.append(cost_of(plan))
            if costs:
                seconds += Speed().seconds(costs)
                read += sum(cost.input_bytes for cost in costs)
                written += sum(cost.output_bytes for cost in costs)
        return Forecast(len(items), unchanged, unknown, read, written, seconds)

    def batch(
        self,
        recipes: Iterable[Recipe],
        *,
        to: str | None = None,
        jobs: int = 1,
        executor: Executor | None = None,
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
            to: Storage URL that every result is exported to as well, under its name, as soon as
                it is made. What is there already is downloaded instead of merged again.
            jobs: How many processes merge at a time, each on one core; 1 is this process.
            executor: Where to merge instead.
            resume: Also make again the results of earlier merges whose recipe or sources have
                changed since, where they otherwise are conflicts.
            fail_fast: Begin nothing more after a failure; some merges with the same sources may
                have been begun together with the one that failed.
            device: As for `merge`.
            listener: Receives the phase ``batch``.

        Raises:
            ConflictError: Two recipes have one output.
            InvalidRecipeError: A recipe is wrong, or some need each other in a circle.
            UsageError: A recipe without an output, or fewer than one job.
            LorahubError: The store does not answer, as `lorahub.storage.stored`.
        """
        from lorahub.batch import sent_to
        from lorahub.executors import choose

        executor = executor or choose(None, jobs=jobs)
        items = self._ordered(recipes, Merger(self.config, self.catalog))
        if to is not None:
            stored(to)
            items = [sent_to(item, to) for item in items]
        return self._outcomes(items, executor, to, resume, fail_fast, device, listener)

    def _outcomes(
        self,
        items: list[Item],
        executor: Executor,
        to: str | None,
        resume: bool,
        fail_fast: bool,
        device: str,
        listener: Listener,
    ) -> Generator[Outcome, None, None]:
        from lorahub.batch import Outcome, groups

        listener(PhaseStarted("batch", len(items), "merges"))
        missing: set[str] = set()
        stopped = False

        def hindered(item: Item) -> Outcome | None:
            lacking = sorted(item.needs & missing)
            if not (lacking or stopped):
                return None
            why = f"'{lacking[0]}', which it needs, is missing" if lacking else "not begun"
            return Outcome(item.name, "skipped", item.target, error=PartialError(why))

        share = -(-len(items) // (2 * executor.jobs))
        most = min(GROUP_MERGES, share) if executor.elsewhere or fail_fast else None
        done = 0
        with (
            self._start(items, executor, to, resume, device, listener) as start,
            closing(executor.run(groups(items, most), hindered, start)) as outcomes,
        ):
            for outcome in outcomes:
                if outcome.error is not None:
                    missing.add(outcome.name)
                    stopped = stopped or fail_fast
                    listener(Warned(f"{outcome.name}: {outcome.error}", outcome.error.hint))
                done += 1
                listener(Advanced("batch", done, outcome.name))
                yield outcome

    @contextmanager
    def _start(
        self,
        items: list[Item],
        executor: Executor,
        to: str | None,
        resume: bool,
        device: str,
        listener: Listener,
    ) -> Iterator[Start[Item, Outcome]]:
        """What makes a worker of ``executor`` ready."""
        others = [host for host in executor.hosts if host != socket.gethostname()]
        if others and is_local(self.config.database):
            raise UsageError(
                f"{others[0]} cannot write this catalog, which is a file of this machine",
                hint="keep the catalog in PostgreSQL: set LORAHUB_DATABASE_URL",
            )
        find = self._finder(items, _only_warnings(listener))
        if not executor.elsewhere:
            yield partial(Maker, self, find, resume, device, None)
            return
        from lorahub.executors.sharing import sign_in

        # Sources are pulled here once; the workers find them in the catalog.
        names = {item.name for item in items}
        for source in sorted({s for item in items for s in item.sources} - names):
            try:
                find(source)
            except LorahubError:
                continue  # it is the outcome of every merge that needs it
        with sign_in(self.config.home) as sign:
            yield partial(start_worker, self.config, sign, to, names, resume, device)

    def _ordered(self, recipes: Iterable[Recipe], merger: Merger) -> list[Item]:
        from lorahub.batch import ordered
        from lorahub.recipe import check_method

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


def start_worker(
    config: Config,
    sign: Path,
    to: str | None,
    made: set[str],
    resume: bool,
    device: str,
    listener: Listener,
) -> Worker[Item, Outcome]:
    """A worker in a process of its own, which merges on one thread.

    On a machine that does not share the data folder, it works in its own, fetches what is not
    there, and leaves results at the storage URL ``to``.

    Raises:
        UsageError: There is no such URL, so that nobody else would have the results.
    """
    import torch

    torch.set_num_threads(1)
    shared = sign.exists()
    if not shared:
        if to is None:
            raise UsageError(
                f"{socket.gethostname()} does not see {config.home}, where results go",
                hint="share that folder between the machines, or pass --to URL",
            )
        config = replace(config, home=load_config().home)
    workspace = Batches(config, Catalog.open(config.database))
    find = workspace._remembering(made, ignore)  # noqa: SLF001

    def brought(reference: str) -> Adapter:
        adapter = find(reference)
        url = join(to, adapter.name) if to and adapter.name in made else None
        return workspace._brought(adapter, url)  # noqa: SLF001

    return Maker(workspace, find if shared else brought, resume, device, 1, listener)


def _only_warnings(listener: Listener) -> Listener:
    def listen(event: object) -> None:
        if isinstance(event, Warned):
            listener(event)

    return listen
