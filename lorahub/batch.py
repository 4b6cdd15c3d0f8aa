"""Many merges: gathered from files, checked together, put in order, and reported on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from pathlib import Path
from typing import Literal

from lorahub.errors import (
    ConflictError,
    InvalidRecipeError,
    LorahubError,
    NotFoundError,
    UsageError,
)
from lorahub.recipe import ExportSpec, Recipe
from lorahub.recipe_file import LOCK_SUFFIX
from lorahub.sweep import Sweep, load_sweep
from lorahub.urls import join

ASK_FROM = 10_000
"""How many merges are begun only when they were asked for twice."""


@dataclass(frozen=True, slots=True)
class Item:
    """One merge of a batch.

    Attributes:
        recipe: What is merged.
        name: Name of its result.
        target: Folder of its result.
        needs: Names of the results of this batch that are among its sources.
    """

    recipe: Recipe
    name: str
    target: Path
    needs: frozenset[str]

    @property
    def sources(self) -> tuple[str, ...]:
        """The references of its sources, in order."""
        return tuple(source.adapter for source in self.recipe.sources)

    def failed(self, error: LorahubError) -> Outcome:
        """Its outcome where there is no result."""
        return Outcome(self.name, "failed", self.target, error=error)


def sent_to(item: Item, url: str) -> Item:
    """The item with one more export: under its name in the folder at a storage URL."""
    output = item.recipe.output
    more = (*output.export, ExportSpec(folder=join(url, item.name)))
    recipe = item.recipe.model_copy(update={"output": output.model_copy(update={"export": more})})
    return replace(item, recipe=recipe)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one merge.

    Attributes:
        name: Name of the result.
        state: ``unchanged`` when the same result was there already; ``skipped`` when something
            it needs failed, or when the batch ended before.
        folder: Where the result is, or was to be.
        seconds: How long it took.
        rank: Largest rank of the result, or None without one.
        truncation: Relative distance from the exact weighted sum, or None without a result.
        retained: Smallest share of a source's energy that was kept, or None without a result.
        error: Why there is no result, or None.
    """

    name: str
    state: Literal["merged", "unchanged", "failed", "skipped"]
    folder: Path
    seconds: float = 0.0
    rank: int | None = None
    truncation: float | None = None
    retained: float | None = None
    error: LorahubError | None = None


def groups(items: Iterable[Item], most: int | None = None) -> list[tuple[Item, ...]]:
    """Runs of items that share their sources, of at most ``most`` items each."""
    found: list[tuple[Item, ...]] = []
    for _, run in groupby(items, key=lambda item: item.sources):
        group = tuple(run)
        size = most or len(group)
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a batch would do.

    Attributes:
        merges: How many merges there are.
        unchanged: How many of them have their result already.
        unknown: How many need a result of this batch, so that their size is not known yet.
        input_bytes: Factors that would be read, of those whose size is known.
        output_bytes: Factors that would be written, at most.
        seconds: A rough estimate for one job on one core.
    """

    merges: int
    unchanged: int
    unknown: int
    input_bytes: int
    output_bytes: int
    seconds: float


def ask(sweeps: Sequence[Sweep], *, yes: bool) -> None:
    """Refuse very many merges that were not asked for twice.

    Raises:
        UsageError: There are `ASK_FROM` or more, and ``yes`` is not set.
    """
    total = sum(sweep.size for sweep in sweeps)
    if total >= ASK_FROM and not yes:
        raise UsageError(f"these are {total} merges", hint="pass --yes if that is meant")


def gather(paths: Sequence[Path]) -> list[Sweep]:
    """The recipe files among ``paths`` and, sorted, in the folders among them.

    Raises:
        NotFoundError: A folder without recipes.
        InvalidRecipeError: A file that is no recipe.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = [p for p in path.iterdir() if p.suffix in {".yaml", ".yml"} and p.is_file()]
        found = sorted(p for p in found if not p.name.endswith(LOCK_SUFFIX))
        if not found:
            raise NotFoundError(f"{path}: holds no recipes", hint="they end in .yaml")
        files += found
    return [load_sweep(file) for file in files]


def ordered(named: Iterable[tuple[Recipe, str, Path]]) -> list[Item]:
    """The merges so that each comes after those whose results it needs.

    Those that share their sources come one after the other, else they stay as given.

    Args:
        named: Recipes with the name and the folder of their results.

    Raises:
        ConflictError: Two of them have one output.
        InvalidRecipeError: They need each other in a circle.
    """
    given = list(named)
    by_name: dict[str, int] = {}
    by_folder: dict[Path, int] = {}
    taken: set[str] = set()
    for i, (recipe, name, target) in enumerate(given):
        for output in _outputs(recipe, name, target):
            if output in taken:
                raise ConflictError(
                    f"two merges of the batch have the output {output}",
                    hint="give each its own; in a sweep, with {axis} or {n} in output.name",
                )
            taken.add(output)
        by_name[name] = by_folder[target] = i
    items = []
    for recipe, name, target in given:
        needs = {s.adapter for s in recipe.sources if s.adapter in by_name}
        for source in recipe.sources:
            place = (
                by_folder.get(Path(source.adapter).absolute()) if "/" in source.adapter else None
            )
            if place is not None:
                needs.add(given[place][1])
        items.append(Item(recipe, name, target, frozenset(needs)))
    sorter = TopologicalSorter(
        {i: [by_name[n] for n in sorted(item.needs)] for i, item in enumerate(items)}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " <- ".join(items[i].name for i in error.args[1])
        raise InvalidRecipeError(
            f"recipes need each other's results in a circle: {circle}",
            hint="take one of them out",
        ) from error
    order: list[Item] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        groups: dict[tuple[str, ...], list[Item]] = {}
        for i in ready:
            groups.setdefault(items[i].sources, []).append(items[i])
        order += [item for group in groups.values() for item in group]
        sorter.done(*ready)
    return order


def _outputs(recipe: Recipe, name: str, target: Path) -> Iterator[str]:
    """Everything that a merge alone may write, in words."""
    yield f"name '{name}'"
    yield f"folder {target}"
    for copy in recipe.output.export:
        place = copy.folder
        yield place if isinstance(place, str) else f"folder {place.absolute()}"
    if recipe.output.push is not None:
        remote = recipe.output.push.remote
        yield f"repository {f'{remote}://' if remote else ''}{recipe.output.push.repo}"


def counts(outcomes: Iterable[Outcome]) -> Mapping[str, int]:
    """How many merges came to which state."""
    return dict(sorted(Counter(o.state for o in outcomes).items()))
