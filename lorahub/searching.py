"""Gradient-free search over a recipe's numbers: the space, the optimiser, and what was tried.

The optimiser is Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), seeded:
the same recipe, suite and seed try the same recipes in the same order. What each trial gave is kept
in a file, by everything that determines it, so that a search that was stopped goes on from there.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import InvalidRecipeError, StorageError, UsageError
from lorahub.recipe import Recipe
from lorahub.recipe_file import Lock, RecipeFile, locked, read_lock
from lorahub.sweep import set_key

if TYPE_CHECKING:
    import optuna

TRIALS_SUFFIX = ".trials.jsonl"


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the recipe that is varied: from ``low`` to ``high``, or over ``choices``.

    Attributes:
        key: The key, as in a sweep.
        low: Smallest value.
        high: Largest value.
        choices: Words or numbers to choose from instead, or empty.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str | float | bool | None, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The axis as the optimiser has it."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(float(self.low), float(self.high))


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe that was tried.

    Attributes:
        number: Its place, from 1.
        chosen: Value of each axis.
        figures: What the suite found, or None where the merge or the suite failed.
        value: The figure that is sought, or None.
        best: The best value so far, or None.
        why: What failed, or None.
    """

    number: int
    chosen: Mapping[str, Any]
    figures: Mapping[str, float] | None
    value: float | None
    best: float | None
    why: str | None = None


@dataclass(frozen=True)
class Search:
    """A recipe file with the axes of its ``search``.

    Attributes:
        file: The file.
        lock: What pins its sources, or None.
        axes: What is varied.
    """

    file: RecipeFile
    lock: Lock | None
    axes: tuple[Axis, ...]

    def recipe(self, chosen: Mapping[str, Any], *, checked: bool = False) -> Recipe:
        """The recipe with values in place of its own.

        Args:
            chosen: Values by key.
            checked: Whether its method has to take its parameters.

        Raises:
            InvalidRecipeError: It is none.
        """
        body = copy.deepcopy(self.file.body)
        for key, value in chosen.items():
            try:
                set_key(body, key, value)
            except ValueError as error:
                raise _wrong(self.file, key, str(error)) from error
        recipe = self.file.checked(body) if checked else self.file.recipe(body)
        return locked(recipe, self.lock, self.file.path)

    @property
    def sources(self) -> tuple[str, ...]:
        """The references of all sources that a trial may have.

        Raises:
            InvalidRecipeError: One of the choices is none.
        """
        varied = [axis for axis in self.axes if axis.choices and axis.key.endswith(".adapter")]
        found: list[str] = []
        for i in range(max((len(axis.choices) for axis in varied), default=1)):
            chosen = {axis.key: axis.choices[i % len(axis.choices)] for axis in varied}
            found += (source.adapter for source in self.recipe(chosen).sources)
        return tuple(dict.fromkeys(found))

    def start(self) -> dict[str, Any] | None:
        """The recipe's own values, where they lie in the space."""
        recipe = self.file.recipe().model_dump(mode="json")
        found: dict[str, Any] = {}
        for axis in self.axes:
            at: Any = recipe
            try:
                for part in axis.key.split("."):
                    at = at[int(part)] if isinstance(at, list) else at[part]
            except (KeyError, IndexError, ValueError, TypeError):
                return None
            number = isinstance(at, int | float) and axis.low <= at <= axis.high
            if not (at in axis.choices if axis.choices else number):
                return None
            found[axis.key] = at
        return found


def load_search(path: Path) -> Search:
    """Read a recipe file and the space of its ``search``.

    Without ``search``, every weight is varied from 0 to twice what it is.

    Raises:
        InvalidRecipeError: It is no recipe, or its space is none.
    """
    file = RecipeFile(path)
    if "matrix" in file.body:
        raise file.wrong(("matrix",), "is for a batch, not for a search", "leave one of them out")
    recipe = file.recipe()
    given = file.body.get("search")
    if given is None:
        weights = [s.weight or 0.5 for s in recipe.sources]
        axes = [
            Axis(f"sources.{i}.weight", min(0.0, 2 * w), max(0.0, 2 * w))
            for i, w in enumerate(weights)
        ]
    elif isinstance(given, dict) and given:
        axes = [_axis(file, key, value) for key, value in given.items()]
    else:
        raise _wrong(file, None, "has to be a map from keys of the recipe to [low, high]")
    search = Search(file, read_lock(path), tuple(axes))
    for axis in axes:
        _check(search, axis)
    return search


