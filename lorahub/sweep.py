"""Sweeps: one recipe file whose ``matrix`` stands for many merges."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lorahub.errors import InvalidRecipeError
from lorahub.recipe import Recipe
from lorahub.recipe_file import Key, Lock, RecipeFile, locked, read_lock

_PLACE = re.compile(r"\{([\w.]+)\}")


@dataclass(frozen=True)
class Sweep:
    """The recipes of one file, made one by one as they are asked for.

    Attributes:
        file: The file.
        lock: What pins its sources, or None.
        axes: By key of the recipe, the values that it takes; empty for a single recipe.
        excluded: Combinations that are left out, each by the values of some axes.
    """

    file: RecipeFile
    lock: Lock | None
    axes: Mapping[str, Sequence[Any]]
    excluded: Sequence[Mapping[str, Any]]

    @property
    def size(self) -> int:
        """How many combinations there are before any is left out."""
        return math.prod(map(len, self.axes.values()))

    def recipes(self) -> Iterator[Recipe]:
        """The recipes in order, the last axis moving fastest.

        Raises:
            InvalidRecipeError: One of them is none.
        """
        return (recipe for recipe, _ in self.labelled())

    def labelled(self) -> Iterator[tuple[Recipe, Mapping[str, str]]]:
        """As `recipes`, each with the values of its axes as words.

        Raises:
            InvalidRecipeError: One of them is none.
        """
        if not self.axes:
            yield locked(self.file.checked(), self.lock, self.file.path), {}
            return
        for n, places in enumerate(product(*(range(len(v)) for v in self.axes.values())), 1):
            chosen = {
                axis: values[i] for (axis, values), i in zip(self.axes.items(), places, strict=True)
            }
            if any(all(chosen[k] == v for k, v in some.items()) for some in self.excluded):
                continue
            labels = {
                axis: _label(value, i)
                for (axis, value), i in zip(chosen.items(), places, strict=True)
            }
            body = copy.deepcopy(self.file.body)
            for axis, value in chosen.items():
                self._set(body, axis, value)
            body["output"] = self._named(body.get("output"), labels | {"n": str(n)})
            yield locked(self.file.checked(body), self.lock, self.file.path), labels

    def _set(self, body: dict[str, Any], axis: str, value: object) -> None:
        try:
            set_key(body, axis, value)
        except ValueError as error:
            raise self.wrong(("matrix", axis), str(error)) from error

    def _named(self, output: object, labels: Mapping[str, str]) -> object:
        """The output with ``{axis}``, or its last word, and ``{n}`` filled in."""
        short = {axis.rsplit(".", 1)[-1]: label for axis, label in labels.items()}
        known = short | dict(labels)

        def fill(text: str) -> str:
            def label(match: re.Match[str]) -> str:
                if match[1] not in known:
                    raise self.wrong(
                        ("output",), f"'{match[0]}' is no axis; there are {', '.join(known)}"
                    )
                return known[match[1]]

            return _PLACE.sub(label, text)

        def each(value: object) -> object:
            if isinstance(value, dict):
                return {k: each(v) for k, v in value.items()}
            if isinstance(value, list):
                return [each(v) for v in value]
            return fill(value) if isinstance(value, str) else value

        return each(output or {})

    def wrong(self, key: Key, what: str) -> InvalidRecipeError:
        """The error for a key of the file."""
        return self.file.wrong(key, what, "see 'Sweeps' in the documentation of recipes")


def set_key(body: dict[str, Any], key: str, value: object) -> None:
    """Put a value where a dotted key says; ``sources.weight`` gives one weight to each source.

    Raises:
        ValueError: The key or the value does not fit; the message says which.
    """
    if key == "sources.weight":
        sources = body.get("sources")
        if not isinstance(value, list) or not isinstance(sources, list):
            raise ValueError("needs lists of one weight for each source")
        if len(value) != len(sources) or not all(isinstance(s, dict) for s in sources):
            raise ValueError("needs lists of one weight for each source")
        for source, weight in zip(sources, value, strict=True):
            source["weight"] = weight
        return
    *parents, last = key.split(".")
    at: Any = body
    try:
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        at[int(last) if isinstance(at, list) else last] = copy.deepcopy(value)
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError("names no key of the recipe") from error


def load_sweep(path: Path) -> Sweep:
    """Read a recipe file with or without a ``matrix``.

    Raises:
        InvalidRecipeError: It cannot be read, or its matrix is none.
    """
    file = RecipeFile(path)
    axes, excluded = file.body.get("matrix", {}), file.body.get("exclude", [])
    sweep = Sweep(file, read_lock(path), axes, excluded)
    if not isinstance(axes, dict) or (not axes and "matrix" in file.body):
        raise sweep.wrong(("matrix",), "has to be a map from keys of the recipe to lists")
    for axis, values in axes.items():
        if not isinstance(axis, str) or axis.split(".")[0] in {"output", "matrix", "exclude"}:
            raise sweep.wrong(("matrix", axis), "cannot be an axis")
        if not isinstance(values, list) or not values:
            raise sweep.wrong(("matrix", axis), "needs a list of values")
    if not isinstance(excluded, list) or not all(isinstance(e, dict) and e for e in excluded):
        raise sweep.wrong(("exclude",), "has to be a list of maps from axes to values")
    if "exclude" in file.body and not axes:
        raise sweep.wrong(("exclude",), "needs a matrix")
    for i, some in enumerate(excluded):
        for axis in some:
            if axis not in axes:
                raise sweep.wrong(("exclude", i, axis), "is no axis of the matrix")
    return sweep


def _label(value: object, place: int) -> str:
    """A value as a part of a name; what is no plain word is told by its place in the axis."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return "_".join(f"{v:g}" for v in value)
    if isinstance(value, str) and re.fullmatch(r"[\w .%-]+", value, re.ASCII):
        return value.replace(" ", "").replace("%", "")
    return str(place + 1)