def _check(search: Search, axis: Axis) -> None:
    """Refuse an axis at whose ends there is no recipe: every trial would fail on it."""
    failure: InvalidRecipeError | None = None
    for value in axis.choices or (axis.low, axis.high):
        try:
            search.recipe({axis.key: value}, checked="method" not in {a.key for a in search.axes})
        except InvalidRecipeError as error:
            failure = error
        else:
            return
    assert failure is not None
    raise failure


def _axis(file: RecipeFile, key: object, value: object) -> Axis:
    if not isinstance(key, str) or key.split(".")[0] in {"output", "search", "matrix", "verify"}:
        raise _wrong(file, key, "cannot be searched over")
    if isinstance(value, dict) and value.keys() == {"choices"}:
        choices = value["choices"]
        plain = isinstance(choices, list) and choices
        if plain and all(isinstance(c, str | int | float | None) for c in choices):
            return Axis(key, choices=tuple(choices))
    elif isinstance(value, list) and len(value) == 2:
        low, high = value
        if (
            all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
            and low < high
        ):
            return Axis(key, low, high)
    raise _wrong(file, key, "needs [low, high], or {choices: [...]}")


def _wrong(file: RecipeFile, key: object, what: str) -> InvalidRecipeError:
    at = ("search",) if key is None else ("search", str(key))
    return file.wrong(at, what, "see 'Search' in the documentation of evaluation")


class Tried:
    """The file that keeps what trials gave, by a key of everything that determines it."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that a killed process left half is passed over."""
        self._path = path
        self._known: dict[str, dict[str, float]] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{path}: cannot be read ({error})", hint="remove it") from error
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                body = json.loads(line)
                self._known[body["key"]] = dict(body["figures"])
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str) -> dict[str, float] | None:
        """What a trial gave, if it was made."""
        return self._known.get(key)

    def add(self, key: str, chosen: Mapping[str, Any], figures: dict[str, float]) -> None:
        """Keep what a trial gave.

        Raises:
            StorageError: The file cannot be written.
        """
        line = json.dumps({"key": key, "chosen": dict(chosen), "figures": figures}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + line if self._torn else line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"{self._path}: cannot be written ({error.strerror})", hint="free some space"
            ) from error
        self._torn = False
        self._known[key] = figures


class Optimiser:
    """Proposes values and learns what they gave."""

    def __init__(self, search: Search, *, seed: int, minimize: bool) -> None:
        """Begin a search, at the recipe's own values where they lie in the space.

        Raises:
            UsageError: A seed that is none, or Optuna is not installed.
        """
        if not 0 <= seed < 2**32:
            raise UsageError(f"{seed} is no seed", hint="give a number from 0 to 4294967295")
        try:
            import optuna
        except ImportError as error:
            raise UsageError(
                "searching needs Optuna", hint="pip install 'lorahub-kit[search]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="minimize" if minimize else "maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        self._space = {axis.key: axis.distribution() for axis in search.axes}
        self._failed = optuna.trial.TrialState.FAIL
        start = search.start()
        if start is not None:
            self._study.enqueue_trial(start)

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """A handle for `tell`, and the next values to try."""
        trial = self._study.ask(self._space)
        return trial, dict(trial.params)

    def tell(self, trial: Any, value: float | None) -> None:  # noqa: ANN401 - Optuna's own
        """What a trial gave; None where it failed."""
        if value is None:
            self._study.tell(trial, state=self._failed)
        else:
            self._study.tell(trial, value)


def sought(figures: Mapping[str, float], objective: str | None) -> float:
    """The figure that is sought.

    Raises:
        UsageError: The suite gave no such figure, or several and none is named.
    """
    if objective is None and len(figures) == 1:
        return next(iter(figures.values()))
    if objective is None or objective not in figures:
        what = f"no figure '{objective}'" if objective else f"{len(figures)} figures"
        raise UsageError(
            f"the suite gives {what}", hint=f"name one with --objective: {', '.join(figures)}"
        )
    return figures[objective]


def best_of(trials: Sequence[Trial], *, minimize: bool) -> Trial | None:
    """The trial with the best value, the first of equals; None where all failed."""
    done = [t for t in trials if t.value is not None]
    sign = 1 if minimize else -1
    return min(done, key=lambda t: sign * (t.value or 0.0), default=None)
